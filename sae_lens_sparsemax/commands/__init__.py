"""Commands of `sparsemax-sae` with more to them than a call: each module adds its parser and runs its command."""
