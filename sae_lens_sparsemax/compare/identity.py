"""What a result is known by: a hash of all that it depends on."""

from dataclasses import asdict, replace
from typing import Any

from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_sparsemax.files import digest_of

# Where a width is not known, at which another says what waits for it: wider than any rule of ours leaves alone.
_SOME_WIDTH = 65_536
# They say where an SAE is trained and belongs, not what comes out.
_NOT_LEARNT = {"device", "metadata"}


def fingerprint(settings: Any) -> str:
    """A short hash of plain data or a dataclass, equal for equal settings."""
    plain = settings if isinstance(settings, dict) else asdict(settings)
    return digest_of(plain).hexdigest()[:16]


def resolved_sae(cfg: TrainingSAEConfig) -> dict[str, Any]:
    """All that an SAE's training depends on in its config, for `fingerprint`: what a default means, too.

    A result that is known by what was given alone is taken for today's after a default has changed.
    """
    known = cfg if cfg.d_in else replace(cfg, d_in=_SOME_WIDTH)
    return {key: value for key, value in known.to_dict().items() if key not in _NOT_LEARNT}
