"""Settings: YAML and command line to one checked dataclass, for every command."""
