"""How the embedded text and models were made: run once, and kept so that they can be made again."""
