"""Settings: YAML and command line to one checked dataclass, for every command.

`yaml_files` reads files, `recipes` finds those of the package by name, `command_line` reads `--dotted.key value` and
writes the help, `checking` turns what both gave into a dataclass, and says every mistake in the same sentence.
"""
