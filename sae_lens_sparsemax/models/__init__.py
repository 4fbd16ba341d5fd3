"""Hooked models, and a saved SAE at its model's hook."""
