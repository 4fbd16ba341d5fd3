"""The language model of a run: loading it, finding its hook, and the width of the activations there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.load_model import load_model
from sae_lens.util import get_special_token_ids
from torch import nn
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookedRootModule
from transformers import AutoConfig, AutoModelForCausalLM

from sae_lens_sparsemax.data.loading import name_to_load
from sae_lens_sparsemax.data.quickstart import QUICKSTART, quickstart_model_path
from sae_lens_sparsemax.files import reason
from sae_lens_sparsemax.settings.sentences import must_be, must_be_one_of

# As transformers calls them in GPT-2 and GPT-Neo, OPT, and BERT; and TransformerLens, which has each in a module.
_TABLES_OF_POSITIONS = {"wpe", "embed_positions", "position_embeddings", "pos_embed"}


def excluded_token_ids(setting: bool | Sequence[int] | None, model: Any) -> list[int]:
    """Token ids left out, from the training setting: none, every special token, or those listed."""
    return get_special_token_ids(model.tokenizer) if setting is True else list(setting or [])


def keep_mask(tokens: torch.Tensor, ignore_tokens: Sequence[int]) -> torch.Tensor:
    """Whether each position of token ids of any shape takes part, bool of that shape."""
    return ~torch.isin(tokens, torch.tensor(list(ignore_tokens), dtype=tokens.dtype, device=tokens.device))


def load_language_model(
    model_class_name: str,
    model_name: str,
    hook_name: str,
    device: str | torch.device = "cpu",
    from_pretrained_kwargs: dict[str, Any] | None = None,
) -> HookedRootModule | SAETransformerBridge:
    """Load a model with hooks.

    Args:
        model_class_name: ``"HookedTransformer"``, ``"HookedMamba"`` or ``"AutoModelForCausalLM"``, loaded
            as SAELens does, or ``"TransformerBridge"``, which takes any Hugging Face name or local folder.
        model_name: name on the hub or, except for HookedTransformer, a local folder; ``"quickstart"`` is the
            model that the package carries.
        hook_name: the only module that is hooked with AutoModelForCausalLM.
        device: where the model goes.
        from_pretrained_kwargs: passed on to the loader.

    Raises:
        ValueError: the model cannot be found, or its class does not load local folders.
    """
    kwargs = with_torch_dtype(from_pretrained_kwargs or {})
    if kwargs.get("trust_remote_code"):
        raise ValueError("'trust_remote_code' cannot be true: code from a model repository is never run.")
    if model_name == QUICKSTART:
        model_name = str(quickstart_model_path())
    path = name_to_load(model_name)
    if model_class_name == "HookedTransformer" and Path(path).is_dir():
        raise ValueError(
            f"HookedTransformer does not load the local folder {model_name!r}; "
            "set 'model_class_name' to 'TransformerBridge'."
        )
    try:
        if model_class_name == "TransformerBridge":
            return SAETransformerBridge.boot_transformers(path, device=device, **kwargs)
        if model_class_name == "AutoModelForCausalLM":
            _check_module_name(path, hook_name)
        return load_model(model_class_name, path, device, kwargs, hook_names=[hook_name])
    except Exception as error:  # readers of model files, tokenizers among them, have errors of every type
        raise ValueError(f"The model {model_name!r} could not be loaded: {reason(error)}") from error


def with_torch_dtype(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a loader with the type of numbers that a file can only name, as `dtype` or `torch_dtype`, in torch.

    Raises:
        ValueError: there is no such type, or both are given.
    """
    loader_kwargs = dict(kwargs)
    names = [name for name in ("dtype", "torch_dtype") if name in kwargs]
    if len(names) > 1:
        raise ValueError("model_from_pretrained_kwargs must hold one of dtype and torch_dtype, got both")
    for name in names:
        value = loader_kwargs.pop(name)
        known = {
            "float16": torch.float16,
            "bfloat16": torch.bfloat16,
            "float32": torch.float32,
            "float64": torch.float64,
        }
        if value not in (*known, *known.values(), None, "auto"):
            raise must_be_one_of(f"model_from_pretrained_kwargs.{name}", value, known)
        if value not in (None, "auto"):
            loader_kwargs["dtype"] = known.get(value, value)
    return loader_kwargs


def model_key(model_class_name: str, model_name: str, hook_name: str, *besides: Any) -> str:
    """Alike for two loaded models of which one does for the other."""
    # With the other classes all hooks are there.
    where = hook_name if model_class_name == "AutoModelForCausalLM" else None
    return repr((model_class_name, model_name, where, *besides))


def load_each_once() -> Callable[..., Any]:
    """A `load_language_model` that gives a model again which it has loaded, for a command with several questions."""
    loaded: dict[str, Any] = {}

    def load(model_class_name: str, model_name: str, hook_name: str, *device_and_kwargs: Any) -> Any:
        key = model_key(model_class_name, model_name, hook_name, *device_and_kwargs)
        if key not in loaded:
            loaded[key] = load_language_model(model_class_name, model_name, hook_name, *device_and_kwargs)
        return loaded[key]

    return load


def resolve_hook_name(model: HookedRootModule | SAETransformerBridge, hook_name: str) -> str:
    """The name under which the model caches ``hook_name``: aliases of a TransformerBridge made canonical.

    Raises:
        ValueError: the model has no such hook; the message names the nearest.
    """
    hooks = set(model.hook_dict)
    if isinstance(model, SAETransformerBridge):
        resolved = model._resolve_hook_name(hook_name)
        if resolved in hooks:
            return resolved
        hooks |= set(model._collect_hook_aliases_from_registry())
    if hook_name in hooks:
        return hook_name
    raise must_be("hook_name", "a hook of the model", hook_name, sorted(hooks))


@torch.no_grad()
def hook_width(
    model: HookedRootModule | SAETransformerBridge, hook_name: str, hook_head_index: int | None = None
) -> int:
    """Width of the activations an SAE at this hook sees, measured by running the model on one token.

    Heads are concatenated, as SAELens's activations store does, unless ``hook_head_index`` picks one.

    Raises:
        ValueError: the hook gives no activations per token, or has no such head.
    """
    token = torch.zeros((1, 1), dtype=torch.long, device=next(model.parameters()).device)
    cache = model.run_with_cache(token, names_filter=[hook_name], prepend_bos=False)[1]
    shape = tuple(cache[hook_name].shape) if hook_name in cache else ()
    if len(shape) not in (3, 4) or shape[:2] != (1, 1):
        raise ValueError(
            f"The hook {hook_name!r} gives {f'shape {shape}' if shape else 'nothing'} for one token; "
            "an SAE needs (batch, position, width) or (batch, position, head, width)."
        )
    if hook_head_index is None:
        return int(torch.tensor(shape[2:]).prod())
    if len(shape) != 4 or not 0 <= hook_head_index < shape[2]:
        heads = f"{shape[2]} heads" if len(shape) == 4 else "no heads"
        raise ValueError(f"'hook_head_index' is {hook_head_index}, but the hook {hook_name!r} has {heads}.")
    return shape[3]


def require_positions(model: HookedRootModule | SAETransformerBridge, context_size: int) -> None:
    """Refuse contexts that are longer than a model's table of positions; of other models, none is too long.

    Raises:
        ValueError: giving both lengths.
    """
    n_positions = model.cfg.n_ctx if isinstance(model, HookedTransformer) else None
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _TABLES_OF_POSITIONS & {*name.split(".")[-2:]}:
            n_positions = module.num_embeddings - int(getattr(module, "offset", 0))
    if n_positions is not None and context_size > n_positions:
        raise must_be("context_size", f"at most {n_positions}, the positions that the model knows", context_size)


NO_NEXT_TOKENS = (
    "the model does not predict next tokens, since what it says at a token depends on those after it, so cross-entropy "
    "and KL divergence mean nothing"
)


@torch.no_grad()
def predicts_next_tokens(model: HookedRootModule | SAETransformerBridge) -> bool:
    """Whether the logits at a token do not depend on the tokens after it, as those of BERT do."""
    # One batch, so that both rows are computed alike.
    tokens = torch.tensor([[1, 2], [1, 3]], device=next(model.parameters()).device)
    logits = model.run_with_hooks(tokens, return_type="logits")
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3:
        return False
    one, other = logits[:, 0].float()
    return bool((one - other).abs().max() <= 1e-5 * one.abs().max())


def check_hook_width(d_in: int | None, width: int, hook_name: str) -> int:
    """Return ``width``; raise a ValueError if ``d_in`` was given (neither None nor 0) and differs."""
    if d_in and d_in != width:
        raise ValueError(
            f"'sae.d_in' is {d_in}, but the activations at the hook {hook_name!r} are {width} wide; "
            "leave 'sae.d_in' out and it is read from the model."
        )
    return width


def _check_module_name(model_name: str, hook_name: str) -> None:
    """Refuse a hook that is no module of a Hugging Face model, before its weights are loaded."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_name))
    modules = {name for name, _ in skeleton.named_modules() if name}
    if hook_name not in modules:
        raise must_be("hook_name", "a module of the model", hook_name, sorted(modules))
