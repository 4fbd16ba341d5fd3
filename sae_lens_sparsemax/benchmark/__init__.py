"""What a training pass costs, as ratios to the one matrix product that it cannot do without."""
