"""K-sparse probing: how well a few concepts, chosen by the training texts, tell two classes of text apart.

As the package sae-probes (github.com/sae-probes/sae-probes, its setting "normal"; Kantamneni et al., 2025, "Are Sparse
Autoencoders Useful? A Case Study in Sparse Probing", arXiv 2502.16681) does it:

1. A text is what the SAE makes of its last token; `mean` averages over its tokens instead.
2. Both classes have as many texts, min(n - 100, 1024) are trained on and the others tested; of fewer than 200, half.
3. Concepts are ranked on the training texts by |mean in one class - mean in the other|, each concept's activations
   divided by their mean where it is active.
4. Logistic regression on the first k, its inputs not standardised, C of ten values from 1e5 to 1e-5 by the AUC on the
   last min(20 %, 100) training texts, of fewer than 128 by 6 folds; then trained on all of them.
5. Accuracy, AUC and F1 (mean over both classes by their size) on the test texts, beside logistic regression on the
   activations that the SAE reads, and beside always answering one class.

The penalty is L2 for all (sae-probes offers L1 and L2 for concepts, and has L2 for the raw activations): it has one
minimum, which Newton's method finds in a few steps, so that no machine learning library is needed for it. sae-probes
also reads the last token if it is one that the SAE was trained without; here the last that the SAE reads stands for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from torch.nn.functional import softplus
from tqdm.auto import tqdm

from sae_lens_sparsemax.models.at_hook import TextAtHook
from sae_lens_sparsemax.models.encoding import encode_chunks

Pooling = Literal["last", "mean"]

KS = (1, 2, 5, 16)
"""Numbers of concepts."""

MIN_TEXTS = 20
"""Fewest texts of each class that are probed."""

_N_TRAIN, _N_TEST = 1024, 100
_CS = torch.logspace(-5, 5, 10, dtype=torch.float64).tolist()
_N_FOLDS = 6


class PooledTexts(NamedTuple):
    """What a model and an SAE make of some texts."""

    inputs: torch.Tensor
    """What the SAE reads of each text, shape (texts, d_in); zero where it reads nothing."""
    acts: torch.Tensor
    """Its activations, shape (texts, d_sae), sparse."""
    is_read: torch.Tensor
    """Whether the SAE reads any token of the text, shape (texts,)."""


@dataclass(frozen=True)
class ProbeScores:
    """How well a probe does on the test texts."""

    accuracy: float
    """Share of right answers."""
    auc: float
    """Area under the ROC curve."""
    f1: float
    """F1 of either class, averaged by their sizes."""


@dataclass(frozen=True)
class SparseProbe(ProbeScores):
    """A probe on a few concepts."""

    k: int
    """How many."""
    concepts: list[int]
    """Which, the best first."""


@dataclass(frozen=True)
class ProbedTask:
    """All probes of one task."""

    task: str
    """What is told apart."""
    n_train: int
    """Texts to train on, half of them of each class."""
    n_test: int
    """Texts to test on, half of them of each class."""
    majority: ProbeScores
    """Always the same answer."""
    raw: ProbeScores
    """A probe on what the SAE reads."""
    sparse: list[SparseProbe]
    """Probes on concepts, for each k."""


def pool_texts(
    at_hook: TextAtHook,
    contexts: Sequence[torch.Tensor],
    pooling: Pooling,
    batch_size: int,
    description: str | None = None,
) -> PooledTexts:
    """Run a model and its SAE over texts, each a context of its own, only over the positions that the SAE reads.

    Args:
        at_hook: the model and the SAE.
        contexts: token ids of each text, of any lengths.
        pooling: which of the tokens that the SAE reads are averaged: the last one, or all.
        batch_size: texts at a time; those of a length run together, so that nothing is padded.
        description: of a progress bar; without, none is shown.
    """
    sae, n = at_hook.sae, len(contexts)
    inputs, counts = torch.zeros(n, sae.cfg.d_in), torch.zeros(n)
    entries: list[tuple[torch.Tensor, torch.Tensor]] = []
    batches: list[list[int]] = []
    for length, same in groupby(sorted(range(n), key=lambda i: len(contexts[i])), key=lambda i: len(contexts[i])):
        numbers = list(same)
        batches += [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)] if length else []
    for numbers in tqdm(batches, desc=description, disable=description is None, leave=False):
        tokens = torch.stack([contexts[i] for i in numbers]).to(at_hook.device)
        acts = at_hook.activations(tokens)
        read = at_hook.is_read(tokens, acts).to(acts.device)
        if pooling == "last":
            read &= read.flip(1).cumsum(1).flip(1) == 1
        text = torch.tensor(numbers)[read.nonzero()[:, 0].cpu()]
        counts += torch.bincount(text, minlength=n)
        done = 0
        for chunk in encode_chunks(sae, [acts[read]]):
            owner = text[done : done + chunk.acts.n_rows]
            inputs.index_add_(0, owner, chunk.sae_in.float().cpu())
            entries.append((torch.stack([owner[chunk.acts.row.cpu()], chunk.acts.col.cpu()]), chunk.acts.value.cpu()))
            done += chunk.acts.n_rows
    indices = torch.cat([each[0] for each in entries], 1) if entries else torch.zeros(2, 0, dtype=torch.int64)
    values = torch.cat([each[1].float() for each in entries]) if entries else torch.zeros(0)
    divisor = counts.clamp(min=1)
    values, shape = values / divisor[indices[0]], (n, sae.cfg.d_sae)
    sparse = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
    return PooledTexts(inputs / divisor[:, None], sparse.coalesce(), counts > 0)


def joined(texts: Iterable[PooledTexts]) -> PooledTexts:
    """Several sets of texts as one."""
    return PooledTexts(*(torch.cat(parts) for parts in zip(*texts, strict=True)))


def probe(
    task: str, texts: PooledTexts, labels: torch.Tensor, ks: Sequence[int] = KS, raw: ProbeScores | None = None
) -> ProbedTask | None:
    """Train and test the probes of one task.

    Args:
        task: what to call it.
        texts: as `pool_texts` gives them.
        labels: 1 and 0 for the two classes, -1 for texts of neither, shape (texts,).
        ks: numbers of concepts; all of them where the SAE has fewer.
        raw: the scores on what the SAE reads, where they are known: no SAE changes them.

    Returns:
        The scores; None if a class has fewer than `MIN_TEXTS` texts of which the SAE reads something.
    """
    train, test = _split(labels.masked_fill(~texts.is_read, -1))
    if not len(test):
        return None
    order = _ranked(texts.acts, train, labels)
    y_train, y_test = labels[train].double(), labels[test] == 1

    def scores(inputs: torch.Tensor) -> ProbeScores:
        return _scores(_answers(inputs[train].double(), y_train, inputs[test].double()), y_test)

    sparse = []
    for k in ks:
        concepts = order[:k]
        found = scores(texts.acts.index_select(1, concepts).to_dense())
        sparse.append(SparseProbe(found.accuracy, found.auc, found.f1, k, concepts.tolist()))
    majority = _scores(torch.zeros(len(test)), y_test)
    return ProbedTask(task, len(train), len(test), majority, raw or scores(texts.inputs), sparse)


def _split(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts to train on and to test on, always the same, in pairs of one of each class; empty if there are too few."""
    generator = torch.Generator().manual_seed(0)
    classes = [(labels == label).nonzero()[:, 0] for label in (1, 0)]
    n = min(map(len, classes))
    if n < MIN_TEXTS:
        return labels[:0], labels[:0]
    pairs = torch.stack([each[torch.randperm(len(each), generator=generator)[:n]] for each in classes], 1)
    n_train = min(_N_TRAIN // 2, max(n - _N_TEST // 2, n // 2))
    return pairs[:n_train].flatten(), pairs[n_train:].flatten()


def _ranked(acts: torch.Tensor, train: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """All concepts, those first whose relative activations differ most between the classes; shape (d_sae,)."""
    row, concept = (here := acts.index_select(0, train).coalesce()).indices()
    size, sign = here.values().double(), (2 * labels[train] - 1)[row]
    zeros = torch.zeros(acts.shape[1], dtype=torch.float64)
    difference = zeros.index_add(0, concept, size * sign).abs()  # the classes are of one size
    mean_where_active = zeros.index_add(0, concept, size.abs()) / torch.bincount(concept, minlength=len(zeros))
    return (difference / mean_where_active).nan_to_num(0).argsort(descending=True, stable=True)


def _answers(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """Log odds of the test texts, shape (texts,), by logistic regression at the best C."""
    scale = train.square().mean().sqrt().clamp(min=1e-30)
    train, test = train / scale, test / scale
    n, width = train.shape
    if width > n:  # the weights are combinations of the training texts
        basis = torch.linalg.qr(train.T)[0]
        train, test = train @ basis, test @ basis
    pair = torch.arange(n) // 2
    held_out = [pair % _N_FOLDS == fold for fold in range(_N_FOLDS)]
    if n >= 128:
        held_out = [torch.arange(n) >= n - min(n // 5, 100)]
    cs = [c * scale.item() ** 2 for c in _CS]  # of the inputs as they were
    auc = torch.zeros(len(cs), dtype=torch.float64)
    for out in held_out:
        weights = None
        for i, c in enumerate(cs):
            weights = _fit(train[~out], labels[~out], c, weights)
            auc[i] += _auc(_with_one(train[out]) @ weights, labels[out] == 1)
    best = max(range(len(cs)), key=lambda i: (auc[i].item(), i))
    return _with_one(test) @ _fit(train, labels, cs[best])


def _fit(inputs: torch.Tensor, labels: torch.Tensor, c: float, start: torch.Tensor | None = None) -> torch.Tensor:
    """Weights, the intercept last, of the least Σ log loss + ‖weights without intercept‖² / 2C, by Newton's method.

    Args:
        inputs: shape (texts, width), float64.
        labels: 0 or 1, shape (texts,), float64.
        c: inverse strength of the penalty.
        start: weights to begin with.
    """
    x = _with_one(inputs)
    penalty = torch.full((x.shape[1],), 1 / c, dtype=x.dtype)
    penalty[-1] = 0

    def loss(weights: torch.Tensor) -> torch.Tensor:
        odds = x @ weights
        return softplus(odds).sum() - labels @ odds + penalty @ weights.square() / 2

    weights = x.new_zeros(x.shape[1]) if start is None else start
    for _ in range(100):
        p = (x @ weights).sigmoid()
        gradient = x.T @ (p - labels) + penalty * weights
        hessian = x.T @ (x * (p * (1 - p))[:, None])
        # Concepts that are never active have no curvature; a little of it does not move the minimum.
        hessian.diagonal().add_(penalty + 1e-10 * hessian.diagonal().mean() + 1e-12)
        step = torch.linalg.solve(hessian, gradient)
        decrease, now, length = gradient @ step, loss(weights), 1.0
        if not decrease > 1e-6:
            break
        while loss(weights - length * step) > now - 1e-4 * length * decrease and length > 1e-9:
            length /= 2
        weights = weights - length * step
    return weights


def _with_one(inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)


def _scores(odds: torch.Tensor, labels: torch.Tensor) -> ProbeScores:
    answers = odds > 0
    right = answers == labels
    f1 = 0.0
    for label in (True, False):
        here = labels == label
        hits = (right & here).sum().item()
        f1 += here.double().mean().item() * 2 * hits / max(1, here.sum().item() + (answers == label).sum().item())
    return ProbeScores(right.double().mean().item(), _auc(odds, labels), f1)


def _auc(odds: torch.Tensor, labels: torch.Tensor) -> float:
    """Chance that a text of the class has higher odds than one of the other, ties half; the area under the ROC."""
    one, other = odds[labels][:, None], odds[~labels]
    return ((one > other).double().mean() + (one == other).double().mean() / 2).item()
