"""Streams of activations: mixed, stored, cached, and taken up again exactly where they stopped."""
