"""`python -m sae_lens_sparsemax.compare CONFIG [--dotted.key value …]`."""

import argparse
import sys

import sae_lens_sparsemax  # noqa: F401 (registers the architecture)
from sae_lens_sparsemax.compare.runner import compare_from_yaml


def main(arguments: list[str] | None = None) -> None:
    """Run a comparison; options after the config file replace its entries by dotted key."""
    parser = argparse.ArgumentParser(prog="python -m sae_lens_sparsemax.compare", description=__doc__)
    parser.add_argument("config", help="YAML file with the settings of the comparison")
    known, rest = parser.parse_known_args(arguments)
    try:
        path = compare_from_yaml(known.config, _overrides(rest))
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(f"{path}\n")


def _overrides(options: list[str]) -> dict[str, str]:
    """`["--a.b", "1", "--c=2"]` as `{"a.b": "1", "c": "2"}`."""
    overrides: dict[str, str] = {}
    rest = list(options)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise ValueError(f"expected an option of the form --key value, got {option!r}")
        key, equals, value = option[2:].partition("=")
        if not equals:
            if not rest:
                raise ValueError(f"--{key} needs a value")
            value = rest.pop(0)
        overrides[key] = value
    return overrides


if __name__ == "__main__":
    main()
