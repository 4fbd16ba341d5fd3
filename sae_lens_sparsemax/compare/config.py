"""The settings of a comparison, and the mistakes in them that can be found before anything runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.synthetic import SyntheticModelConfig

from sae_lens_sparsemax.compare.arm import Arm
from sae_lens_sparsemax.data.image_loader import MAX_BAD_IMAGE_FRACTION
from sae_lens_sparsemax.data.loading import data_identity
from sae_lens_sparsemax.evaluation.classification import check_templates
from sae_lens_sparsemax.evaluation.probing import Pooling
from sae_lens_sparsemax.models.vision_at_hook import Tokens
from sae_lens_sparsemax.settings.checking import Word, build, convert, refuse_unknown_keys
from sae_lens_sparsemax.settings.command_line import apply_overrides
from sae_lens_sparsemax.settings.recipes import find_recipe
from sae_lens_sparsemax.settings.sentences import Mistake, must_be, must_be_one_of
from sae_lens_sparsemax.settings.values import check_file_name, refuse_repeated
from sae_lens_sparsemax.settings.yaml_files import read_yaml
from sae_lens_sparsemax.training.config import check_optimizer, check_sae

# What the comparison itself sets in SAELens's trainer configuration.
_TRAINER_FIELDS_SET_HERE = {"total_training_samples", "train_batch_size_samples", "lr", "device", "logger"}
# What is stretched with an arm's steps.
_SCHEDULE = ("lr_warm_up_steps", "lr_decay_steps")
_LARGEST_SEED = 2**32 - 1

SYNTHETIC_SET = "synthetic"
"""Name of the evaluation set where a synthetic model is reconstructed."""
IMAGE_SET = "evaluation images"
"""Name of the evaluation set of a vision model."""


@dataclass
class EvalDataset:
    """Where text or images come from."""

    path: str | None = None
    """A file or folder, or the name of a Hugging Face data set."""
    split: str = "train"
    """Split of a data set; a single file is one split of the name `train`."""
    config: str | None = None
    """Configuration of a hub data set that has several."""
    text_column: str = "text"
    """Column that holds the documents; a blank line separates those of a `.txt` file."""
    held_out: bool = False
    """Take the held-out documents of the training text instead of `path`."""

    @property
    def identity(self) -> tuple[str, str, str | None]:
        """See `data_identity`."""
        return data_identity(self.path, self.split, self.config)


@dataclass
class ComparedImages:
    """What only concerns images: how a vision model reads and classifies them."""

    tokens: Tokens = "all"
    """Which tokens of an image are reconstructed: `all`, `cls` or `patches`; the others are never replaced."""
    image_column: str = "image"
    """Column that holds the images."""
    label_column: str = "label"
    """Column that holds the classes of the evaluation images, for zero-shot accuracy."""
    class_names: list[str] | None = None
    """Names in the order of the labels; by default those of the data set."""
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}"])
    """Prompts; a class's text embedding is the mean over them."""
    n_zero_shot_images: int = 2000
    """Evaluation images that are classified with the SAE spliced in; 0 leaves it out."""
    batch_size: int = 256
    """Images per forward pass."""
    n_decode_workers: int = 0
    """Processes that decode images; 0 does it in the main one."""
    max_bad_image_fraction: float = MAX_BAD_IMAGE_FRACTION
    """Share of the images that may be broken, beyond the first ten."""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to `HookedViT.from_pretrained`, for example a revision."""

    def __post_init__(self) -> None:
        if self.tokens not in get_args(Tokens):
            raise must_be_one_of("tokens", self.tokens, get_args(Tokens))
        check_templates("templates", self.templates)


@dataclass
class CompareConfig:
    """Settings of a comparison of SAE architectures on the same activations."""

    arms: list[Arm]
    """What is compared."""
    output_path: str = "output/compare"
    """Folder for activations, SAEs, results, tables and plots."""
    synthetic_model: dict[str, Any] | str | None = None
    """Settings of `sae_lens.synthetic.SyntheticModelConfig`, or the name of such a model on the hub or its folder; it
    replaces the model."""
    images: ComparedImages | None = None
    """Images, which make `model_name` the name of a vision model; the settings of text are then not used."""

    model_name: str | None = None
    """Language or vision model: a Hugging Face name or a local folder."""
    model_class_name: str = "HookedTransformer"
    """How SAELens loads a language model: `HookedTransformer` or `AutoModelForCausalLM`."""
    hook_name: str | None = None
    """Hook whose activations are reconstructed; in a vision model negative layers count from the last."""
    dataset_path: str | None = None
    """Text or images to train on: a file or folder, or the name of a Hugging Face data set."""
    dataset_split: str = "train"
    """Split of the data set; a single file is one split of the name `train`."""
    dataset_config: str | None = None
    """Configuration of a hub data set that has several."""
    text_column: str = "text"
    """Column that holds the documents; a blank line separates those of a `.txt` file."""
    eval_datasets: dict[str, EvalDataset] = field(default_factory=lambda: {"held_out": EvalDataset(held_out=True)})
    """Named sets of text to evaluate on; of images, one set, others than those to train on."""
    held_out_fraction: float = 0.1
    """Fraction of the training documents kept for validation, and as many again for evaluation; of training
    images, kept for validation alone."""
    context_size: int = 128
    """Tokens per context."""
    prepend_bos: bool = True
    """Whether contexts begin with the beginning-of-sequence token."""
    exclude_special_tokens: bool = True
    """Whether activations at special tokens are left out of training and evaluation."""
    max_norm_over_median: float | None = None
    """Leave out activations with more than this many times the median norm, as some models have at a few
    positions where they would be nearly all of the variance; they are never replaced by a reconstruction
    either. By default nothing is left out."""
    store_batch_size_prompts: int = 16
    """Contexts per forward pass of the language model."""
    n_validation_tokens: int = 16_384
    """Held-out activations on which the best learning rate is chosen (samples, with a synthetic model)."""
    n_evaluation_tokens: int = 32_768
    """Activations per evaluation set (samples, with a synthetic model)."""
    n_cross_entropy_tokens: int = 16_384
    """Tokens per evaluation set on which the cross-entropy is measured; 0 leaves it out."""
    n_probing_tokens: int = 0
    """Tokens per evaluation set in whose contexts k-sparse probes tell apart what follows and of which set they are; 0
    leaves it out."""
    probing_pooling: Pooling = "last"
    """What stands for the half of a context that is probed: its last token (`last`) or the average (`mean`)."""
    activation_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of stored activations."""

    d_sae: int = 2304
    """Concepts of every SAE."""
    n_training_tokens: int | None = None
    """Activations to store for training; by default one for every sample of the steps, no repetition."""
    steps: int = 600
    """Training steps."""
    batch_size: int = 1024
    """Activations per step."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Other fields of SAELens's `SAETrainerConfig`, such as `lr_warm_up_steps` and `lr_decay_steps`."""
    b_dec_init: Literal["mean", "zeros"] = "mean"
    """`mean` starts the decoder bias of every SAE at the mean of the training activations; `zeros` leaves it to the
    architecture, and so does an arm that sets a field `b_dec_init` of its own."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Each seeds both the SAE's initialisation and the order of the activations."""
    matched_l0: list[int | float] = field(default_factory=lambda: [8, 16, 32, 64, 128])
    """Values of L0 at which the arms are compared by interpolation."""
    device: str = "cpu"
    """Device of the language model and of the SAEs."""

    def __post_init__(self) -> None:
        if self.synthetic_model is None and (not self.model_name or not self.hook_name):
            raise ValueError("model_name and hook_name must be given unless synthetic_model is")
        if self.images is not None:
            self._check_images()
        if isinstance(self.synthetic_model, dict):
            build(SyntheticModelConfig, self.synthetic_model, "synthetic_model")
        if self.b_dec_init not in ("mean", "zeros"):
            raise must_be_one_of("b_dec_init", self.b_dec_init, ("mean", "zeros"))
        if not 0 < self.held_out_fraction < 0.5:
            raise must_be("held_out_fraction", "between 0 and 0.5", self.held_out_fraction)
        if not self.arms:
            raise must_be("arms", "at least one", self.arms)
        refuse_repeated("names of arms", [arm.name for arm in self.arms])
        for name in self.eval_datasets:
            check_file_name("a name in eval_datasets", name)
        refuse_repeated("names of eval_datasets", [name.replace(" ", "_") for name in self.eval_datasets])
        if reserved := {"train", "validation"} & set(self.eval_datasets):
            raise must_be("eval_datasets", "of other names, since these mean splits", sorted(reserved))
        self._check_paths()
        if not all(l0 > 0 for l0 in self.matched_l0):
            raise must_be("matched_l0", "positive", self.matched_l0)
        if not self.seeds:
            raise must_be("seeds", "a list of at least one seed", self.seeds)
        if not all(0 <= seed <= _LARGEST_SEED for seed in self.seeds):  # those below name samples that are held out
            raise must_be("seeds", f"whole numbers from 0 to {_LARGEST_SEED}", self.seeds)
        refuse_repeated("matched_l0", self.matched_l0)
        refuse_repeated("seeds", self.seeds)
        self._check_trainer()
        for arm in self.arms:
            if not arm.sparsities or not arm.lrs:
                given = {"sparsities": arm.sparsities, "lrs": arm.lrs}
                raise must_be(f"arms.{arm.name}", "given at least one value of each", given)
            refuse_repeated(f"arms.{arm.name}.sparsities", arm.sparsities)
            refuse_repeated(f"arms.{arm.name}.lrs", arm.lrs)
            for lr in arm.lrs:
                check_optimizer(self.trainer_config(arm, lr), "trainer.")
            # Building the configs now finds a mistake before the language model has run for an hour.
            sae_cfg, *others = [arm.sae_config(sparsity, d_in=1, d_sae=self.d_sae) for sparsity in arm.sparsities]
            for each in (sae_cfg, *others):
                check_sae(f"arms.{arm.name}.sae", each)
            per_token = sae_cfg.normalize_activations in ("constant_norm_rescale", "layer_norm")
            if per_token and self.b_dec_init == "mean" and "b_dec_init" not in arm.sae:
                why = f"as arms.{arm.name} normalises every activation by itself, so that their mean is another"
                raise must_be("b_dec_init", f"'zeros', {why}", self.b_dec_init)

    def _check_trainer(self) -> None:
        hints = get_type_hints(SAETrainerConfig)
        try:
            refuse_unknown_keys(self.trainer, hints.keys() - _TRAINER_FIELDS_SET_HERE)
        except Mistake as mistake:
            raise mistake.below("trainer") from None
        for key, value in self.trainer.items():
            convert(value, hints[key], f"trainer.{key}")

    def _check_images(self) -> None:
        for name in ("synthetic_model", "max_norm_over_median"):
            if getattr(self, name) is not None:
                raise must_be(name, "left out beside images", getattr(self, name))
        if len(self.eval_datasets) != 1:
            raise must_be("eval_datasets", "one set of images", list(self.eval_datasets))

    def _check_paths(self) -> None:
        if self.synthetic_model is not None:
            return
        if not self.dataset_path:
            raise Mistake("dataset_path", "must be given")
        for name, data in self.eval_datasets.items():
            if data.held_out:
                self._check_held_out(f"eval_datasets.{name}", data)
            elif not data.path:
                raise Mistake(f"eval_datasets.{name}.path", "must be given")
            elif data.identity == self.training_dataset.identity:
                others = "images" if self.images is not None else "text, or held_out: true,"
                raise must_be(f"eval_datasets.{name}", f"other {others} than what is trained on", data.path)

    def _check_held_out(self, place: str, data: EvalDataset) -> None:
        """Refuse what says that held-out documents are those of another text, since it would not be read."""
        if self.images is not None:
            raise must_be(f"{place}.held_out", "left out beside images, of which no part is held out", True)
        for key, value in asdict(replace(data, held_out=False)).items():
            if value not in (getattr(EvalDataset(), key), getattr(self.training_dataset, key)):
                raise must_be(f"{place}.{key}", "left out beside held_out, documents of the training text", value)

    @property
    def training_dataset(self) -> EvalDataset:
        """The data to train on, in the form of those to evaluate on."""
        return EvalDataset(self.dataset_path, self.dataset_split, self.dataset_config, self.text_column)

    @property
    def evaluation_images(self) -> EvalDataset:
        """The images to evaluate on, for a vision model."""
        return next(iter(self.eval_datasets.values()))

    @property
    def evaluation_sets(self) -> list[str]:
        """Names of the sets that results are reported on."""
        if self.synthetic_model is not None:
            return [SYNTHETIC_SET]
        return [IMAGE_SET] if self.images is not None else list(self.eval_datasets)

    def steps_of(self, arm: Arm) -> int:
        """Training steps of an arm."""
        return max(1, round(self.steps * arm.steps_factor))

    def trainer_config(self, arm: Arm, lr: float) -> SAETrainerConfig:
        """SAELens's config of a training, every default in it; an arm of more steps stretches its schedule."""
        given = {key: value for key, value in self.trainer.items() if value is not None or key != "lr_end"}
        schedule = {key: int(self.trainer.get(key, 0) * arm.steps_factor) for key in _SCHEDULE}
        return SAETrainerConfig(
            **{
                "lr_end": lr / 10,  # as null means to SAELens's runners
                **given,
                **schedule,
                "total_training_samples": self.steps_of(arm) * self.batch_size,
                "train_batch_size_samples": self.batch_size,
                "lr": lr,
                "device": self.device,
                "logger": LoggingConfig(log_to_wandb=False),
            }
        )

    @property
    def n_stored_tokens(self) -> int:
        """Activations that every arm trains on, permuted, before any others."""
        return self.n_training_tokens or self.steps * self.batch_size

    @property
    def n_longest_tokens(self) -> int:
        """Activations stored for training, those of the longest arm."""
        longest = max(self.steps, *map(self.steps_of, self.arms))
        return self.n_training_tokens or longest * self.batch_size


def config_from_yaml(path: str | Path, overrides: Mapping[str, Any] | None = None) -> CompareConfig:
    """
    Read a YAML file or a recipe of that name.

    Args:
        path: The file; its keys are the fields of `CompareConfig`.
        overrides: Entries that replace those of the file, by dotted key, as in `{"trainer.lr_decay_steps": 20}`;
            text is read as on the command line.

    Raises:
        ValueError: Unknown keys, or values that `CompareConfig` refuses.
    """
    path = find_recipe(path, "compare")
    words = {key: Word(value) if isinstance(value, str) else value for key, value in (overrides or {}).items()}
    values = apply_overrides(read_yaml(path), words)
    try:
        return build(CompareConfig, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
