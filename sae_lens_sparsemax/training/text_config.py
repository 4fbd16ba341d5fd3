"""The configuration of a training run on a language model: SAELens's, and four keys more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic

import torch
from sae_lens.config import T_TRAINING_SAE_CONFIG, LanguageModelSAERunnerConfig
from sae_lens.constants import DTYPE_MAP

from sae_lens_sparsemax.settings.nearest import nearest

_SCHEDULERS = ("constant", "cosineannealing", "cosineannealingwarmrestarts")
_MODEL_CLASSES = ("HookedTransformer", "HookedMamba", "AutoModelForCausalLM", "TransformerBridge")


@dataclass
class TextRunnerConfig(LanguageModelSAERunnerConfig[T_TRAINING_SAE_CONFIG], Generic[T_TRAINING_SAE_CONFIG]):
    """SAELens's ``LanguageModelSAERunnerConfig`` with the same field names, and:

    - ``dataset_path`` may also be a local file (jsonl, json, parquet, txt; globs allowed) or folder;
    - ``model_class_name`` may also be ``"TransformerBridge"``, which loads local folders as well;
    - ``checkpoint_path`` is used as given (SAELens appends a random suffix);
    - remote code of data sets is never run.

    Raises:
        ValueError: a value that SAELens would refuse only after loading the model, or never.
    """

    dataset_trust_remote_code: bool = False
    """Must stay False."""
    dataset_split: str = "train"
    """Split of the data set, in the slice syntax of ``datasets`` (``train[:1%]`` when not streaming)."""
    dataset_config: str | None = None
    """Name of the data set's configuration, where it has several."""
    text_column: str = "text"
    """Column that holds the text, where it is not called ``text``."""
    held_out_fraction: float = 0.0
    """Leave out of training the documents whose hash falls into twice this fraction: one share for validation, one
    for ``sparsemax-sae evaluate --suite text``; see ``data.texts.part_of_document``."""

    cached_activations_dtype: str = "float32"
    """Type of the numbers that `sparsemax-sae cache-activations` stores in `cached_activations_path`, which training
    then reads in place of the model; float16 and bfloat16 take half the space."""

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        checkpoint_path = self.checkpoint_path
        super().__post_init__()
        self.checkpoint_path = checkpoint_path

    def _check_names(self) -> None:
        if self.dataset_trust_remote_code:
            raise ValueError(
                "'dataset_trust_remote_code' cannot be true: code from a data set is never run; "
                "use a parquet or JSON lines version of the data set."
            )
        if (self.model_from_pretrained_kwargs or {}).get("trust_remote_code"):
            raise ValueError("'trust_remote_code' cannot be true: code from a model's repository is never run.")
        for key, value, valid in (
            ("lr_scheduler_name", self.lr_scheduler_name.lower(), _SCHEDULERS),
            ("model_class_name", self.model_class_name, _MODEL_CLASSES),
            ("dtype", self.dtype, tuple(DTYPE_MAP)),
            ("cached_activations_dtype", self.cached_activations_dtype, tuple(DTYPE_MAP)),
        ):
            if value not in valid:
                raise ValueError(
                    f"{key!r} must be one of {', '.join(valid)}, but {value!r} was given; "
                    f"the nearest is {nearest(value, valid)!r}."
                )
        for key in ("device", "llm_device", "act_store_device"):
            _check_device(key, getattr(self, key))

    def _check_numbers(self) -> None:
        """Refuse batch, buffer and schedule sizes that do not fit together."""
        batch = self.train_batch_size_tokens
        per_context = len(range(self.context_size)[slice(*self.seqpos_slice)])
        if per_context and self.n_batches_in_buffer * per_context < batch:
            raise ValueError(
                f"'n_batches_in_buffer' ({self.n_batches_in_buffer}) times the positions used per context "
                f"({per_context}) must be at least 'train_batch_size_tokens' ({batch}): "
                f"set 'n_batches_in_buffer' to {-(-batch // per_context)} or more."
            )
        steps = self.training_tokens // batch
        if steps == 0:
            raise ValueError(
                f"'training_tokens' ({self.training_tokens}) must be at least one batch of "
                f"'train_batch_size_tokens' ({batch})."
            )
        if self.lr_warm_up_steps + self.lr_decay_steps > steps:
            raise ValueError(
                f"'lr_warm_up_steps' ({self.lr_warm_up_steps}) and 'lr_decay_steps' ({self.lr_decay_steps}) "
                f"do not fit into the {steps} steps that 'training_tokens' and "
                "'train_batch_size_tokens' allow."
            )
        if not 0 <= self.held_out_fraction < 0.5:
            raise ValueError(f"'held_out_fraction' must lie between 0 and 0.5, but {self.held_out_fraction} was given.")
        if not 0 <= self.activations_mixing_fraction <= 1:
            raise ValueError(
                "'activations_mixing_fraction' must lie between 0 and 1, "
                f"but {self.activations_mixing_fraction} was given."
            )


def _check_device(key: str, value: Any) -> None:
    if value is None or value == "with_model":
        return
    try:
        device = torch.device(value)
    except RuntimeError as error:
        raise ValueError(f"{key!r} must be a torch device such as cpu, cuda or mps, not {value!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{key!r} is {value!r}, but torch finds no CUDA device; use cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{key!r} is {value!r}, but torch finds no MPS device; use cpu.")
