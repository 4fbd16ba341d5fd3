"""The configuration of a training run on a vision model, with SAELens's field names wherever it has one."""

from dataclasses import asdict, dataclass, field
from typing import Any, Generic, get_args

from sae_lens import __version__
from sae_lens.config import T_TRAINING_SAE_CONFIG, LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.registry import get_sae_training_class

from sae_lens_sparsemax.data.image_loader import MAX_BAD_IMAGE_FRACTION
from sae_lens_sparsemax.data.loading import data_identity
from sae_lens_sparsemax.evaluation.classification import check_templates
from sae_lens_sparsemax.models.vision_at_hook import Tokens
from sae_lens_sparsemax.settings.sentences import Mistake
from sae_lens_sparsemax.training.config import check_choice, check_run
from sae_lens_sparsemax.training.mesh import ParallelConfig


@dataclass
class VisionSAERunnerConfig(Generic[T_TRAINING_SAE_CONFIG]):
    """What to train on what, for how long, and where to leave it.

    Raises:
        ValueError: values that do not fit together; the message names them.
    """

    sae: T_TRAINING_SAE_CONFIG
    """The SAE's training config, of any architecture; `d_in` 0 is read from the hook."""

    # Model and data
    model_name: str = "openai/clip-vit-base-patch16"
    """A CLIP, SigLIP, DINOv2 or ViT model: hub id or folder."""
    model_class_name: str = "HookedViT"
    """Recorded with the SAE; there is no other class."""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to `HookedViT.from_pretrained`, for example a revision."""
    model_dtype: str = "float32"
    """Type of the model's weights."""
    hook_name: str = "blocks.-2.hook_resid_post"
    """Where the SAE reads; negative layers count from the last."""
    tokens: Tokens = "all"
    """Which tokens of an image: "all", "cls" or "patches"."""
    dataset_path: str = ""
    """Hub id, parquet file or folder of images (see `load_image_dataset`)."""
    dataset_config: str | None = None
    dataset_split: str | None = None
    """None for `train`, or else the only split there is."""
    image_column: str | None = None
    """None for `image`, or else the only column of images."""
    streaming: bool = False
    """Read the images in the order of the data set while training, instead of converting it first."""
    max_bad_image_fraction: float = MAX_BAD_IMAGE_FRACTION
    """Share of broken images above which the run stops."""
    cached_activations_path: str | None = None
    """Folder of activations that `sparsemax-sae cache-activations` stores and training reads in place of the model."""
    cached_activations_dtype: str = "float32"
    """Type of the numbers stored there; float16 and bfloat16 take half the space."""

    # Activations store
    training_tokens: int = 2_000_000
    """Tokens to train on, not images: an image has 197 in a ViT-B/16, one of them CLS."""
    store_batch_size_images: int = 32
    """Images the model sees at a time."""
    n_batches_in_buffer: int = 20
    """Training batches that the shuffle buffer holds."""
    activations_mixing_fraction: float = 0.5
    """Share of the shuffle buffer kept back at each refill; 0 leaves tokens in order."""
    n_decode_workers: int = 2
    """Processes that decode and preprocess images; 0 does it in the main one."""
    prefetch_image_batches: int = 0
    """Batches of images run through the model ahead, in a second thread; for a model on an accelerator."""

    # Machine
    device: str = "cpu"
    """Where the SAE is."""
    model_device: str | None = None
    """Where the vision model is; None for `device`."""
    act_store_device: str | None = None
    """Where the shuffle buffer is; None for `device`."""
    seed: int = 42
    """Of the SAE's initial weights, the order of the images and the shuffling of tokens."""
    dtype: str = "float32"
    """Type of the SAE and of the activations."""
    autocast: bool = False
    """Train the SAE in bfloat16 autocast."""
    autocast_model: bool = False
    """Run the vision model in bfloat16 autocast."""
    compile_sae: bool = False
    sae_compilation_mode: str | None = None
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    # Training, as in SAELens
    from_pretrained_path: str | None = None
    train_batch_size_tokens: int = 4096
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    lr: float = 3e-4
    lr_scheduler_name: str = "constant"
    lr_warm_up_steps: int = 0
    lr_end: float | None = None
    """None for `lr / 10`."""
    lr_decay_steps: int = 0
    n_restart_cycles: int = 1
    dead_feature_window: int = 1000
    feature_sampling_window: int = 2000
    n_batches_for_norm_estimate: int = 1000

    # Evaluation on held-out images
    eval_dataset_path: str | None = None
    """Images to evaluate on; None evaluates nothing."""
    eval_dataset_config: str | None = None
    eval_dataset_split: str | None = None
    """None for `test` or `validation`, or else the only split that is not trained on."""
    eval_label_column: str | None = None
    """Class of an image; needed for zero-shot accuracy, else only reconstruction is measured. None for `label`, or
    else the only column of named classes, if any."""
    eval_class_names: list[str] | None = None
    """Names in the order of the labels; None takes those of the data set."""
    eval_templates: list[str] = field(default_factory=lambda: ["a photo of a {}"])
    """Prompts; a class's text embedding is the mean over them."""
    eval_n_images: int = 512
    """The first so many images in a fixed random order; they are held in memory, 0.6 MB each at 224 pixels."""
    eval_every_n_steps: int = 1000
    """Also evaluated at the end of training. 0 for at the end alone."""

    # Output
    logger: LoggingConfig = field(default_factory=lambda: LoggingConfig(log_to_wandb=False))
    n_checkpoints: int = 0
    checkpoint_path: str | None = "checkpoints"
    """Used as given; None saves no checkpoints."""
    save_final_checkpoint: bool = False
    output_path: str | None = "output"
    resume_from_checkpoint: str | None = None
    verbose: bool = True
    sae_lens_version: str = field(default_factory=lambda: __version__)
    sae_lens_training_version: str = field(default_factory=lambda: __version__)

    def __post_init__(self) -> None:
        self.lr_end = self.lr / 10 if self.lr_end is None else self.lr_end
        self.model_device = self.model_device or self.device
        self.act_store_device = self.act_store_device or self.device
        if self.logger.run_name is None:
            self.logger.run_name = f"{self.sae.architecture()}-{self.sae.d_sae}-LR-{self.lr}-{self.hook_name}"
        check_choice("tokens", self.tokens, get_args(Tokens))
        check_choice("model_class_name", self.model_class_name, ("HookedViT",))
        check_run(
            self,
            devices=("device", "model_device", "act_store_device"),
            dtypes=("dtype", "model_dtype", "cached_activations_dtype"),
        )
        for name in {"dtype", "torch_dtype"} & set(self.model_from_pretrained_kwargs):
            raise Mistake(f"model_from_pretrained_kwargs.{name}", "must be given as model_dtype")
        images = data_identity(self.eval_dataset_path, self.eval_dataset_split, self.eval_dataset_config)
        seen = data_identity(self.dataset_path, self.dataset_split, self.dataset_config)
        # Where no split is named one is looked for, which is another.
        if self.eval_dataset_path and self.eval_dataset_split and images == seen:
            raise ValueError(
                "eval_dataset_path and eval_dataset_split must name other images than those of the training, "
                f"got {self.dataset_path!r}, {self.eval_dataset_split!r} for both"
            )
        check_templates("eval_templates", self.eval_templates)

    @property
    def total_training_tokens(self) -> int:
        """Tokens to train on."""
        return self.training_tokens

    @property
    def total_training_steps(self) -> int:
        """Optimiser steps."""
        return self.training_tokens // self.train_batch_size_tokens

    @property
    def prefetch_llm_batches(self) -> bool:
        """SAELens's runner reads ahead around its store if this is set; the vision store does so inside."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {**asdict(self), "logger": asdict(self.logger), "sae": self.sae.to_dict()}

    @classmethod
    def from_dict(cls, cfg_dict: dict[str, Any]) -> "VisionSAERunnerConfig[Any]":
        """The configuration that `to_dict` gave.

        Raises:
            ValueError: there is no SAE or no architecture in it.
        """
        if "architecture" not in cfg_dict.get("sae", {}):
            raise Mistake("sae.architecture", "must be given")
        sae_config_class = get_sae_training_class(cfg_dict["sae"]["architecture"])[1]
        sae = sae_config_class.from_dict(cfg_dict["sae"])
        parallel = ParallelConfig(**cfg_dict.get("parallel", {}))
        logger = LoggingConfig(**cfg_dict.get("logger", {}))
        return cls(**{**cfg_dict, "sae": sae, "logger": logger, "parallel": parallel})

    to_sae_trainer_config = LanguageModelSAERunnerConfig.to_sae_trainer_config
