"""A training SAE over the ranks of a mesh (data × concepts): each brings its own tokens and holds some of the concepts.

Parameters are DTensors on one mesh, the dictionary's rows split over its second dimension and everything else
replicated, so that SAELens's optimizer, gradient clipping and torch's distributed checkpoints see the whole model. A
training pass runs on the local tensors; what crosses ranks within it is in `attention.shards`, and the gradients are
summed over ranks as they leave it. The loss is the mean over all tokens of all ranks, and so is every number reported.

But: all ranks call together, with equally many tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from sae_lens.saes.sae import TrainStepOutput
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from typing_extensions import Self

from sae_lens_sparsemax.attention.rows import coo
from sae_lens_sparsemax.attention.shards import Shard as ConceptShard
from sae_lens_sparsemax.attention.shards import all_gathered
from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig

DATA, CONCEPTS = "data", "concepts"
# Which dimension of these is the concepts'.
_CONCEPT_DIM = {
    "dictionary.concepts": 0,
    "dictionary.W_enc": 1,
    "dictionary.b_enc": 0,
    "dictionary.W_dec": 0,
    "mean_acts": 0,
}


class OverRanks(nn.Module):
    """What a training SAE has for runs over several ranks; on one process every method here does nothing."""

    cfg: SparsemaxTrainingSAEConfig
    mesh: DeviceMesh | None = None
    """Whose ranks hold the SAE together, or None for one process."""

    def shard(self, mesh: DeviceMesh) -> None:
        """Spread over the ranks of a mesh with the dimensions ("data", "concepts"), in place.

        The SAE is alike on all ranks before, and no optimizer has seen it. Each rank then trains on its own tokens;
        `feature_acts` of a step are those of its group's tokens at its own concepts, so that every pair of a token and
        a concept is some rank's.

        Raises:
            ValueError: the gate needs whole rows of scores.
        """
        if mesh.size(1) > 1 and self.cfg.gate != "sparsemax":
            raise ValueError(f"gate must be 'sparsemax' where ranks share the concepts, got {self.cfg.gate!r}")
        mesh._flatten()  # with which gradients are summed over all ranks at once
        buffers = dict(self.named_buffers())
        for name, tensor in [*self.named_parameters(), *buffers.items()]:
            if name in _CONCEPT_DIM or name not in buffers:
                self._replace(name, _distributed(tensor.data, mesh, _CONCEPT_DIM.get(name)))
        self.mesh = mesh

    @torch.no_grad()
    def unshard(self) -> None:
        """Make the SAE whole on every rank again, in place; all ranks together."""
        if self.mesh is not None:
            for name, tensor in self._whole_tensors().items():
                self._replace(name, tensor)
            self.mesh = None

    def whole(self) -> Self:
        """This SAE, or a copy on plain tensors where it is spread over ranks, which ask together."""
        if self.mesh is None:
            return self
        tensors = self._whole_tensors()
        with torch.random.fork_rng(devices=[]):  # what data are drawn next must not depend on it
            plain = type(self)(self.cfg)  # type: ignore[call-arg, arg-type]
        for name, tensor in tensors.items():
            plain._replace(name, tensor.clone())
        return plain.train(self.training)

    def over_ranks(self, run: Callable[..., TrainStepOutput], *args: Any) -> TrainStepOutput:
        """A training pass on a rank's local tensors; the loss and what is reported are those of all ranks."""
        if self.mesh is None:
            return run(*args)
        tensors = {f"sae.{name}": _with_summed_gradient(parameter) for name, parameter in self.named_parameters()}
        tensors |= {f"sae.{name}": local(buffer) for name, buffer in self.named_buffers()}
        output = torch.func.functional_call(_Run(self, run), tensors, args)
        output.losses = {name: self.mean_over_ranks(loss) for name, loss in output.losses.items()}
        output.loss = torch.stack(list(output.losses.values())).sum()
        output.metrics["score_std"] = self.mean_over_ranks(output.metrics["score_std"])
        output.metrics.pop("tau", None)  # many collectives for one number of the log
        if self.concept_shard is not None:
            output.feature_acts = output.hidden_pre = self._at_all_concepts(output.feature_acts)
        return output

    @property
    def concept_shard(self) -> ConceptShard | None:
        """The own range of concepts, or None where every rank has them all."""
        if self.mesh is None or self.mesh.size(1) == 1:
            return None
        length = -(-self.cfg.d_sae // self.mesh.size(1))
        return ConceptShard(
            self.mesh.get_group(CONCEPTS), min(self.cfg.d_sae, length * self.mesh.get_local_rank(CONCEPTS))
        )

    def refuse_whole_rows(self) -> None:
        """Refuse what asks for all scores of a token, where no rank has them.

        Raises:
            ValueError: ranks share the concepts.
        """
        if self.concept_shard is not None:
            raise ValueError("hooks on activations must be removed where ranks share the concepts: none has them all")

    def mean_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over all ranks, differentiable."""
        return value if self.mesh is None else _MeanOverRanks.apply(value)  # type: ignore[no-any-return]

    def total_over_data(self, part: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks that hold the same concepts and bring other tokens."""
        if self.mesh is not None and self.mesh.size(0) > 1:
            dist.all_reduce(part, group=self.mesh.get_group(DATA))
        return part

    def everyones(self, counts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Numbers (N,) of the tokens of a group that shares the concepts, as those of all tokens."""
        if self.mesh is None or self.mesh.size(0) == 1:
            return counts
        return list(all_gathered(torch.stack(counts, 1), self.mesh.get_group(DATA)).unbind(1))

    def _at_all_concepts(self, acts: torch.Tensor) -> torch.Tensor:
        """(N, d_sae) sparse COO of (N, M) sparse activations of the own concepts."""
        assert self.concept_shard is not None
        row, col = acts.detach().indices()
        index = torch.stack([row, col + self.concept_shard.first])
        return coo(index, acts.detach().values(), (acts.shape[0], self.cfg.d_sae))

    def _whole_tensors(self) -> dict[str, torch.Tensor]:
        named = [*self.named_parameters(), *self.named_buffers()]
        return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in named}

    def _replace(self, name: str, tensor: torch.Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        module = self.get_submodule(owner)
        if leaf in module._parameters:
            before = module._parameters[leaf]
            assert before is not None
            module._parameters[leaf] = nn.Parameter(tensor.detach(), requires_grad=before.requires_grad)
        else:
            module._buffers[leaf] = tensor


class _Run(nn.Module):
    """What `functional_call` calls: a method of the SAE, whose tensors it has replaced by then."""

    def __init__(self, sae: nn.Module, run: Callable[..., TrainStepOutput]) -> None:
        super().__init__()
        self.sae, self.run = sae, run

    def forward(self, *args: Any) -> TrainStepOutput:
        return self.run(*args)


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        # Gloo's average has known faults: a sum, divided.
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):  # noqa: ARG004
        return grads[0] / dist.get_world_size()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """A rank's part of a tensor, in the tensor's own memory, without gradient."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _distributed(tensor: torch.Tensor, mesh: DeviceMesh, concept_dim: int | None) -> torch.Tensor:
    if concept_dim == 1:
        # Concept by concept in memory, as before: a gradient of another local layout would be paired with wrong
        # elements by Adam's fused step, which goes by memory.
        return _distributed(tensor.T.contiguous(), mesh, 0).t()
    return distribute_tensor(tensor, mesh, [Replicate(), Replicate() if concept_dim is None else Shard(concept_dim)])


def _with_summed_gradient(parameter: torch.Tensor) -> torch.Tensor:
    """The local tensor of a parameter, whose gradients are summed over the ranks that have the same."""
    if not isinstance(parameter, DTensor):
        return parameter
    if parameter.placements[1] == Shard(1):
        return _with_summed_gradient(parameter.t()).t()
    partial = [Partial() if isinstance(each, Replicate) else each for each in parameter.placements]
    # Redistributed to what it is: nothing on the way in, the sum on the way back.
    return parameter.redistribute(placements=parameter.placements).to_local(grad_placements=partial)
