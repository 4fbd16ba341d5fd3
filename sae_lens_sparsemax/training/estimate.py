"""What a run over several ranks will need, from its configuration alone: memory, what travels between ranks, and time.

Sizes of tensors and collectives are those of the code; what is added up from them is an estimate. The time is that of
a model of one accelerator, `ACCELERATOR`, on which nothing was measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens.saes.sae import TrainingSAE
from sae_lens.util import str_to_dtype

from sae_lens_sparsemax.settings.sentences import must_be
from sae_lens_sparsemax.training.config import n_steps
from sae_lens_sparsemax.training.mesh import ParallelConfig, parallel_of, tokens_per_rank


class Accelerator(NamedTuple):
    """What a device and its links do in a second."""

    name: str
    flops: float
    """Multiplications and additions of float32 products."""
    flops_tf32: float
    """The same in TensorFloat-32."""
    memory: float
    """Bytes read or written."""
    link: float
    """Bytes received in a collective within a node."""
    link_of_nodes: float
    """Bytes received in a collective between nodes."""
    latency: float
    """Seconds that any collective takes."""


ACCELERATOR = Accelerator("H100 SXM", 45e12, 300e12, 2.7e12, 350e9, 45e9, 25e-6)
_DEVICES_OF_A_NODE = 8

# Numbers of `attention` and `sae`, which know nothing of this room and are not asked; `test_estimate.py` compares them.
# Scores that are held at a time on a device, in the block that a pass makes of them.
_SCORES_AT_A_TIME = 2**27
# Rounds in which a pass settles its supports over ranks, at most, by the bytes of a score.
_ROUNDS = {4: 11, 8: 22}
# Cuts whose costs one round sums.
_CUTS = 7
# Concepts that are folded at a time, in float64.
_CONCEPTS_FOLDED_AT_A_TIME = 2**15

# (n, d) tensors that each look keeps for its gradient, about.
_KEPT_PER_LOOK = 6


class Collective(NamedTuple):
    """One kind of message between ranks in a step."""

    what: str
    axis: str
    """Dimension of the mesh, or "all"."""
    calls: int
    n_bytes: int
    """What a rank receives in all calls, where they go around a ring."""


class Sizes(NamedTuple):
    """The numbers that everything follows from."""

    n: int
    """Tokens that a rank brings."""
    N: int
    """Tokens that it scores: those of all ranks that share the concepts."""
    m: int
    """Concepts that it holds, at most."""
    d: int
    looks: int
    passes: int
    element: int
    """Bytes of a number."""
    divided: int
    """Parameters of which a rank holds its concepts' part, there."""
    replicated: int
    """Parameters that every rank holds."""


def sizes(cfg: Any) -> Sizes:
    """Sizes of a run on text or images.

    Raises:
        ValueError: the width is left to the model.
    """
    sae, parallel = cfg.sae, parallel_of(cfg)
    if sae.d_in < 1:
        raise must_be("sae.d_in", "given for an estimate: the width of the activations at the hook", sae.d_in)
    meta = {**sae.to_dict(), "device": "meta"}
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in TrainingSAE.from_dict(meta).parameters()]
    m = -(-sae.d_sae // parallel.concepts)
    of_concepts = sum(shape.numel() for shape in shapes if sae.d_sae in shape)
    n = tokens_per_rank(cfg)
    return Sizes(
        n=n,
        N=n * parallel.concepts,
        m=m,
        d=sae.d_in,
        looks=getattr(sae, "passes", 1) + getattr(sae, "refinements", 0),
        passes=getattr(sae, "passes", 1),
        element=str_to_dtype(cfg.dtype).itemsize,
        divided=of_concepts // sae.d_sae * m,
        replicated=sum(shape.numel() for shape in shapes) - of_concepts,
    )


def memory(cfg: Any) -> dict[str, int]:
    """Bytes on each rank by what holds them, but for the model whose activations are trained on."""
    at = sizes(cfg)
    l0 = getattr(cfg.sae, "target_l0", None) or cfg.sae.d_sae / 100
    # An entry of a support: two indices, a value, and what its gradient needs.
    lists = int(at.N * l0 / parallel_of(cfg).concepts * at.passes * 40)
    per_context = cfg.n_batches_in_buffer * at.n
    if hasattr(cfg, "context_size"):
        per_context = cfg.n_batches_in_buffer * len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    copied = {"a checkpoint's copy, on the host": 3 * at.element * (at.divided + at.replicated)}
    return {
        "weights, gradients, Adam's averages": 4 * at.element * (at.divided + at.replicated),
        "statistics of all concepts": 9 * cfg.sae.d_sae,
        "tokens of a step": (_KEPT_PER_LOOK * at.looks * at.N * at.d) * max(4, at.element) + lists,
        "a block of scores": max(4, at.element) * min(_SCORES_AT_A_TIME, at.N * at.m),
        "the shuffle buffer": 2 * per_context * at.d * at.element,
    } | (copied if parallel_of(cfg).async_checkpoints else {})


def final_sae(cfg: Any) -> int:
    """Bytes on the first rank's host while the final SAE is assembled, folded and saved.

    SAELens reads one file of weights, and safetensors writes what is all there.
    """
    at = sizes(cfg)
    folded = cfg.sae.d_sae * at.d * at.element  # of the encoder, and of the decoder
    is_mlp = getattr(cfg.sae, "structure", None) == "mlp"  # whose decoder is saved as it is
    block = 0 if is_mlp else 8 * at.d * 3 * min(cfg.sae.d_sae, _CONCEPTS_FOLDED_AT_A_TIME)
    return _whole(cfg) + folded * (1 if is_mlp else 2) + block


def _whole(cfg: Any) -> int:
    at = sizes(cfg)
    return at.element * (cfg.sae.d_sae * at.divided // at.m + at.replicated)


def require_room_for_final_sae(cfg: Any) -> None:
    """Raise a ValueError unless this machine, as the first rank's, has the memory that the final SAE takes.

    Where the width is left to the model, or the machine does not tell, nothing is refused.
    """
    there = available_memory()
    if cfg.output_path is None or cfg.sae.d_in < 1 or there is None or (needed := final_sae(cfg)) <= there:
        return
    at_most = f"at most about {cfg.sae.d_sae * there // needed:,}"
    why = f"whose final SAE the first rank can put together in the {_size(there)} of memory that is available to it"
    raise must_be("sae.d_sae", f"{at_most}, {why}", cfg.sae.d_sae)


def available_memory() -> int | None:
    """Bytes that new work can have on this machine, or of what its container may have; None where it is not told."""
    told = Path("/proc/meminfo")
    if not told.is_file():
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    of_container = limit.read_text().strip() if limit.is_file() else "max"
    (available,) = re.findall(r"MemAvailable:\s+(\d+) kB", told.read_text())
    return min(1024 * int(available), int(of_container) if of_container.isdecimal() else 2**63)


def collectives(cfg: Any) -> list[Collective]:
    """What travels in a step, but for single numbers."""
    at, parallel = sizes(cfg), parallel_of(cfg)
    found: list[Collective] = []

    def add(what: str, axis: str, calls: int, n_bytes: int, trips: int) -> None:
        """`n_bytes`: of the whole tensor of one call; `trips`: how often it goes around the ring."""
        size = getattr(parallel, axis, parallel.size)
        if size > 1 and calls:
            found.append(Collective(what, axis, calls, calls * n_bytes * trips * (size - 1) // size))

    wide = max(4, at.element)
    tokens, queries = wide * at.N * at.d, wide * at.N * (at.d + 1)
    add("all-gather of queries", "concepts", at.looks, queries, 1)
    add("all-reduce of the largest and least scores", "concepts", at.passes, 16 * at.N, 2)
    rounds = _ROUNDS[max(4, at.element)] * at.passes
    add(f"all-reduce of the costs of {_CUTS} cuts", "concepts", rounds, 8 * _CUTS * at.N, 2)
    add("reduce-scatter of contexts", "concepts", at.looks, tokens, 1)
    add("all-reduce of counts", "concepts", 1, 8 * (1 + at.passes) * at.N, 2)
    add("backwards, all-gather of contexts", "concepts", at.looks, tokens, 1)
    add("backwards, reduce-scatter of queries", "concepts", at.looks, queries, 1)
    add("all-reduce of the concepts' gradient", "data", 1, at.element * at.divided, 2)
    if getattr(cfg.sae, "activation_floor", 0) and cfg.sae.floor_of == "concept":
        add("all-reduce of mean activations", "data", 1, 8 * at.m, 2)
    add("all-reduce of the other gradients", "all", 1, at.element * at.replicated, 2)
    return found


def seconds(cfg: Any, flops: float) -> float:
    """The estimated time of a step on `ACCELERATOR`, at so many float32 products a second."""
    at = sizes(cfg)
    sent = collectives(cfg)
    l0 = getattr(cfg.sae, "target_l0", None) or 0
    scores = at.passes * (2 * at.N * at.m * at.d / flops + 8 * at.N * at.m / ACCELERATOR.memory)
    lists = at.looks * 20 * at.n * l0 * at.d / ACCELERATOR.memory
    adam = 9 * at.element * (at.divided + at.replicated) / ACCELERATOR.memory
    travel = sum(each.n_bytes / _link(parallel_of(cfg), each.axis) + each.calls * ACCELERATOR.latency for each in sent)
    return scores + lists + adam + travel


def _link(parallel: ParallelConfig, axis: str) -> float:
    size = parallel.concepts if axis == "concepts" else parallel.size
    return ACCELERATOR.link if size <= _DEVICES_OF_A_NODE else ACCELERATOR.link_of_nodes


def described(cfg: Any) -> Iterator[str]:
    """Lines that tell the estimate to a reader."""
    parallel = parallel_of(cfg)
    yield f"Estimate for {parallel.size} ranks, data {parallel.data} × concepts {parallel.concepts}; not measured."
    try:
        held = memory(cfg)
    except ValueError as error:
        yield f"None can be made: {error}."
        return
    yield f"Memory of each rank, without the model: {_size(sum(held.values()))}"
    yield from (f"  {_size(n_bytes):>9}  {what}" for what, n_bytes in held.items())
    if getattr(cfg, "eval_dataset_path", None) or cfg.logger.log_to_wandb:
        yield f"  {_size(_whole(cfg)):>9}  while it is evaluated besides: all weights, whole"
    yield f"At the end, the first rank's host holds {_size(final_sae(cfg))} besides: all weights, whole and folded"
    sent = collectives(cfg)
    yield f"Each step, a rank receives {_size(sum(each.n_bytes for each in sent))}:"
    yield from (f"  {_size(each.n_bytes):>9}  {each.axis:<8}  {each.calls:>3} × {each.what}" for each in sent)
    times = [seconds(cfg, flops) for flops in (ACCELERATOR.flops, ACCELERATOR.flops_tf32)]
    steps = n_steps(cfg)
    yield (
        f"Time on {ACCELERATOR.name}, without the model: {1e3 * times[0]:.3g} ms a step, {1e3 * times[1]:.3g} with "
        f"TensorFloat-32; {steps * times[0] / 3600:.3g} and {steps * times[1] / 3600:.3g} hours for {steps:,} steps"
    )


def _size(n_bytes: int) -> str:
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= divisor:
            return f"{n_bytes / divisor:.3g} {unit}"
    return f"{n_bytes} B"
