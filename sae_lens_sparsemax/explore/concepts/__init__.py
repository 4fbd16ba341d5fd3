"""The concepts of single inputs: what an image or a text activates, and where."""
