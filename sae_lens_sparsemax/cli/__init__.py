"""The commands of `sparsemax-sae`, a module each.

A module has HELP (one line), EPILOG (examples and more), add_arguments(parser) for the options of its own, and
run(options, overrides), which does the work and returns the exit status. Where settings can be given, settings(words)
tells their dataclasses: every other `--key value` is one of them. STOPPED says how to go on after Ctrl-C, and
IS_SHARED, where it is False, that several processes started by torchrun cannot share it. It imports torch and SAELens
only when it runs.
"""
