"""The SAELens classes of the sparsemax SAE: configs, inference, training."""
