"""What several commands print, and the status of one that was stopped."""

STOPPED = 130
"""The shell's status for a command ended by Ctrl-C."""


def print_table(rows: list[tuple[str, str]]) -> None:
    """Print names and values in two columns between lines."""
    width = max(len(name) for name, _ in rows)
    line = "-" * (width + 2 + max(len(value) for _, value in rows))
    print("\n".join([line, *(f"{name:<{width}}  {value}" for name, value in rows), line]))
