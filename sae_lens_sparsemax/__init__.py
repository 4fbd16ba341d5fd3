"""The cross-attention sparsemax sparse autoencoder, as a SAELens plugin.

Importing this package registers the architecture "sparsemax" with SAELens: its loaders, runners, evaluation harness
and command line know it from then on. What looks at concepts and sees images is loaded when asked for.
"""

from typing import TYPE_CHECKING, Any

from sae_lens import register_sae_class, register_sae_training_class
from sae_lens.registry import SAE_CLASS_REGISTRY

from sae_lens_sparsemax.attention.cross_attention import attend
from sae_lens_sparsemax.attention.gate import sparsemax
from sae_lens_sparsemax.attention.support import select_support
from sae_lens_sparsemax.sae.config import ARCHITECTURE, SparsemaxSAEConfig, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.sae.inference import SparsemaxSAE
from sae_lens_sparsemax.sae.presets import PRESETS
from sae_lens_sparsemax.sae.training import SparsemaxTrainingSAE

if TYPE_CHECKING:
    from sae_lens_sparsemax.explore.notebook import concepts_of, steer
    from sae_lens_sparsemax.models.hooked_vit import HookedViT
    from sae_lens_sparsemax.models.splice import Change

__version__ = "0.2.0"

__all__ = [
    "PRESETS",
    "Change",
    "HookedViT",
    "SparsemaxSAE",
    "SparsemaxSAEConfig",
    "SparsemaxTrainingSAE",
    "SparsemaxTrainingSAEConfig",
    "attend",
    "concepts_of",
    "select_support",
    "sparsemax",
    "steer",
]

# SAELens refuses to register a name twice, which a reload in a notebook would do with our own classes.
_registered = SAE_CLASS_REGISTRY.get(ARCHITECTURE)
if _registered is None or _registered[0].__module__ != SparsemaxSAE.__module__:
    register_sae_class(ARCHITECTURE, SparsemaxSAE, SparsemaxSAEConfig)
    register_sae_training_class(ARCHITECTURE, SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig)


def __getattr__(name: str) -> Any:
    if name in ("concepts_of", "steer"):
        from sae_lens_sparsemax.explore import notebook

        return getattr(notebook, name)
    if name == "Change":
        from sae_lens_sparsemax.models.splice import Change

        return Change
    if name == "HookedViT":
        from sae_lens_sparsemax.models.hooked_vit import HookedViT

        return HookedViT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
