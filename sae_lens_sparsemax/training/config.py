"""The configurations of training runs: what all of them are checked for, and those on text and on synthetic data.

That on images is in ``vision_config.py``. Field names are SAELens's wherever it has one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic

import torch
from sae_lens.config import T_TRAINING_SAE_CONFIG, LanguageModelSAERunnerConfig
from sae_lens.constants import DTYPE_MAP
from sae_lens.saes.sae import TrainingSAEConfig
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunnerConfig
from sae_lens.synthetic.synthetic_sae_runner import T_TRAINING_SAE_CONFIG as T_SYNTHETIC_CONFIG
from torch._inductor import list_mode_options

from sae_lens_sparsemax.models.language_models import check_hook_width, with_torch_dtype
from sae_lens_sparsemax.settings.sentences import must_be, must_be_one_of
from sae_lens_sparsemax.settings.values import check_device, check_held_out_fraction, check_share
from sae_lens_sparsemax.training.mesh import ParallelConfig, require_shareable, tokens_per_rank

logger = logging.getLogger(__name__)

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
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        if self.dataset_trust_remote_code:
            raise ValueError(
                "dataset_trust_remote_code must be false, got True: code from a data set is never run; "
                "use a parquet or JSON lines version of the data set"
            )
        check_choice("model_class_name", self.model_class_name, _MODEL_CLASSES)
        with_torch_dtype(self.model_from_pretrained_kwargs or {})
        check_run(
            self,
            devices=("device", "llm_device", "act_store_device"),
            dtypes=("dtype", "cached_activations_dtype"),
        )
        batch = tokens_per_rank(self)
        per_context = len(range(self.context_size)[slice(*self.seqpos_slice)])
        on_each = f", on each of {self.parallel.size} ranks" if self.parallel.size > 1 else ""
        if per_context and self.n_batches_in_buffer * per_context < batch:
            raise ValueError(
                f"n_batches_in_buffer must be at least {-(-batch // per_context)}, so that its contexts of "
                f"{per_context} used positions hold train_batch_size_tokens ({batch}{on_each}), got "
                f"{self.n_batches_in_buffer}"
            )
        check_held_out_fraction(self.held_out_fraction)
        checkpoint_path = self.checkpoint_path
        super().__post_init__()
        self.checkpoint_path = checkpoint_path


@dataclass
class SyntheticRunnerConfig(SyntheticSAERunnerConfig[T_SYNTHETIC_CONFIG], Generic[T_SYNTHETIC_CONFIG]):
    """SAELens's ``SyntheticSAERunnerConfig``, whose runs can be resumed.

    Raises:
        ValueError: a value that SAELens would refuse only when it trains, or never.
    """

    resume_from_checkpoint: str | None = None
    """Checkpoint to continue from."""

    # What SAELens's runner asks of every configuration, and what this one has no use for.
    prefetch_llm_batches: ClassVar[bool] = False
    compile_sae: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_run(self, devices=("device",), tokens="training_samples", batch="batch_size")
        if isinstance(self.synthetic_model, SyntheticModelConfig):
            self.sae = with_width(self.sae, self.synthetic_model.hidden_dim, "synthetic_model")


def check_run(
    cfg: Any,
    *,
    devices: Sequence[str],
    dtypes: Sequence[str] = (),
    tokens: str = "training_tokens",
    batch: str = "train_batch_size_tokens",
) -> None:
    """What every run's configuration must fulfil, whatever it trains on; a schedule too long for it is shortened.

    Args:
        cfg: a runner's configuration.
        devices: its fields that name a torch device.
        dtypes: its fields that name a type of numbers.
        tokens, batch: its fields with the tokens to train on, and those in a step.

    Raises:
        ValueError: a name that does not exist, a device that is not there, sizes that do not fit together.
    """
    for key in dtypes:
        check_choice(key, getattr(cfg, key), DTYPE_MAP)
    _refuse_float16("dtype", getattr(cfg, "dtype", None))
    check_sae("sae", cfg.sae)
    for key in devices:
        if getattr(cfg, key) is not None:
            check_device(key, getattr(cfg, key))
    if (getattr(cfg, "model_from_pretrained_kwargs", None) or {}).get("trust_remote_code"):
        raise must_be("trust_remote_code", "false, as code from a model's repository is never run", True)
    for key in ("sae_compilation_mode", "llm_compilation_mode"):
        if (mode := getattr(cfg, key, None)) is not None:
            check_choice(key, mode, list_mode_options())
    check_share("activations_mixing_fraction", getattr(cfg, "activations_mixing_fraction", None))
    steps = cfg.total_training_steps
    if steps < 1:
        raise must_be(tokens, f"at least one batch of {batch} ({getattr(cfg, batch)})", getattr(cfg, tokens))
    require_shareable(cfg)
    _fit_schedule(cfg, steps)
    check_optimizer(cfg)


def n_steps(cfg: Any) -> int:
    """Steps that a run takes: tokens that fill no batch are one more, which `total_training_steps` leaves out.

    By that of SAELens its schedules are made.
    """
    host = cfg.to_sae_trainer_config()
    return -(-host.total_training_samples // host.train_batch_size_samples)


def _fit_schedule(cfg: Any, steps: int) -> None:
    """Shorten warm-up and decay in proportion where a run is too short for them, and say so."""
    asked = cfg.lr_warm_up_steps + cfg.lr_decay_steps
    if asked <= steps:
        return
    fitting = steps - 1  # one at least is for the schedule between the two
    before = f"{cfg.lr_warm_up_steps} and {cfg.lr_decay_steps}"
    cfg.lr_warm_up_steps, cfg.lr_decay_steps = (
        number * fitting // asked for number in (cfg.lr_warm_up_steps, cfg.lr_decay_steps)
    )
    logger.warning(
        "lr_warm_up_steps and lr_decay_steps are scaled from %s to %d and %d: the run has %d steps.",
        before,
        cfg.lr_warm_up_steps,
        cfg.lr_decay_steps,
        steps,
    )


def check_choice(key: str, value: str, choices: Sequence[str] | dict[str, Any]) -> None:
    """Raise a ValueError that names the nearest choice, unless ``value`` is one."""
    if value not in choices:
        raise must_be_one_of(key, value, choices)


def check_optimizer(cfg: Any, place: str = "") -> None:
    """Raise a ValueError unless Adam and a schedule of its rate can be made, before anything else is.

    Args:
        cfg: what trains, of SAELens's names.
        place: what stands before the names of its settings.
    """
    check_choice(f"{place}lr_scheduler_name", name := cfg.lr_scheduler_name.lower(), _SCHEDULERS)
    for key in ("adam_beta1", "adam_beta2"):
        if not 0 <= (beta := getattr(cfg, key)) < 1:
            raise must_be(f"{place}{key}", "at least 0 and below 1", beta)
    steps, asked = cfg.total_training_steps, cfg.lr_warm_up_steps + cfg.lr_decay_steps
    if asked > steps:
        names = f"{place}lr_warm_up_steps and {place}lr_decay_steps"
        raise must_be(names, f"at most the {steps} steps of a training, together", asked)
    between = steps - asked
    if name == "cosineannealingwarmrestarts" and cfg.n_restart_cycles > between:
        condition = f"at most the {between} steps between warm-up and decay"
        raise must_be(f"{place}n_restart_cycles", condition, cfg.n_restart_cycles)
    lr_end = cfg.lr / 10 if cfg.lr_end is None else cfg.lr_end
    if name != "constant" and cfg.lr_decay_steps and not 0 < lr_end <= cfg.lr:
        raise must_be(f"{place}lr_end", f"above 0 and at most lr, {cfg.lr:g}, for lr_decay_steps to begin at", lr_end)


def check_sae(place: str, cfg: TrainingSAEConfig) -> None:
    """Raise a ValueError for an SAE's configuration, at ``place``, that SAELens takes and cannot train."""
    _refuse_float16(f"{place}.dtype", cfg.dtype)
    k = getattr(cfg, "k", None)
    if k is not None and not 0 < k <= cfg.d_sae:
        raise must_be(f"{place}.k", f"above 0 and at most d_sae, {cfg.d_sae}", k)


def _refuse_float16(key: str, dtype: str | None) -> None:
    """Raise a ValueError where an SAE would be trained in float16."""
    if dtype is not None and DTYPE_MAP.get(dtype) == torch.float16:
        raise must_be(key, "bfloat16, float32 or float64, as Adam's averages do not fit into float16", dtype)


def with_width(sae: TrainingSAEConfig, width: int, hook_name: str) -> Any:
    """A copy of an SAE's configuration for activations of this width; a ``d_in`` other than that and 0 is refused."""
    return replace(sae, d_in=check_hook_width(sae.d_in, width, hook_name))
