"""The commands of `sparsemax-sae`, a module each.

A module has HELP (one line), EPILOG (examples and more), OPTIONS (the long options of its own where every other
`--key value` replaces a key of its configuration, else None), add_arguments(parser), and run(options, overrides),
which does the work and returns the exit status. It imports torch and SAELens only when it runs.
"""

STOPPED = 130
"""The shell's status for a command ended by Ctrl-C."""
