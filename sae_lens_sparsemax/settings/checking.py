"""From plain values (YAML, JSON, command line) to a dataclass, every value checked against its type hint.

pydantic checks the value of each field; the loop over the fields is ours, so that SAELens's dataclasses can be
checked as they are, an unknown key is answered with the nearest valid one, and every mistake is one sentence that
names the key by its dotted place.

But: hints that configurations do not use (bool, int, float, str, Literal, None, unions, list, tuple, dict and
dataclasses are the ones they do) let their value through unchecked.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Mapping
from functools import cache, partial
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, Field, PlainValidator, Strict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from sae_lens.saes.sae import SAEConfig, SAEMetadata
from sae_lens.synthetic import FiringProbabilityConfig, MagnitudeConfig
from sae_lens.synthetic.registry import FIRING_PROB_REGISTRY, MAGNITUDE_REGISTRY

from sae_lens_sparsemax.settings.sentences import (
    MOST_LISTED,
    Mistake,
    listed,
    must_be,
    must_be_one_of,
    nearest,
    new_name,
)
from sae_lens_sparsemax.settings.values import DEVICES, WRITTEN_PATHS, check_device, written_path
from sae_lens_sparsemax.settings.yaml_files import parse_texts, parse_value

T = TypeVar("T")

# Numbers for which zero or less would only fail later, in a place that no longer knows the key; the key of a list
# stands for its items.
_AT_LEAST_ONE = {
    "training_tokens", "training_samples", "train_batch_size_tokens", "batch_size", "context_size",
    "store_batch_size_prompts", "store_batch_size_images", "n_batches_in_buffer", "d_sae", "dead_feature_window",
    "feature_sampling_window", "n_batches_for_norm_estimate", "n_eval_batches", "eval_samples",
    "wandb_log_frequency", "eval_every_n_wandb_logs", "n_restart_cycles", "batches", "steps", "samples", "examples",
    "megabytes", "n_images", "n_counting_images", "n_tokens", "n_prediction_tokens", "n_training_tokens",
    "n_validation_tokens", "n_evaluation_tokens", "probing_ks", "n_probing_texts", "n_concepts",
}  # fmt: skip
# infinity means something there: TopK.
_MAY_BE_INFINITE = {"alpha"}
_NOT_NEGATIVE = {
    "d_in", "lr_warm_up_steps", "lr_decay_steps", "n_checkpoints", "eval_frequency", "showcase", "port",
    "n_cross_entropy_tokens", "n_zero_shot_images", "n_decode_workers", "prefetch_image_batches", "eval_n_images",
    "eval_every_n_steps", "n_probing_tokens", "drawn_examples", "metadata.l0",
}  # fmt: skip
_ABOVE_ZERO = {"l0", "lr", "lrs", "max_norm", "max_norm_over_median", "steps_factor"}
_TOO_LARGE = "too_large"

# Abstract configs whose concrete class is chosen by the key generator_name.
_BY_GENERATOR_NAME: dict[type, Mapping[str, type]] = {
    FiringProbabilityConfig: FIRING_PROB_REGISTRY,
    MagnitudeConfig: MAGNITUDE_REGISTRY,
}


class Word(str):
    """A value as it was typed on the command line, to be read as the type hint of its field asks."""

    __slots__ = ()


def build(cls: type[T], values: Mapping[str, Any], place: str = "") -> T:
    """Make the dataclass `cls` from `values`, every key known and every value of its field's type.

    Args:
        cls: A dataclass.
        values: Field name to plain value or `Word`; values that already are dataclass instances pass unchanged.
        place: Dotted path of the mapping, for error messages; "" at the top level.

    Raises:
        ValueError: An unknown or missing key, a value of the wrong type, or a value that `cls` refuses.
    """
    try:
        return _build(cls, values)
    except Mistake as mistake:
        raise mistake.below(place) from None


def plain(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same `values` with every `Word` read as the fields of the dataclass `cls` ask; nothing is checked."""
    hints = hints_of(cls)
    return {name: _read_words(value, hints.get(name, Any)) for name, value in values.items()}


def refuse_unknown_keys(values: Mapping[str, Any], valid: Collection[str]) -> None:
    """Raise a ValueError for the first key of `values` that is not in `valid`, naming its new name or the nearest."""
    for key, value in values.items():
        if key in valid:
            continue
        renamed = new_name(str(key), value, valid)
        if renamed is not None:
            old, new = renamed
            raise Mistake(old, f"is now called {new}")
        near = nearest(str(key), valid) or (nearest(str(key), valid, 0.4) if len(valid) > MOST_LISTED else None)
        raise Mistake(str(key), "is not a valid key" + ("" if near else f"; valid are {listed(valid)}"), near or "")


def convert(value: Any, hint: Any, name: str) -> Any:
    """Return `value` as the type `hint`, or raise a ValueError that names the key `name`."""
    value = _read_words(value, hint)
    options = _options(hint)
    if value is None and type(None) in options:
        return None
    if isinstance(value, Mapping):
        # A mapping can only be meant for the config among the options: its own error is the clear one.
        options = tuple(option for option in options if dataclasses.is_dataclass(option)) or options
    options = tuple(option for option in options if option is not type(None)) or options
    try:
        converted = _adapter(Union[options], name).validate_python(value)  # noqa: UP007  from a tuple
    except ValidationError as error:
        raise _mistake(error, value, hint, name) from error
    if name in DEVICES and isinstance(converted, str):
        check_device(name, converted)
    if name in WRITTEN_PATHS and isinstance(converted, str):
        return written_path(name, converted)
    return converted


def _build(cls: type[T], values: Any) -> T:
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = hints_of(cls)
    refuse_unknown_keys(values, fields)
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise Mistake(name, "must be given")
    return cls(**{name: convert(value, hints[name], name) for name, value in values.items()})


def _group(cls: type, value: Any) -> Any:
    """`value` as an instance of the dataclass `cls`."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise must_be("", "a group of keys", value)
    if cls is SAEMetadata:
        return SAEMetadata(**value)
    registry = _BY_GENERATOR_NAME.get(cls)
    if registry is None:
        return _build(cls, value)
    name = value.get("generator_name")
    if not isinstance(name, str) or name not in registry:
        raise must_be_one_of("generator_name", name, sorted(registry))
    return _build(registry[name], {key: inner for key, inner in value.items() if key != "generator_name"})


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The type hints of a dataclass, as its values are checked."""
    hints = get_type_hints(cls)
    if issubclass(cls, SAEConfig):
        # SAELens takes and computes one more than its hint names.
        accepted = (*get_args(hints["normalize_activations"]), "constant_norm_rescale")
        hints["normalize_activations"] = Literal[accepted]
    return hints


@cache
def _adapter(hint: Any, key: str) -> TypeAdapter[Any]:
    return TypeAdapter(_checked(hint, key))


def _checked(hint: Any, key: str) -> Any:
    """The type for pydantic that means what `hint` means in a file: neither text nor numbers are truth values."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return Union[tuple(_checked(option, key) for option in arguments)]  # noqa: UP007  from a tuple
    if origin in (list, tuple, dict):
        inner = tuple(option if option is Ellipsis else _checked(option, key) for option in arguments)
        return types.GenericAlias(origin, inner)
    if hint in (int, float):
        finite = {"allow_inf_nan": False} if hint is float and key.rpartition(".")[2] not in _MAY_BE_INFINITE else {}
        return Annotated[hint, BeforeValidator(_usual), Field(**finite, **_bounds(key))]
    if hint in (bool, str):
        return Annotated[hint, Strict()]
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or hint is SAEMetadata):
        return Annotated[Any, PlainValidator(partial(_group, hint))]
    return hint if origin is Literal or hint in (type(None), dict, list, tuple) else Any


def _bounds(key: str) -> dict[str, Any]:
    for name in (key, key.rpartition(".")[2]):  # what is said of a place goes before what is said of all of a name
        for bound, names in (({"gt": 0}, _ABOVE_ZERO), ({"ge": 1}, _AT_LEAST_ONE), ({"ge": 0}, _NOT_NEGATIVE)):
            if name in names:
                return bound
    return {}


def _usual(value: Any) -> Any:
    """The value, unless it is a truth value or a whole number that no processor counts with."""
    if isinstance(value, bool):
        raise PydanticCustomError("no_number", "no number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise PydanticCustomError(_TOO_LARGE, "too large")
    return value


def _mistake(error: ValidationError, value: Any, hint: Any, name: str) -> ValueError:
    """pydantic's first error in our words."""
    for option in _options(hint):
        if get_origin(option) is dict and isinstance(value, Mapping):
            for key, each in value.items():  # raises for the one that is wrong
                convert(each, get_args(option)[1], f"{name}.{key}")
    first = error.errors()[0]
    if first["type"] in ("greater_than_equal", "greater_than"):
        bounds = first.get("ctx", {})
        return must_be(name, f"at least {bounds['ge']}" if "ge" in bounds else f"above {bounds['gt']}", value)
    for each in error.errors():
        if each["type"] == _TOO_LARGE:
            return must_be(name, "below 2**63" if each["input"] > 0 else "above -2**63", each["input"])
        inner = each.get("ctx", {}).get("error")
        if isinstance(inner, Mistake):
            # Items of a list or mapping of groups are part of the place.
            return inner.below(".".join([name, *(str(part) for part in each["loc"] if _is_key(part))]))
        if isinstance(inner, ValueError):
            return inner
    return must_be(name, _describe(hint), value, _literals(hint))


def _is_key(part: int | str) -> bool:
    """Whether a part of pydantic's place is a key or index, not the tag of a member of a union."""
    return isinstance(part, int) or not ("[" in part or "-" in part)


_NAMES: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text (in quotes where needed)",
    type(None): "null",
}  # fmt: skip


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        numbers = {int, float} <= set(arguments)
        return " or ".join(_describe(option) for option in arguments if not (numbers and option is int))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple and len(arguments) > 1 and Ellipsis not in arguments:
        *most, last = map(_describe, arguments)
        return f"a list of {', '.join(most)} and {last}"
    if origin in (list, tuple):
        one = _describe(arguments[0]) if arguments else ""
        many = (
            f"lists{one.removeprefix('a list')}"
            if one.startswith("a list")
            else one.replace("a whole number", "whole numbers")
            .replace("a number", "numbers")
            .replace("text ", "texts ")
            .replace("a group", "groups")
        )
        return f"a list of {many}" if many else "a list"
    if origin is dict or hint is dict or dataclasses.is_dataclass(hint):
        return "a group of keys"
    return _NAMES.get(hint, str(hint))


def _literals(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [option for option in get_args(hint) if isinstance(option, str)]
    return [name for option in get_args(hint) for name in _literals(option)]


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of any other hint, itself."""
    if isinstance(hint, TypeVar):
        hint = hint.__bound__ or Any
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _read_words(value: Any, hint: Any) -> Any:
    """`value` with every `Word` in it read as `hint` asks: text is taken as it was typed, anything else is YAML."""
    options = [option for option in _options(hint) if option is not type(None)]
    if isinstance(value, Word):
        if value == "null" and len(options) < len(_options(hint)):
            return None
        if not value.strip():
            return str(value)
        if all(option is str or (get_origin(option) is Literal and _literals(option)) for option in options):
            return str(value)
        texts = all(get_origin(option) in (list, tuple) and get_args(option)[0] is str for option in options)
        return parse_texts(value) if texts else parse_value(value)
    if isinstance(value, Mapping):
        for option in options:
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                return plain(option, value)
        inner = next((get_args(option)[1] for option in options if get_origin(option) is dict), Any)
        return {key: _read_words(each, inner) for key, each in value.items()}
    return value
