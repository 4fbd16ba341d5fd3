"""Sparsemax cross-attention on tensors: projection, supports, and the weighted sums over them."""
