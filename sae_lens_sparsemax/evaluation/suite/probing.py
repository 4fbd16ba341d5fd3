"""What is probed: tasks from sets of text with classes, and tasks that plain sets of text give by themselves.

Of plain text the first half of each context is read; the tasks are what the other half holds, and of which set it is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from sae_lens_sparsemax.data.labelled_texts import LabelledText, load_labelled_texts
from sae_lens_sparsemax.evaluation.probing import MIN_TEXTS, PooledTexts, Pooling, joined, pool_texts, probe
from sae_lens_sparsemax.evaluation.suite.groups import NotMeasured
from sae_lens_sparsemax.models.at_hook import TextAtHook

logger = logging.getLogger(__name__)

_AHEAD = {"digit": re.compile(r"\d"), "question mark": re.compile(r"\?"), "quotation mark": re.compile('["“”]')}


class Task(NamedTuple):
    """Two classes of text to tell apart."""

    name: str
    """What is told apart."""
    texts: PooledTexts
    """The texts."""
    labels: torch.Tensor
    """1 and 0, -1 for texts of neither class, shape (texts,)."""


class Passages(NamedTuple):
    """The first halves of some contexts, and what follows them."""

    texts: PooledTexts
    """The first halves."""
    ahead: dict[str, torch.Tensor]
    """Whether the second halves hold something, 1 or 0, shape (texts,)."""


def read_passages(
    at_hook: TextAtHook, tokens: torch.Tensor, pooling: Pooling, batch_size: int, progress: bool
) -> Passages:
    """Run a model and its SAE over the first halves of contexts of shape (n, context)."""
    half = tokens.shape[1] // 2
    rest = [at_hook.model.tokenizer.decode(ids) for ids in tokens[:, half:].tolist()]
    ahead = {name: torch.tensor([int(bool(p.search(text))) for text in rest]) for name, p in _AHEAD.items()}
    texts = pool_texts(at_hook, list(tokens[:, :half]), pooling, batch_size, "Probing" if progress else None)
    return Passages(texts, ahead)


def passage_tasks(name: str, others: Sequence[str], passages: Callable[[str], Passages]) -> Iterator[Task]:
    """What is ahead in a set of text, and whether a passage is of that set or of another."""
    here = passages(name)
    for what, labels in here.ahead.items():
        yield Task(f"{what} ahead", here.texts, labels)
    for other in others:
        both = [here.texts, passages(other).texts]
        of_set = [torch.full((len(texts.is_read),), label) for texts, label in zip(both, (1, 0), strict=True)]
        yield Task(f"{name} or {other}", joined(both), torch.cat(of_set))


def labelled_tasks(
    at_hook: TextAtHook,
    data: LabelledText,
    *,
    n_texts: int,
    context_size: int,
    pooling: Pooling,
    batch_size: int,
    progress: bool,
) -> Iterator[Task]:
    """The two classes of a set, or each of more against the rest; of long texts, the last `context_size` tokens."""
    texts, classes = load_labelled_texts(data, n_texts)
    contexts = [at_hook.tokens(text) for text in texts]
    n_first = int(at_hook.prepends_bos and at_hook.model.tokenizer.bos_token_id is not None)
    contexts = [
        torch.cat([ids[:n_first], ids[len(ids) - context_size + n_first :]]) if len(ids) > context_size else ids
        for ids in contexts
    ]
    pooled = pool_texts(at_hook, contexts, pooling, batch_size, "Probing" if progress else None)
    if n_unread := int((~pooled.is_read).sum()):
        logger.warning("%d of %d texts of %r have no token that the SAE reads", n_unread, len(texts), data.path)
    names = sorted(set(classes))
    for name in names[1:] if len(names) == 2 else names:
        title = f"{name} or {names[0]}" if len(names) == 2 else f"{name} or another"
        yield Task(title, pooled, torch.tensor([int(each == name) for each in classes]))


def probed(tasks: Iterable[Task], ks: Sequence[int]) -> dict[str, Any]:
    """The probes of all tasks that have enough texts; of the others, the names.

    Raises:
        NotMeasured: no task has.
    """
    measured, too_few = [], []
    for task in tasks:
        found = probe(task.name, task.texts, task.labels, ks)
        if found is None:
            too_few.append(task.name)
        else:
            measured.append(found)
    if not measured:
        raise NotMeasured(f"no task has {MIN_TEXTS} texts of each class that the SAE reads: {', '.join(too_few)}")
    return {"probing": {"tasks": measured, "too_few_texts": too_few}}
