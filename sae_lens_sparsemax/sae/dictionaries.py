"""Where scores and reconstructions come from: shared concepts under projections, or two separate matrices.

Both structures offer the same few maps, so the SAE around them knows no difference:
q = project_query(u, T), Z = q · keysᵀ (+ bias), context = P · values, x̂ − b_dec = project_context(context),
and their folded form W_enc, W_dec.
"""

from __future__ import annotations

import copy
from typing import Any, SupportsIndex

import torch
from torch import nn

from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig

# Of the normal numbers that a rank draws to keep its own; divisible by sixteen.
_NUMBERS_OF_A_PIECE = 2**22


class ComputedTensor(torch.Tensor):
    """A matrix computed from parameters when it is asked for, which refuses to be written to.

    A write would change this temporary and nothing else, while whoever writes (SAELens's folds, its
    `init_sae_to_match_feature_dict`, a user) means the SAE. Views of it refuse as well; every other result is a
    plain tensor, copies and what is read back from files too. But: memory shared with numpy is not watched.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return copy.deepcopy(self._plain(), memo)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self._plain().__reduce_ex__(protocol)

    def _plain(self) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            plain = self.as_subclass(torch.Tensor)
            return nn.Parameter(plain, self.requires_grad) if isinstance(self, nn.Parameter) else plain

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        is_write = name in ("__setitem__", "__set__") or (
            name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        )
        # __iadd__ and its like, but neither __invert__ nor __index__.
        is_write |= name.startswith("__i") and hasattr(torch.Tensor, "__" + name[3:])
        # Whoever makes a parameter of the matrix means to own it.
        written = kwargs.get("out", args[0] if is_write and args else None)
        if isinstance(written, cls) and not isinstance(written, nn.Parameter):
            raise ValueError(
                f"W_enc and W_dec of a training SAE with shared concepts are computed from its parameters, so {name} "
                "would change a temporary and nothing else: write to sae.dictionary.concepts, W_k, W_v, or save the "
                "SAE for inference and write to the folded matrices"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            if type(result) is torch.Tensor and any(_share_memory(result, arg) for arg in args):
                return result.as_subclass(cls)
            return result


class CrossAttentionDictionary(nn.Module):
    """Concepts C that are keys and values at once: Z = u W_q W_kᵀ Cᵀ and W_dec = C W_v (the paper's Eq. 3).

    C·W_k and C·W_v (M·d² each) are never formed in training; the projections act on the N queries and contexts.

    The parameters W_q, W_k and W_v are the projections divided by cfg.map_lr_scale, so that an optimizer which
    moves all entries alike, as Adam does, moves the projections by that share. `b_enc` is a parameter where the scores
    have a bias, and None elsewhere.
    """

    def __init__(self, cfg: SparsemaxTrainingSAEConfig, dtype: torch.dtype, device: torch.device, own: range) -> None:
        super().__init__()
        directions = _random_directions(own, cfg.d_sae, cfg.d_in, dtype, device)
        self.map_scale = cfg.map_scale
        identity = torch.eye(cfg.d_in, dtype=dtype, device=device) / self.map_scale
        row_norm = cfg.decoder_init_norm or 1.0 / cfg.init_score_scale
        self.concepts = nn.Parameter(directions * cfg.init_score_scale)
        self.W_q = nn.Parameter(identity.clone()) if cfg.query_projection else None
        self.W_k = nn.Parameter(identity.clone())
        self.W_v = nn.Parameter(identity * (row_norm / cfg.init_score_scale))
        self.b_enc: nn.Parameter | None = _zero_bias(own, dtype, device) if cfg.encoder_bias else None

    @property
    def keys(self) -> torch.Tensor:
        """(M, d) C."""
        return self.concepts

    @property
    def values(self) -> torch.Tensor:
        """(M, d) C, the very same tensor."""
        return self.concepts

    @property
    def bias(self) -> torch.Tensor | None:
        """(M,) b_enc, or None."""
        return self.b_enc

    def query_map(self, dtype: torch.dtype) -> torch.Tensor:
        """(d, d) of the queries u, multiplied in `dtype`: rounded in half precision it would change the supports."""
        key_map = self.projection(self.W_k, dtype).T
        return key_map if self.W_q is None else self.projection(self.W_q, dtype) @ key_map

    def value_map(self, dtype: torch.dtype) -> torch.Tensor:
        """(d, d) of the contexts P C, in `dtype`."""
        return self.projection(self.W_v, dtype)

    def projection(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(d, d) the projection that a parameter W_q, W_k or W_v stands for, in `dtype`."""
        return parameter.to(dtype) if self.map_scale == 1 else parameter.to(dtype) * self.map_scale

    def project_query(self, query: torch.Tensor, turn: torch.Tensor | None = None) -> torch.Tensor:
        """(..., d) u W_q W_kᵀ, or u T W_q W_kᵀ where there is a turn T, (d, d)."""
        query_map = self.query_map(query.dtype)
        if turn is None:
            return query @ query_map
        # Of many queries it is less work to multiply the two maps first, backwards even more so.
        return query @ (turn @ query_map) if query.numel() > turn.numel() else query @ turn @ query_map

    def project_context(self, context: torch.Tensor) -> torch.Tensor:
        """(N, d) context W_v."""
        return context @ self.value_map(context.dtype)

    @property
    def W_enc(self) -> torch.Tensor:
        """(d, M) W_q W_kᵀ Cᵀ."""
        return (self.query_map(self.concepts.dtype) @ self.concepts.T).as_subclass(ComputedTensor)

    @property
    def W_dec(self) -> torch.Tensor:
        """(M, d) C W_v."""
        return (self.concepts @ self.value_map(self.concepts.dtype)).as_subclass(ComputedTensor)

    def fold_input_map(self, matrix: torch.Tensor) -> None:
        """Take queries u in place of u · matrix: W_q W_kᵀ becomes matrix · W_q W_kᵀ."""
        if self.W_q is not None:
            _replace(self.W_q, matrix @ self.W_q.to(matrix.dtype))
        else:
            _replace(self.W_k, self.W_k.to(matrix.dtype) @ matrix.T)

    def fold_output_map(self, matrix: torch.Tensor) -> None:
        """Give reconstructions x̂ · matrix in place of x̂."""
        _replace(self.W_v, self.W_v.to(matrix.dtype) @ matrix)

    def fold_input_shift(self, shift: torch.Tensor) -> None:
        """Take queries u in place of u − shift; impossible without a bias."""
        if self.b_enc is not None:
            _lower_by_scores(self.b_enc, self, shift)
        elif shift.any():
            raise NotImplementedError("scores without encoder_bias have no bias that could take up a shift of queries")


class MLPDictionary(nn.Module):
    """Separate encoder and decoder (the "MLP" rows of the paper's Table 3): Z = u W_enc + b_enc, x̂ = f W_dec."""

    def __init__(self, cfg: SparsemaxTrainingSAEConfig, dtype: torch.dtype, device: torch.device, own: range) -> None:
        super().__init__()
        directions = _random_directions(own, cfg.d_sae, cfg.d_in, dtype, device)
        row_norm = cfg.decoder_init_norm or 1.0 / cfg.init_score_scale
        # (d, M) as SAELens has it, but concept by concept in memory: the backward pass gathers rows of W_encᵀ.
        self.W_enc = nn.Parameter((directions * cfg.init_score_scale).T)
        self.b_enc = _zero_bias(own, dtype, device)
        self.W_dec = nn.Parameter(directions * row_norm)

    @property
    def keys(self) -> torch.Tensor:
        """(M, d) W_encᵀ."""
        return self.W_enc.T

    @property
    def values(self) -> torch.Tensor:
        """(M, d) W_dec."""
        return self.W_dec

    @property
    def bias(self) -> torch.Tensor:
        """(M,) b_enc."""
        return self.b_enc

    def query_map(self, dtype: torch.dtype) -> torch.Tensor:
        """(d, d) the identity."""
        return torch.eye(self.W_enc.shape[0], dtype=dtype, device=self.W_enc.device)

    def project_query(self, query: torch.Tensor, turn: torch.Tensor | None = None) -> torch.Tensor:
        """(..., d) u itself, or u T where there is a turn T, (d, d)."""
        return query if turn is None else query @ turn

    def project_context(self, context: torch.Tensor) -> torch.Tensor:
        """(N, d) the context itself."""
        return context

    def fold_input_map(self, matrix: torch.Tensor) -> None:
        """Take queries u in place of u · matrix."""
        _replace(self.W_enc, matrix @ self.W_enc.to(matrix.dtype))

    def fold_output_map(self, matrix: torch.Tensor) -> None:
        """Give reconstructions x̂ · matrix in place of x̂."""
        _replace(self.W_dec, self.W_dec.to(matrix.dtype) @ matrix)

    def fold_input_shift(self, shift: torch.Tensor) -> None:
        """Take queries u in place of u − shift."""
        _lower_by_scores(self.b_enc, self, shift)


Dictionary = CrossAttentionDictionary | MLPDictionary


def build_dictionary(
    cfg: SparsemaxTrainingSAEConfig, dtype: torch.dtype, device: torch.device, own: range
) -> Dictionary:
    """The dictionary of cfg.structure, initialised; of a range of concepts, what the whole one has there."""
    kind = MLPDictionary if cfg.structure == "mlp" else CrossAttentionDictionary
    return kind(cfg, dtype, device, own)


def _zero_bias(own: range, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.zeros(len(own), dtype=dtype, device=device))


def _random_directions(own: range, n: int, d: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # A stream of their own: the first normal draws of a seed are SAELens's true features too, where a synthetic model
    # has the seed of the SAE, and concepts that start on them would have found them before training.
    stream = None if device.type == "meta" else torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
    of = {"dtype": dtype, "device": device}
    rows = torch.randn(n, d, generator=stream, **of) if len(own) == n else _drawn(own, n, d, stream, of)
    return rows / rows.norm(dim=-1, keepdim=True)


def _drawn(own: range, n: int, d: int, stream: torch.Generator | None, of: dict[str, Any]) -> torch.Tensor:
    """The own rows of what torch.randn(n, d) draws, to the bit, in the memory of these and of one piece."""
    numbers, first, start = torch.empty(len(own) * d, **of), own.start * d, 0
    for size in _pieces(n * d, numbers):
        piece = torch.randn(size, generator=stream, **of)
        low, high = max(first, start), min(first + len(numbers), start + size)
        if low < high:
            numbers[low - first : high - first] = piece[low - start : high - start]
        start += size
    return numbers.view(len(own), d)


def _pieces(n: int, like: torch.Tensor) -> list[int]:
    """Sizes of draws that give, one after the other, the normal numbers of one draw of n: in the order of torch."""
    if like.device.type == "cpu":
        # Made by sixteens; the last sixteen anew where they do not end with n, and fewer than that in another way.
        before = max(0, (n - 16) // _NUMBERS_OF_A_PIECE - 1)
        return [_NUMBERS_OF_A_PIECE] * before + [n - _NUMBERS_OF_A_PIECE * before]
    # An accelerator draws all that 32 bits can index at once, in an order of its own, and of more one half at a time.
    if 1 + (n - 1) * like.element_size() < 2**31:
        return [n]
    return _pieces(n // 2, like) + _pieces(n - n // 2, like)


def _share_memory(result: torch.Tensor, source: Any) -> bool:
    return isinstance(source, ComputedTensor) and result.untyped_storage()._cdata == source.untyped_storage()._cdata


def _lower_by_scores(bias: nn.Parameter, dictionary: Dictionary, query: torch.Tensor) -> None:
    """Take what a query (d,) scores, in its dtype, off a bias (M,)."""
    _replace(bias, bias.to(query.dtype) - dictionary.project_query(query) @ dictionary.keys.T.to(query.dtype))


def _replace(parameter: nn.Parameter, value: torch.Tensor) -> None:
    parameter.data.copy_(value)
