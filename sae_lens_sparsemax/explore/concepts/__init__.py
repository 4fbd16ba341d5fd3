"""
The concepts of single inputs: what an image or a text activates and where (`image`, `text`), what the model does with
some of them switched off or up (`switching`), and guesses at their names (`naming`, `words`).
"""
