"""The cross-attention sparsemax sparse autoencoder, as a SAELens plugin."""
