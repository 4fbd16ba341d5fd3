"""
The vision suite: reconstruction and geometry, sparsity, monosemanticity, zero-shot classification, names.

Tables 5 and 6 of the sparsemax paper, and the protocol of Figure 3 and of Tables 3, 4 and 7 to 17. Here is what
is measured on what; `vision_metrics` measures it.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from sae_lens import SAE

from sae_lens_sparsemax.evaluation.suite.groups import MetricGroup
from sae_lens_sparsemax.evaluation.suite.vision_metrics import VisionMetrics
from sae_lens_sparsemax.evaluation.suite.vision_settings import VisionSuiteSettings
from sae_lens_sparsemax.files import file_facts

# Settings that change the result of each group, besides the model and the images.
_OWN_SETTINGS: dict[str, tuple[str, ...]] = {
    "tokens": (),
    "images": (),
    "sparsity": (),
    "monosemanticity": ("encoder",),
    "zero_shot": (
        "counting_data", "n_counting_images", "classes", "class_names", "templates", "n_concepts", "controls",
        "threshold", "threshold_quantile", "min_plain_accuracy", "seed",
    ),
    "names": ("classes", "class_names", "templates"),
}  # fmt: skip


def vision_groups(sae: SAE[Any], settings: VisionSuiteSettings, progress: bool = True) -> list[MetricGroup]:
    """
    The groups `tokens`, `images`, `sparsity`, `monosemanticity`, `zero_shot` and `names`.

    Model and images are loaded when the first group that is not finished asks for them.
    """
    assert settings.model and settings.data
    metrics = VisionMetrics(sae, settings, progress)
    on = {key: getattr(settings, key) for key in ("model", "hook_name", "tokens", "n_images")}
    paths = [settings.model, settings.data.path, settings.encoder]
    paths.append(settings.counting_data.path if settings.counting_data else None)
    on |= {"data": asdict(settings.data), "files": file_facts(paths)}
    plain = asdict(settings)
    compute = {
        "tokens": partial(metrics.geometry, "token"),
        "images": partial(metrics.geometry, "image"),
        "sparsity": metrics.sparsity,
        "monosemanticity": metrics.monosemanticity,
        "zero_shot": metrics.zero_shot,
        "names": metrics.names,
    }
    return [
        MetricGroup(name, on | {key: plain[key] for key in keys}, compute[name]) for name, keys in _OWN_SETTINGS.items()
    ]
