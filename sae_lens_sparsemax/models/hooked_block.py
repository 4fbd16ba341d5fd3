"""One transformer block of a vision model with TransformerLens's hook points.

The modules hold hook points alone; the weights stay in the wrapped `transformers` layer, whose own
submodules are called in its own order, so that the result is the layer's to the last bit.
But: dropout and stochastic depth are left out, since a model that is looked into is not being trained.
"""

from typing import Any

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sae_lens_sparsemax.models.families import ViTFamily, module_at


class _Hooked(nn.Module):
    """A module of hook points around a `transformers` module that it does not own."""

    wrapped: Any

    def __init__(self, wrapped: nn.Module):
        super().__init__()
        # Registered as a submodule, the weights would be listed twice and stand between the hooks' names.
        self.__dict__["wrapped"] = wrapped


class HookedNorm(_Hooked):
    """A layer norm; `hook_normalized` sees its output, weight and bias applied, as in TransformerLens."""

    def __init__(self, wrapped: nn.Module):
        super().__init__(wrapped)
        self.hook_normalized = HookPoint()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hook_normalized(self.wrapped(x))


class HookedAttention(_Hooked):
    """Multi-head self-attention.

    `hook_q`, `hook_k`, `hook_v` and `hook_z` see `(batch, pos, head, d_head)`, `hook_attn_scores` (before the
    softmax) and `hook_pattern` `(batch, head, query_pos, key_pos)`. Fused attention never forms the last
    two: while one of them has a hook, this layer computes them explicitly, and its output may differ in the
        last bits.
    """

    out_proj: Any

    def __init__(self, wrapped: Any, out_proj: str):
        super().__init__(wrapped)
        self.__dict__["out_proj"] = getattr(wrapped, out_proj)
        self.d_head: int = wrapped.head_dim
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z = HookPoint()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention = self.wrapped
        by_head = (*x.shape[:-1], -1, self.d_head)
        q = self.hook_q(attention.q_proj(x).view(by_head)).transpose(1, 2)
        k = self.hook_k(attention.k_proj(x).view(by_head)).transpose(1, 2)
        v = self.hook_v(attention.v_proj(x).view(by_head)).transpose(1, 2)
        scale = self.d_head**-0.5
        implementation = attention.config._attn_implementation
        if implementation == "eager" or _in_use(self.hook_attn_scores) or _in_use(self.hook_pattern):
            scores = self.hook_attn_scores(torch.matmul(q, k.transpose(-1, -2)) * scale)
            pattern = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
            z = torch.matmul(self.hook_pattern(pattern), v).transpose(1, 2).contiguous()
        else:
            attend = ALL_ATTENTION_FUNCTIONS[implementation]
            z, _ = attend(attention, q, k, v, None, scaling=scale, dropout=0.0)
        return self.out_proj(self.hook_z(z).reshape(*x.shape[:-1], -1).contiguous())


class HookedMLP(_Hooked):
    """A two-layer MLP; `hook_pre` and `hook_post` see `(batch, pos, d_mlp)` before and after the
    activation."""

    def __init__(self, wrapped: nn.Module):
        super().__init__(wrapped)
        if not hasattr(wrapped, "fc1"):
            raise ValueError(
                f"The MLP {type(wrapped).__name__} has no fc1 and fc2; gated MLPs cannot be hooked, "
                "choose a model without them."
            )
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mlp = self.wrapped
        return mlp.fc2(self.hook_post(mlp.activation_fn(self.hook_pre(mlp.fc1(x)))))


class HookedViTBlock(nn.Module):
    """A pre-norm block: `hook_resid_pre`, attention, `hook_resid_mid`, MLP, `hook_resid_post`.

    `hook_attn_out` and `hook_mlp_out` see what is added to the residual stream (after a layer scale, if any).
    Whatever a hook returns goes on in its place, on every path that reads it.
    """

    attention_scale: Any
    mlp_scale: Any

    def __init__(self, layer: Any, family: ViTFamily):
        super().__init__()
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()
        self.ln1 = HookedNorm(getattr(layer, family.ln1))
        self.attn = HookedAttention(getattr(layer, family.attention), family.attention_out)
        self.ln2 = HookedNorm(getattr(layer, family.ln2))
        self.mlp = HookedMLP(layer.mlp)
        self.__dict__["attention_scale"] = module_at(layer, family.attention_scale)
        self.__dict__["mlp_scale"] = module_at(layer, family.mlp_scale)

    def forward(self, resid_pre: torch.Tensor) -> torch.Tensor:
        """`(batch, pos, d_model)` to the same shape."""
        resid_pre = self.hook_resid_pre(resid_pre)
        attn_out = self.attn(self.ln1(resid_pre))
        if self.attention_scale is not None:
            attn_out = self.attention_scale(attn_out)
        resid_mid = self.hook_resid_mid(resid_pre + self.hook_attn_out(attn_out))
        mlp_out = self.mlp(self.ln2(resid_mid))
        if self.mlp_scale is not None:
            mlp_out = self.mlp_scale(mlp_out)
        return self.hook_resid_post(resid_mid + self.hook_mlp_out(mlp_out))


def _in_use(hook: nn.Module) -> bool:
    """A hook point with hooks, or something put in its place (an attached SAE)."""
    return not isinstance(hook, HookPoint) or hook.has_hooks()
