"""The one pass over the data: samples through model and SAE into statistics, saved so that a killed run goes on."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.order import of_part
from sae_lens_sparsemax.explore.samples import EncodedBatch, SampleBatch, SampleStream, encode_batch
from sae_lens_sparsemax.explore.statistics import ConceptStatistics
from sae_lens_sparsemax.files import read_tensors, save_tensors
from sae_lens_sparsemax.models.encoding import has_passes

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_SAVES = 60.0
_VERSION = "3"

_Found = tuple[SampleBatch, EncodedBatch, int]
"""A batch without its activations, what an SAE makes of it, and the number of the sample after it."""


@torch.no_grad()
def gather(
    sae: SAE[Any],
    stream: SampleStream,
    *,
    n_examples: int,
    n_showcase: int,
    n_drawn: int = 0,
    state_file: Path | None = None,
    seconds_between_saves: float = _SECONDS_BETWEEN_SAVES,
    progress: bool = True,
    part: tuple[int, int] = (0, 1),
    share: Callable[[Any], list[Any]] = lambda own: [own],
) -> ConceptStatistics | None:
    """Read the whole stream once; of several processes each a part, which the first one puts together in its order.

    Args:
        sae: Any SAELens SAE.
        stream: Samples with their activations.
        n_examples: Examples to keep of each concept.
        n_showcase: Samples of which to keep every activation.
        n_drawn: Examples to draw of each concept from all samples on which it is active.
        state_file: Where to save what has been gathered, every so often. If it holds what an earlier run over the
            same data with the same SAE has gathered, reading goes on there. None saves nothing.
        seconds_between_saves: How often.
        progress: Whether to show a progress bar.
        part: Which of how many processes this is; they all call this with the same stream.
        share: Gives what all of them have beside one's own, in their order.

    Returns:
        What one process would have gathered, and None on every process but the first.

    Raises:
        ValueError: If there is no sample.
    """
    if part[0] > 0:
        start = share(None)[0]
        for _ in _in_order(_encoded(sae, stream, start, part), start, stream.batch_size, part, share):
            pass
        return None
    statistics = ConceptStatistics(stream, sae.cfg.d_sae, n_examples, n_showcase, n_drawn, has_passes(sae))
    fingerprint = _fingerprint(sae, stream, n_examples, n_showcase, n_drawn)
    if state_file is not None and load_state(statistics, state_file, fingerprint):
        logger.info("Going on after sample %d of %d, from %s.", statistics.position, stream.n_samples, state_file)

    def save() -> None:
        if state_file is not None:
            save_state(statistics, state_file, fingerprint)

    unit = "image" if stream.kind == "image" else "context"
    bar = tqdm(total=stream.n_samples, initial=statistics.position, desc="Reading", unit=unit, disable=not progress)
    saved_at = time.monotonic()
    start = share(statistics.position)[0]
    own = _encoded(sae, stream, start, part)
    try:
        for batch, encoded, position in _in_order(own, start, stream.batch_size, part, share):
            statistics.add(batch, encoded)
            bar.update(position - statistics.position)
            statistics.position = position
            if time.monotonic() - saved_at > seconds_between_saves:
                save()
                saved_at = time.monotonic()
    finally:
        bar.close()
    if statistics.n_tokens == 0:
        raise ValueError("The data set gave no sample to explore the SAE on.")
    save()
    return statistics


def _encoded(sae: SAE[Any], stream: SampleStream, start: int, part: tuple[int, int]) -> Iterator[_Found]:
    """This process's batches from a sample on, and what the SAE makes of them."""
    for batch, position in stream.batches(start, of_part(part, start, stream.batch_size)):
        yield batch._replace(acts=batch.acts[:0], keep=None), encode_batch(sae, batch), position


def _in_order(
    own: Iterator[_Found], start: int, batch_size: int, part: tuple[int, int], share: Callable[[Any], list[Any]]
) -> Iterator[_Found]:
    """The batches of all processes from a sample on, in the order of the stream."""
    end, ahead, is_over = start, None, False
    while not is_over:
        end += part[1] * batch_size
        ahead = ahead or next(own, None)
        # A batch without a sample that can be used is left out, and its process has a later one already.
        now, ahead = (ahead, None) if ahead is not None and ahead[2] <= end else (None, ahead)
        found = share((now, now is None and ahead is None))
        is_over = all(over for _, over in found)
        yield from (batch for batch, _ in found if batch is not None)


def _fingerprint(sae: SAE[Any], stream: SampleStream, *kept: int) -> str:
    """Changes with the SAE's weights and settings, with what is read, and with what is kept of it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        # Sums in float64 tell weights apart at a thousandth of the cost of hashing, in one order, however they lie.
        weights = tensor.contiguous().double()
        digest.update(f"{name} {tuple(tensor.shape)} {weights.sum().item()!r} {weights.norm().item()!r}".encode())
    # Some settings have no weights: the k of a TopK, or how many of the passes only refine. Metadata are the stream's.
    settings = {name: value for name, value in sae.cfg.to_dict().items() if name not in ("metadata", "device")}
    values = [settings, stream.identity(), stream.n_samples, stream.n_tokens, stream.d_embedding, *kept]
    digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def state_of(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors and numbers in an object's attributes, and in those of objects in them, by dotted name."""
    state: dict[str, torch.Tensor] = {}
    for name, attribute in vars(value).items():
        if isinstance(attribute, torch.Tensor):
            state[prefix + name] = attribute
        elif isinstance(attribute, int | float):
            dtype = torch.float64 if isinstance(attribute, float) else torch.int64
            state[prefix + name] = torch.tensor(attribute, dtype=dtype)
        elif hasattr(attribute, "__dict__"):
            state |= state_of(attribute, f"{prefix}{name}.")
    return state


def set_state(value: Any, state: dict[str, torch.Tensor]) -> None:
    """Give an object back what `state_of` took from one made in the same way."""
    for dotted, tensor in state.items():
        *path, name = dotted.split(".")
        owner = value
        for part in path:
            owner = getattr(owner, part)
        is_number = isinstance(getattr(owner, name), int | float)
        setattr(owner, name, tensor.item() if is_number else tensor)


def save_state(value: Any, path: Path, fingerprint: str) -> None:
    """Save an object's state in one step: a kill leaves the earlier file."""
    save_tensors(state_of(value), path, {"fingerprint": fingerprint, "version": _VERSION})


def load_state(value: Any, path: Path, fingerprint: str) -> bool:
    """Restore an object's state; False, and nothing changed, if there is none or it is of another run."""
    if not path.is_file():
        return False
    try:
        state, metadata = read_tensors(path, beside=("fingerprint", "version"))
    except ValueError as error:
        logger.warning("Reading begins anew: %s", error)
        return False
    if metadata != {"fingerprint": fingerprint, "version": _VERSION}:
        return False
    set_state(value, state)
    return True
