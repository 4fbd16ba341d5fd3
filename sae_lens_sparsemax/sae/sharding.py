"""A training SAE over the ranks of a mesh (data × concepts): each brings its own tokens and holds some of the concepts.

Parameters are DTensors on one mesh, the dictionary's rows split over its second dimension and everything else
replicated, so that SAELens's optimizer, gradient clipping and torch's distributed checkpoints see the whole model. A
training pass runs on the local tensors; what crosses ranks within it is in `attention.shards`, and the gradients are
summed over ranks as they leave it. The loss is the mean over all tokens of all ranks, and so is every number reported.

But: all ranks call together, with equally many tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from sae_lens.saes.sae import TrainStepOutput
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, _mesh_resources
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from typing_extensions import Self

from sae_lens_sparsemax.attention.shards import ConceptShard, all_gathered
from sae_lens_sparsemax.attention.sparse import coo
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
        """Spread over the ranks of a mesh with the dimensions ("data", "concepts"), in place; all ranks together.

        The SAE is alike on all ranks before, and no optimizer has seen it. Each rank then trains on its own tokens;
        `feature_acts` of a step are those of its group's tokens at its own concepts, so that every pair of a token and
        a concept is some rank's.

        An SAE that is made inside `with mesh:` holds no more than a rank's own part of the same SAE from the start, if
        its device is not "meta"; it is to be given to this afterwards.

        Raises:
            ValueError: the gate needs whole rows of scores.
        """
        if mesh.size(1) > 1 and self.cfg.gate != "sparsemax":
            raise ValueError(f"gate must be 'sparsemax' where ranks share the concepts, got {self.cfg.gate!r}")
        mesh._flatten()  # with which gradients are summed over all ranks at once
        if self.mesh is None:
            self.divide(mesh)
        for _, tensor in self._named_tensors():
            for dim, placement in enumerate(tensor.placements if isinstance(tensor, DTensor) else ()):
                if isinstance(placement, Replicate):  # alike to the bit, whoever made it
                    own = local(tensor)
                    own = own if own.is_contiguous() else own.T
                    dist.broadcast(own, group=mesh.get_group(dim), group_src=0)

    def concepts_to_make(self) -> range:
        """Those that a new SAE draws: all, or inside `with mesh:` this rank's."""
        return own_concepts(self.cfg.d_sae, mesh_of_new_saes(torch.device(self.cfg.device)))

    @torch.no_grad()
    def divide(self, mesh: DeviceMesh | None) -> None:
        """Keep this rank's part alone, in place, which asks no other rank; without a mesh, nothing changes."""
        if mesh is None:
            return
        own, buffers = own_concepts(self.cfg.d_sae, mesh), dict(self.named_buffers())
        for name, tensor in [*self.named_parameters(), *buffers.items()]:
            if name in _CONCEPT_DIM or name not in buffers:
                self._replace(name, _distributed(tensor.data, mesh, _CONCEPT_DIM.get(name), own, self.cfg.d_sae))
        self.mesh = mesh

    @contextmanager
    def on_own_tensors(self) -> Iterator[None]:
        """Inside the block, weights are plain tensors, in place: a rank's own part of those that are divided."""
        divided = {name: tensor for name, tensor in self._named_tensors() if isinstance(tensor, DTensor)}
        for name, tensor in divided.items():
            self._replace(name, local(tensor))
        try:
            yield
        finally:
            for name, tensor in divided.items():
                self._replace(name, tensor)

    @torch.no_grad()
    def whole(self) -> Self:
        """This SAE, or a copy on plain tensors where it is spread over ranks, which ask together and all get it."""
        if self.mesh is None:
            return self
        return self._with_tensors({name: _whole(tensor) for name, tensor in self._named_tensors()})

    @torch.no_grad()
    def assembled(self) -> Self:
        """A copy on plain tensors of the CPU, made on the first rank of what the others send; this SAE on the others.

        All ranks together. The first one holds the whole SAE beside its part then, and the others nothing more.
        """
        if self.mesh is None:
            return self
        tensors = {name: self._received(name, local(tensor)) for name, tensor in self._named_tensors()}
        return self._with_tensors(tensors) if dist.get_rank() == 0 else self

    def _received(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """The whole tensor on the first rank, and the own part on the others."""
        assert self.mesh is not None
        if name not in _CONCEPT_DIM or self.mesh.get_local_rank(DATA) > 0:
            return own.cpu().clone()
        is_turned, d_sae = _CONCEPT_DIM[name] == 1, self.cfg.d_sae
        own = (own.T if is_turned else own).cpu()
        if self.mesh.get_local_rank(CONCEPTS) > 0:
            if len(own):
                dist.send(own, dst=0)
            return own
        whole = own.new_empty(d_sae, *own.shape[1:])
        whole[: len(own)] = own
        for other, rank in enumerate(self.mesh.mesh[0].tolist()[1:], start=1):
            if concepts := own_concepts(d_sae, self.mesh, other):
                dist.recv(whole[concepts.start : concepts.stop], src=rank)
        return whole.T if is_turned else whole

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
        if (tau := output.metrics.get("tau")) is not None:
            output.metrics["tau"] = lambda: self.mean_over_ranks(tau())
        if self.concept_shard is not None:
            output.feature_acts = output.hidden_pre = self._at_all_concepts(output.feature_acts)
        return output

    @property
    def concept_shard(self) -> ConceptShard | None:
        """The own range of concepts, or None where every rank has them all."""
        if self.mesh is None or self.mesh.size(1) == 1:
            return None
        return ConceptShard(self.mesh.get_group(CONCEPTS), own_concepts(self.cfg.d_sae, self.mesh).start)

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

    def total_over_ranks(self, part: torch.Tensor, of_all_concepts: bool) -> torch.Tensor:
        """The sum over the ranks that bring other tokens, at the own concepts, or at those of all ranks."""
        if self.mesh is not None and (of_all_concepts or self.mesh.size(0) > 1):
            dist.all_reduce(part, group=None if of_all_concepts else self.mesh.get_group(DATA))
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

    def _named_tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [*self.named_parameters(), *self.named_buffers()]

    def _with_tensors(self, tensors: dict[str, torch.Tensor]) -> Self:
        cfg = copy.copy(self.cfg)
        cfg.device = "meta"  # nothing is drawn
        plain = type(self)(cfg)  # type: ignore[call-arg, arg-type]
        plain.load_state_dict(tensors, assign=True)
        return plain.to(device=tensors["b_dec"].device).train(self.training)  # type: ignore[attr-defined]

    def _replace(self, name: str, tensor: torch.Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        module = self.get_submodule(owner)
        if leaf in module._parameters:
            before = module._parameters[leaf]
            assert before is not None
            if not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor.detach(), requires_grad=before.requires_grad)
            module._parameters[leaf] = tensor
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


def mesh_of_new_saes(device: torch.device) -> DeviceMesh | None:
    """The mesh in whose `with` block this is asked, if it is in one; SAEs on the device "meta" are made whole."""
    return _mesh_resources.mesh_stack[-1] if _mesh_resources.mesh_stack and device.type != "meta" else None


def own_concepts(d_sae: int, mesh: DeviceMesh | None, place: int | None = None) -> range:
    """The concepts that a rank holds, or the one at a place among those that share them; all without a mesh."""
    if mesh is None:
        return range(d_sae)
    length = -(-d_sae // mesh.size(1))
    place = mesh.get_local_rank(CONCEPTS) if place is None else place
    return range(min(d_sae, length * place), min(d_sae, length * (place + 1)))


def _distributed(
    tensor: torch.Tensor, mesh: DeviceMesh, concept_dim: int | None, own: range, d_sae: int
) -> torch.Tensor:
    """As a DTensor, of the whole tensor or the own part."""
    if concept_dim == 1:
        # Concept by concept in memory, as before: a gradient of another local layout would be paired with wrong
        # elements by Adam's fused step, which goes by memory.
        return _distributed(tensor.T, mesh, 0, own, d_sae).t()
    if concept_dim is None:
        return DTensor.from_local(tensor, mesh, [Replicate(), Replicate()], run_check=False)
    if len(tensor) != len(own):
        tensor = tensor[own.start : own.stop].clone()  # without the memory of the others
    shape = torch.Size([d_sae, *tensor.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    placements = [Replicate(), Shard(0)]
    return DTensor.from_local(tensor.contiguous(), mesh, placements, run_check=False, shape=shape, stride=stride)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.clone()
    if tensor.placements[1] == Shard(1):
        return _whole(tensor.t()).t()
    whole = tensor.full_tensor()
    return whole.clone() if whole.data_ptr() == local(tensor).data_ptr() else whole


def _with_summed_gradient(parameter: torch.Tensor) -> torch.Tensor:
    """The local tensor of a parameter, whose gradients are summed over the ranks that have the same."""
    if not isinstance(parameter, DTensor):
        return parameter
    if parameter.placements[1] == Shard(1):
        return _with_summed_gradient(parameter.t()).t()
    partial = [Partial() if isinstance(each, Replicate) else each for each in parameter.placements]
    # Redistributed to what it is: nothing on the way in, the sum on the way back.
    return parameter.redistribute(placements=parameter.placements).to_local(grad_placements=partial)
