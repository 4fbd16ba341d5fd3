"""From plain values (YAML, JSON, command line) to a dataclass, each value checked against its type hint.

Every mistake raises a ``ValueError`` of one sentence that names the key by its dotted place, what was
given and what is valid; an unknown key is answered with the nearest valid one.

But: only the hints that configuration dataclasses use (bool, int, float, str, Literal, None, unions,
list, tuple, dict, dataclasses); every other hint lets its value through unchecked.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sae_lens.saes.sae import SAEMetadata
from sae_lens.synthetic import FiringProbabilityConfig, MagnitudeConfig
from sae_lens.synthetic.registry import FIRING_PROB_REGISTRY, MAGNITUDE_REGISTRY

from sae_lens_sparsemax.settings.nearest import nearest

T = TypeVar("T")

# Numbers for which zero or less would only fail later, in a place that no longer knows the key.
_AT_LEAST_ONE = {
    "training_tokens", "training_samples", "train_batch_size_tokens", "batch_size", "context_size",
    "store_batch_size_prompts", "n_batches_in_buffer", "d_sae", "dead_feature_window",
    "feature_sampling_window", "n_batches_for_norm_estimate", "n_eval_batches", "eval_samples",
    "wandb_log_frequency", "eval_every_n_wandb_logs", "n_restart_cycles",
}  # fmt: skip
_NOT_NEGATIVE = {"d_in", "lr_warm_up_steps", "lr_decay_steps", "n_checkpoints", "eval_frequency"}

# Abstract configs whose concrete class is chosen by the key generator_name.
_BY_GENERATOR_NAME: dict[type, Mapping[str, type]] = {
    FiringProbabilityConfig: FIRING_PROB_REGISTRY,
    MagnitudeConfig: MAGNITUDE_REGISTRY,
}


def build(cls: type[T], values: Mapping[str, Any], place: str = "") -> T:
    """Make the dataclass ``cls`` from ``values``, every key known and every value of its field's type.

    Args:
        cls: a dataclass.
        values: field name to plain value; values that already are dataclass instances pass unchanged.
        place: dotted path of the mapping, for error messages; "" at the top level.

    Raises:
        ValueError: unknown or missing key, value of the wrong type, or a value that ``cls`` refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    refuse_unknown_keys(values, fields, place)
    missing = [name for name, field in fields.items() if name not in values and _is_required(field)]
    if missing:
        raise ValueError(f"The key {_join(place, missing[0])!r} is missing.")
    return cls(**{name: convert(value, hints[name], _join(place, name)) for name, value in values.items()})


def refuse_unknown_keys(values: Mapping[str, Any], valid: Mapping[str, Any] | set[str], place: str) -> None:
    """Raise a ValueError for the first key of ``values`` that is not in ``valid``, naming the nearest."""
    for key in values:
        if key not in valid:
            where = f"under '{place}'" if place else "at the top level"
            similar = nearest(str(key), valid)
            hint = f"; the nearest valid key is {_join(place, similar)!r}" if similar else ""
            raise ValueError(f"{_join(place, str(key))!r} is not a valid key {where}{hint}.")


def convert(value: Any, hint: Any, name: str) -> Any:
    """Return ``value`` as the type ``hint``, or raise a ValueError that names the key ``name``."""
    result = _convert(value, hint, name)
    if result is _NO_FIT:
        names = _literals(hint)
        similar = nearest(value, names) if isinstance(value, str) else None
        suffix = f"; the nearest is {similar!r}" if similar else ""
        raise ValueError(f"{name!r} must be {_describe(hint)}, but {value!r} was given{suffix}.")
    key = name.rpartition(".")[2]
    if isinstance(result, (int, float)) and not isinstance(result, bool):
        smallest = 1 if key in _AT_LEAST_ONE else 0 if key in _NOT_NEGATIVE else result
        if result < smallest:
            raise ValueError(f"{name!r} must be at least {smallest}, but {value!r} was given.")
        if key == "lr" and result <= 0:
            raise ValueError(f"{name!r} must be above 0, but {value!r} was given.")
    return result


_NO_FIT = object()


def _convert(value: Any, hint: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, name)
    if origin is Literal:
        return value if any(value == option and type(value) is type(option) for option in arguments) else _NO_FIT
    if hint is None or hint is type(None):
        return None if value is None else _NO_FIT
    if origin in (list, tuple):
        return _convert_sequence(value, origin, arguments, name)
    if origin is dict or hint is dict:
        return dict(value) if isinstance(value, Mapping) else _NO_FIT
    if hint is SAEMetadata:
        return SAEMetadata(**value) if isinstance(value, Mapping) else value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _convert_dataclass(value, hint, name)
    scalar = _SCALARS.get(hint)
    return scalar(value) if scalar is not None else value


def _convert_union(value: Any, options: tuple[Any, ...], name: str) -> Any:
    if isinstance(value, Mapping):
        # The mapping can only be meant for the config among the options: its own error is the clear one.
        configs = [option for option in options if dataclasses.is_dataclass(option)]
        options = tuple(configs) or options
    for option in options:
        result = _convert(value, option, name)
        if result is not _NO_FIT:
            return result
    return _NO_FIT


def _convert_sequence(value: Any, origin: type, arguments: tuple[Any, ...], name: str) -> Any:
    if not isinstance(value, (list, tuple)):
        return _NO_FIT
    hints = [arguments[0]] * len(value) if origin is list or arguments[-1] is Ellipsis else list(arguments)
    if len(hints) != len(value):
        return _NO_FIT
    items = [_convert(item, hint, name) for item, hint in zip(value, hints, strict=True)]
    return _NO_FIT if any(item is _NO_FIT for item in items) else origin(items)


def _convert_dataclass(value: Any, hint: type, name: str) -> Any:
    if isinstance(value, hint):
        return value
    if not isinstance(value, Mapping):
        return _NO_FIT
    registry = _BY_GENERATOR_NAME.get(hint)
    if registry is None:
        return build(hint, value, name)
    values = dict(value)
    generator = values.pop("generator_name", None)
    if generator not in registry:
        similar = nearest(str(generator), registry) if generator is not None else None
        hint_text = f"; the nearest is {similar!r}" if similar else ""
        valid = ", ".join(map(repr, sorted(registry)))
        raise ValueError(f"'{name}.generator_name' must be one of {valid}, but it is {generator!r}{hint_text}.")
    return build(registry[generator], values, name)


def _to_float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return _NO_FIT
    try:
        number = float(value)
    except ValueError:
        return _NO_FIT
    return number if math.isfinite(number) else _NO_FIT


def _to_int(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _to_float(value)
    return int(number) if number is not _NO_FIT and number == int(number) else _NO_FIT


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    bool: lambda value: value if isinstance(value, bool) else _NO_FIT,
    int: _to_int,
    float: _to_float,
    str: lambda value: value if isinstance(value, str) else _NO_FIT,
}

_NAMES: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text (in quotes where needed)",
    type(None): "null",
}  # fmt: skip


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (list, tuple):
        items = [option for option in arguments if option is not Ellipsis]
        return f"a list of {_describe(items[0])}" if items else "a list"
    if origin is dict or hint is dict or dataclasses.is_dataclass(hint):
        return "a group of keys"
    return _NAMES.get(hint, str(hint))


def _literals(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [option for option in get_args(hint) if isinstance(option, str)]
    return [name for option in get_args(hint) for name in _literals(option)]


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
