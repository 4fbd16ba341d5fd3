"""The folder of pages: the pages themselves, what they say of each SAE, and the examples they can open."""

import html
import math
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from plotly.offline import get_plotlyjs

from sae_lens_sparsemax.evaluation.monosemanticity import MIN_IMAGES
from sae_lens_sparsemax.explore.pages.scripts import rounded, write_script
from sae_lens_sparsemax.explore.statistics import ConceptStatistics
from sae_lens_sparsemax.settings.values import expanded

MANIFEST = "explore"
"""The script with what all pages know, by which a folder is known to be one of these."""
PLOTLY = "plotly.min.js"
"""Loaded by pages with charts to zoom into, after all else; those of single concepts do without its megabytes."""
SHARED = ("charts", "levels", "pictures", "texts", "cards")
"""Scripts of all pages, and of the app, besides `base` and `core`."""
_PAGES = {
    "index": ("Concepts", ("plots", "notes", "search", "contexts", "table")),
    "map": ("Map", ("plots",)),
    "concept": ("Concept", ("notes",)),
    "example": ("Example", ()),
    "compare": ("Comparison", ("plots", "example")),
    "failures": ("Failure cases", ()),
}
_METRICS = ("l0", "l0_p5", "l0_p95", "explained_variance", "fvu_per_sample")
_BINS_PER_DECADE = 5
_MOST_BARS = 60
_SHOWN_SHARE = 0.995


def write_pages(folder: Path) -> None:
    """Write the pages, their style and their scripts, and the installed plotly's, so that they need no other place."""
    assets = resources.files("sae_lens_sparsemax.explore.pages") / "assets"
    template = (assets / "page.html").read_text(encoding="utf-8")
    (folder / "assets").mkdir()
    for asset in assets.iterdir():
        if asset.name.endswith((".js", ".css")):
            (folder / "assets" / asset.name).write_bytes(asset.read_bytes())
    (folder / "assets" / PLOTLY).write_text(get_plotlyjs(), encoding="utf-8")
    for page, (title, needs) in _PAGES.items():
        tags = "\n".join(f'<script src="assets/{name}.js"></script>' for name in (*SHARED, *needs, page))
        values = {"title": html.escape(title), "page": page, "scripts": tags}
        text = template
        for name, value in values.items():
            text = text.replace("{{" + name + "}}", value)
        (folder / f"{page}.html").write_text(text, encoding="utf-8")


def write_showcase(folder: Path, sae: int, statistics: ConceptStatistics) -> None:
    """Write data/SAE/example-ID.js for every sample that has a page: all its activations, token by token."""
    showcase = statistics.showcase
    for place, sample in enumerate(showcase.ids.tolist()):
        mine = showcase.place == place
        write_script(
            folder,
            f"{sae}/example-{sample}",
            {
                "tokens": showcase.token[mine].tolist(),
                "concepts": showcase.concept[mine].tolist(),
                "values": [rounded(value) for value in showcase.value[mine].tolist()],
            },
        )


def summary(name: str, architecture: str, described: dict[str, Any], statistics: ConceptStatistics) -> dict[str, Any]:
    """What the overview and the comparison say of an SAE."""
    metrics = statistics.reconstruction.result()
    frequency = statistics.frequency()
    classes, mono, later = statistics.classes, statistics.monosemanticity, statistics.n_later
    entropy = classes.entropy() if classes is not None else torch.zeros(0)
    # A concept on few images is on few classes, whatever it means.
    entropy = entropy[~entropy.isnan() & (statistics.n_active_samples >= MIN_IMAGES)] if len(entropy) else entropy
    return {
        "name": name,
        "architecture": architecture,
        **{key: short_path(value) for key, value in described.items()},
        "d_sae": statistics.d_sae,
        "n_tokens": statistics.n_tokens,
        "n_samples": statistics.n_samples,
        "n_dead": int((statistics.n_active == 0).sum()),
        **{key: rounded(getattr(metrics, key)) for key in _METRICS},
        "entropy": rounded(entropy.median().item()) if len(entropy) else None,
        "mono": rounded(mono.result().mean) if mono is not None else None,
        "later": None if later is None else rounded(later.sum().item() / max(1, int(statistics.n_active.sum()))),
        "density": density_histogram(frequency),
        "l0_histogram": l0_histogram(statistics.reconstruction.l0.counts),
    }


def short_path(value: Any) -> Any:
    """The last part of a local path, since where it lay is nobody else's business; other values as they are."""
    return Path(value).name if isinstance(value, str) and expanded(value).exists() else value


def density_histogram(frequency: torch.Tensor) -> dict[str, Any]:
    """Active concepts by the decimal logarithm of their frequency, in fifths of a decade."""
    place = (frequency[frequency > 0].log10() * _BINS_PER_DECADE).floor().long().clamp(max=-1)
    if not len(place):
        return {"low": -1, "width": 1 / _BINS_PER_DECADE, "counts": []}
    low = int(place.min())
    counts = torch.bincount(place - low, minlength=-low)
    return {"low": low / _BINS_PER_DECADE, "width": 1 / _BINS_PER_DECADE, "counts": counts.tolist()}


def l0_histogram(counts: torch.Tensor) -> dict[str, Any]:
    """Tokens by L0, from the number of tokens with each L0; neighbouring values together where there are many.

    A few tokens far out would squeeze all others into one bar: if leaving out at most one in 200 makes the axis half as
    long or shorter, those are only counted, as `beyond`, with the largest L0 as `highest`.
    """
    filled = counts.nonzero().flatten()
    low, high = int(filled[0]), int(filled[-1]) + 1
    most = int((counts.cumsum(0) >= _SHOWN_SHARE * counts.sum()).nonzero()[0]) + 1
    end = most if 2 * (most - low) <= high - low else high
    width = math.ceil((end - low) / _MOST_BARS)
    padded = torch.zeros(low + width * math.ceil((end - low) / width), dtype=counts.dtype)
    shown = counts[: len(padded)]
    padded[: len(shown)] = shown
    bars = {"low": low, "width": width, "counts": padded[low:].view(-1, width).sum(-1).tolist()}
    return bars if end == high else bars | {"beyond": int(counts[len(padded) :].sum()), "highest": high - 1}
