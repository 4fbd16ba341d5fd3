"""Several looks at one dictionary: passes that select what explains the residual, refinements that weigh it again.

The first pass reads x, centred. Every later look reads the residual r = x − Σ f W_dec in the same way: a query r/‖r‖
(or r itself), turned by a map of its own, W_pass, scored against the same keys; ‖r‖ multiplies what it finds. A pass
selects by the same gate, so one gate scale serves all of them, and activations of a concept that several find add up. A
refinement selects nothing: it scores the concepts found so far, and no others, so that their activations fit together.

What is weak in the end is often noise: an activation that does not exceed its concept's threshold is dropped. In
training the threshold is a share of the mean activation of the concept, a running mean, so it needs no scale.

The reconstruction stays linear in the activations that come out, which hooks and steering rely on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from sae_lens_sparsemax.attention.cross_attention import attend, attend_on, watched, weigh
from sae_lens_sparsemax.attention.rows import row_counts
from sae_lens_sparsemax.attention.screening import Screen
from sae_lens_sparsemax.attention.shards import ConceptShard
from sae_lens_sparsemax.attention.sparse import added, coo, entries, scale_columns, scale_rows, spread
from sae_lens_sparsemax.attention.traceable import full_precision
from sae_lens_sparsemax.sae.config import SparsemaxSAEConfig, SparsemaxTrainingSAEConfig, gate_of
from sae_lens_sparsemax.sae.encoding import dense_scores, gate_scores
from sae_lens_sparsemax.sae.queries import split_norm
from sae_lens_sparsemax.sae.thresholds import above

# A residual of less than this share of ‖x‖ is rounding, and has nothing to be explained.
EXPLAINED = {torch.float32: 2.0**-16, torch.float64: 2.0**-40}
# Adam moves every entry of a d × d map by the learning rate, so that at good rates for concepts the maps of later
# passes ran away (SmolLM2, 4e-3, from step 400 on); a tenth of it was stable and explained more than no map at all.
TURN_SCALE = 0.1


class Maps(NamedTuple):
    """What lies between an SAE's input and its reconstruction.

    project: queries (..., d), and a turn of them (d, d), to what the keys are multiplied with.
    keys: (M, d). values: (M, d). bias: (M,) or None.
    write: Σ f·value (..., d) to the reconstruction, less b_dec. W_pass: (looks after the first, d, d) or None.
    threshold: (M,) what activations must exceed in the end, or None. shard: where keys, values, bias and threshold are
    those of a rank's own concepts: M of them, the others on other ranks.
    output_scale: (M,) what activations are multiplied with before values are, or None.
    """

    project: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    keys: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None
    write: Callable[[torch.Tensor], torch.Tensor]
    W_pass: torch.Tensor | Sequence[torch.Tensor] | None
    threshold: torch.Tensor | None
    shard: ConceptShard | None = None
    output_scale: torch.Tensor | None = None

    @property
    def unscaled_values(self) -> torch.Tensor | None:
        """The values where attention may weigh them itself, by activations that nothing scales."""
        return self.values if self.output_scale is None else None

    def weighed(self, acts: torch.Tensor) -> torch.Tensor:
        """(N, d) Σ f·value of (N, M) activations, sparse COO or dense, that were not scaled yet."""
        return weigh(scale_columns(acts, self.output_scale), self.values)


class Reading(NamedTuple):
    """What an SAE reads from N inputs; over shards, what it reads from the inputs of all ranks at the own concepts.

    acts: (N, M) activations, sparse COO (coalesced) or dense, as supports are. context: (N, d) Σ f·value, or None; of
    own inputs, over all concepts.
    scores: (N, M) the scores of the first pass on its support (dense: all), without gradient.
    counts: (N,) concepts per input, each once. pass_counts: (N,) of every pass. tau: of the first pass; all ranks ask
    together. score_std: of the first pass.
    found: (N, M) what every pass found. selected: (N, M) acts before what is weak was dropped.
    """

    acts: torch.Tensor
    found: list[torch.Tensor]
    selected: torch.Tensor
    context: torch.Tensor | None
    scores: torch.Tensor
    counts: torch.Tensor
    pass_counts: list[torch.Tensor]
    tau: Callable[[], torch.Tensor]
    score_std: torch.Tensor


def no_turns(
    cfg: SparsemaxSAEConfig | SparsemaxTrainingSAEConfig, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """(looks after the first, d, d) zeros, of which `pass_maps` makes identities; None where one look is all."""
    further = cfg.passes - 1 + cfg.refinements
    return torch.zeros(further, cfg.d_in, cfg.d_in, dtype=dtype, device=device) if further else None


def pass_maps(turns: torch.Tensor, map_lr_scale: float) -> torch.Tensor:
    """(looks after the first, d, d) W_pass: the identity and a share of the turns that training learns."""
    identity = torch.eye(turns.shape[-1], dtype=turns.dtype, device=turns.device)
    return identity + TURN_SCALE * map_lr_scale * turns


def read(
    sae_in: torch.Tensor,
    query: torch.Tensor,
    factor: torch.Tensor,
    maps: Maps,
    cfg: SparsemaxSAEConfig | SparsemaxTrainingSAEConfig,
    with_context: bool = True,
    **limits: Any,
) -> Reading:
    """All looks of an SAE, over lists of active concepts where supports are sparse.

    Args:
        sae_in: (N, d) centred inputs, float32 or float64; read where looks follow the first.
        query: (N, d) projected queries of the first pass, and factor: (N, 1) what multiplies their activations.
        with_context: whether Σ f·value is wanted.
        limits: `max_density` of `attend`.
    """
    gate, n_looks = gate_of(cfg), cfg.passes + cfg.refinements
    keys, values = watched(maps.keys, maps.values)
    # Picked one by one, each map's gradient would be as large as that of all.
    W_pass = None if maps.W_pass is None else tuple(maps.W_pass)
    maps = maps._replace(keys=keys, values=values, W_pass=W_pass)
    # What the last look adds is weighed with the rest where some of that is dropped.
    needed = n_looks if with_context and maps.threshold is None else n_looks - 1
    found, context, first = [], None, None
    screens: list[Screen] = []
    for look in range(cfg.passes):
        if context is not None:
            query, factor = _further_query(sae_in, context, maps, cfg, look)
        query, factor = _everyones(query, factor, maps.shard)
        values = maps.unscaled_values if look < needed else None
        attention = attend(query, maps.keys, values, maps.bias, shard=maps.shard, screens=screens, **gate, **limits)
        first = first or attention
        found.append(_without_explained(scale_rows(attention.acts, factor), factor))
        if look < needed:
            more = maps.weighed(found[-1]) if attention.context is None else attention.context * factor
            context = _own(more, maps.shard) + (0 if context is None else context)
    assert first is not None
    screens.clear()
    acts = found[0] if len(found) == 1 else added(found)
    for look in range(cfg.passes, n_looks):
        assert context is not None
        query, factor = _further_query(sae_in, context, maps, cfg, look)
        query, factor = _everyones(query, factor, maps.shard)
        acts, more = _refine(acts, query, factor, maps, look < needed)
        context = None if more is None else context + _own(more, maps.shard)
    selected, acts = acts, above(acts, maps.threshold)
    if with_context and maps.threshold is not None:
        context = _own(maps.weighed(acts), maps.shard)
    pass_counts = [_counts(each) for each in found]
    counts = pass_counts[0] if acts is found[0] else _counts(acts)
    if maps.shard is not None:
        counts, *pass_counts = maps.shard.total(torch.stack([counts, *pass_counts]))
    acts = scale_columns(acts, maps.output_scale)
    return Reading(acts, found, selected, context, first.scores, counts, pass_counts, first.tau, first.score_std)


@torch.no_grad()
def dense_activations(
    sae_in: torch.Tensor,
    query: torch.Tensor,
    factor: torch.Tensor,
    maps: Maps,
    cfg: SparsemaxSAEConfig | SparsemaxTrainingSAEConfig,
) -> torch.Tensor:
    """(..., M) dense activations without a second matrix of that size or a gradient; arguments as for `read`."""
    acts = _read_lists(sae_in, query, factor, maps, cfg).acts
    return acts.to_dense().reshape(*query.shape[:-1], maps.keys.shape[0])


@torch.no_grad()
def first_passes(
    sae_in: torch.Tensor,
    query: torch.Tensor,
    factor: torch.Tensor,
    maps: Maps,
    cfg: SparsemaxSAEConfig | SparsemaxTrainingSAEConfig,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(..., M) sparse COO: the pass, counted from 1, that first selected each concept that is active in the end.

    Args:
        sae_in, query, factor: as for `read`, with any dimensions before the last.
        dtype: of the activations; those that are zero in it are left out.
    """
    reading = _read_lists(sae_in, query, factor, maps, cfg)
    row, col = reading.acts.indices()[:, reading.acts.values().to(dtype) != 0]
    n_concepts, shape = maps.keys.shape[0], query.shape[:-1]
    first = torch.ones_like(row)
    selected = torch.zeros_like(row, dtype=torch.bool)
    for found in reading.found:
        there, concept = found.indices()
        selected |= torch.isin(row * n_concepts + col, there * n_concepts + concept)
        first += ~selected
    index = torch.stack([*torch.unravel_index(row, shape), col])
    return torch.sparse_coo_tensor(index, first, (*shape, n_concepts), is_coalesced=True, check_invariants=False)


def observed_activations(
    sae_in: torch.Tensor,
    factor: torch.Tensor,
    hidden_pre: torch.Tensor,
    maps: Maps,
    cfg: SparsemaxSAEConfig | SparsemaxTrainingSAEConfig,
) -> torch.Tensor:
    """(..., M) dense activations before what is weak is dropped, differentiable in any mode.

    Args:
        sae_in: (..., d) centred inputs. factor: (..., 1).
        hidden_pre: (..., M) scores of the first pass, which a hook may have changed.
    """
    acts = gate_scores(hidden_pre, cfg.gate, **gate_of(cfg)) * factor
    for look in range(1, cfg.passes + cfg.refinements):
        query, factor = _further_query(sae_in, maps.weighed(acts), maps, cfg, look)
        scores = dense_scores(query, maps.keys.T, maps.bias)
        if look < cfg.passes:
            more = gate_scores(scores, cfg.gate, **gate_of(cfg))
        else:
            more = torch.where(acts != 0, scores, torch.zeros_like(scores))
        acts = acts + more * factor
    return acts


def kept(selected: torch.Tensor, maps: Maps) -> torch.Tensor:
    """Activations as they come out of an SAE, of `observed_activations`: without the weak ones, and scaled."""
    return scale_columns(above(selected, maps.threshold), maps.output_scale)


def _read_lists(
    sae_in: torch.Tensor,
    query: torch.Tensor,
    factor: torch.Tensor,
    maps: Maps,
    cfg: SparsemaxSAEConfig | SparsemaxTrainingSAEConfig,
) -> Reading:
    """`read` without context for (..., d), where every support is a list, since any density may be one."""
    x, q, norm = (each.reshape(-1, each.shape[-1]) for each in (sae_in, query, factor))
    return read(x, q, norm, maps, cfg, with_context=False, max_density=1.0)


def _further_query(
    sae_in: torch.Tensor,
    context: torch.Tensor,
    maps: Maps,
    cfg: SparsemaxSAEConfig | SparsemaxTrainingSAEConfig,
    look: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., d) projected queries of the residual and (..., 1) what multiplies their activations, 0 where it is none."""
    assert maps.W_pass is not None
    with full_precision(sae_in):
        residual = sae_in - maps.write(context)
        query, factor = split_norm(residual, cfg.unit_norm_query)
        largest, least = (each.detach().abs().amax(-1, keepdim=True) for each in (sae_in, residual))
        factor = torch.where(least > EXPLAINED[sae_in.dtype] * largest, factor, torch.zeros_like(factor))
        return maps.project(query, maps.W_pass[look - 1].to(query.dtype)), factor


def _everyones(
    query: torch.Tensor, factor: torch.Tensor, shard: ConceptShard | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and factors of all ranks, as each scores them against its own concepts."""
    if shard is None:
        return query, factor
    both = shard.gather(torch.cat([query, factor], -1))
    return both[:, :-1].contiguous(), both[:, -1:]


def _own(context: torch.Tensor, shard: ConceptShard | None) -> torch.Tensor:
    """What all ranks together give for own inputs, of each one's (N, d) summand for everybody's."""
    return context if shard is None else shard.scatter(context)


def _refine(
    acts: torch.Tensor, query: torch.Tensor, factor: torch.Tensor, maps: Maps, with_context: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Activations with the scores of the concepts that are active added, and what that adds to the context."""
    context = None
    if acts.is_sparse:
        index, shape = acts.indices(), (acts.shape[0], acts.shape[1])
        values = maps.unscaled_values if with_context else None
        scores, context = attend_on(query, maps.keys, values, maps.bias, index[0], index[1])
        scores = scores * spread(factor, index[0])
        more, acts = coo(index, scores, shape), coo(index, acts.values() + scores, shape)
        context = None if context is None else context * factor
    else:
        scores = dense_scores(query, maps.keys.T, maps.bias) * factor
        more = torch.where(acts != 0, scores, torch.zeros_like(scores))
        acts = acts + more
    return acts, maps.weighed(more) if with_context and context is None else context


def _without_explained(acts: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Sparse activations without the entries of rows that have nothing to be explained (x = 0 ties everything)."""
    if not acts.is_sparse or not factor.numel() or factor.detach().min().item() > 0:
        return acts
    return entries(acts, factor.squeeze(-1)[acts.indices()[0]] > 0)


def _counts(acts: torch.Tensor) -> torch.Tensor:
    if acts.is_sparse:
        return row_counts(acts.indices()[0], len(acts))
    return acts.detach().count_nonzero(-1)
