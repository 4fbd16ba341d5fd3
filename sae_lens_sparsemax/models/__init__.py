"""Hooked models, and a saved SAE at its model's hook."""

from importlib.metadata import version

from packaging.version import Version

# SAEs themselves load and run with the older versions that SAEDashboard needs, so the package requires no newer ones.
_AT_LEAST = {"transformers": "5.4", "transformer-lens": "3.0"}

for _name, _least in _AT_LEAST.items():
    if Version(version(_name)) < Version(_least):
        raise ImportError(f"{_name} must be at least {_least} to open models, got {version(_name)}")
