"""A vision transformer with TransformerLens's hooks: CLIP, SigLIP, DINOv2 and ViT through one class.

TransformerLens's own `TransformerBridge` was tried first. It carries a ViT bit for bit, but knows no CLIP,
SigLIP or DINOv2 and no text tower to classify with, and a hook on its `hook_resid_mid` changes what the MLP
reads but not the residual stream, so an SAE spliced in there would be measured wrongly. Here every hook is
a real replacement, and what there is to keep is a table of attribute names and one block.
"""

import difflib
import re
from typing import Any, Literal

import torch
from PIL import Image
from sae_lens import SAE
from sae_lens.analysis.hooked_sae_transformer import HookedSAETransformer, _SAEWrapper
from torch import nn
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.hook_points import HookedRootModule, HookPoint
from transformers import AutoConfig, AutoModel, AutoTokenizer

# transformers itself hides the class where there is no torchvision, up to 5.9 at least; it works without.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from sae_lens_sparsemax.data.image_loader import as_rgb
from sae_lens_sparsemax.data.loading import name_to_load
from sae_lens_sparsemax.data.quickstart import QUICKSTART, quickstart_vision_model_path
from sae_lens_sparsemax.files import reason
from sae_lens_sparsemax.models.families import ViTShape, family_of, module_at
from sae_lens_sparsemax.models.hooked_block import HookedNorm, HookedViTBlock
from sae_lens_sparsemax.settings.sentences import must_be

Returned = Literal["embeds", "tokens"]


class HookedViT(HookedRootModule):
    """A `transformers` vision model with hook points named as in TransformerLens.

    `hook_embed` `(batch, pos, d_model)` holds patches, prefix tokens and positions; then `ln_pre` (CLIP),
    `blocks.{l}` (see `HookedViTBlock`), `ln_final` and `hook_image_embeds` `(batch, d_embed)`.

    Args:
        hf_model: a CLIP, SigLIP, DINOv2 or ViT model of `transformers`, whole, its vision tower, or a classifier, whose
            head is left out.
        image_processor: the `transformers` image processor of the model, for `preprocess`.
        tokenizer: its tokenizer, for `encode_text`.

    Raises:
        ValueError: the model's family is not known.
    """

    tower: Any
    _acts_to_saes: dict[str, _SAEWrapper]
    _transcoder_output_hooks: dict[str, str]

    def __init__(self, hf_model: Any, image_processor: Any = None, tokenizer: Any = None):
        super().__init__()
        self._acts_to_saes, self._transcoder_output_hooks = {}, {}
        self.model = hf_model.eval()
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.family = family_of(hf_model.config.model_type)
        base = hf_model.base_model  # without the head of a classifier
        tower = getattr(base, "vision_model", base)
        self.__dict__["tower"] = tower
        self.hook_embed = HookPoint()
        ln_pre = module_at(tower, self.family.ln_pre)
        self.ln_pre = HookedNorm(ln_pre) if ln_pre is not None else None
        layers = module_at(tower, self.family.layers)
        self.blocks = nn.ModuleList(HookedViTBlock(layer, self.family) for layer in layers)
        self.ln_final = HookedNorm(module_at(tower, self.family.ln_final))
        self.hook_image_embeds = HookPoint()
        self.cfg = ViTShape.of(tower.config, self.family, self._image_size(tower.config.image_size))
        self.setup()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> "HookedViT":
        """Load a model with its image processor and tokenizer from the Hugging Face hub or a folder.

        Args:
            name_or_path: for example `openai/clip-vit-base-patch16`; `quickstart` is the CLIP that the package carries.
            device: where the model goes.
            dtype: of its weights.
            **kwargs: passed on to `AutoModel.from_pretrained`, for example `revision`.

        Raises:
            ValueError: the model or its image processor is missing, its family is not known, or code of the
                repository would have to be run.
        """
        if kwargs.pop("trust_remote_code", False):
            raise must_be("trust_remote_code", "false, as code from a model's repository is never run", True)
        if name_or_path == QUICKSTART:
            name_or_path = str(quickstart_vision_model_path())
        path = name_to_load(name_or_path)
        revision = {"revision": kwargs["revision"]} if "revision" in kwargs else {}
        try:
            family = family_of(AutoConfig.from_pretrained(path, **revision).model_type)
            if family.head == "pooler":
                # Checkpoints of classifiers have no pooler, and transformers would make up a random one.
                kwargs.setdefault("add_pooling_layer", False)
            model = AutoModel.from_pretrained(path, dtype=dtype, **kwargs)
            processor = AutoImageProcessor.from_pretrained(path, **revision)
            tokenizer = None
            if hasattr(model, "text_model"):
                tokenizer = AutoTokenizer.from_pretrained(path, **revision)
                # Where a repository has no tokenizer files, transformers makes an all but empty one up.
                tokenizer = tokenizer if len(tokenizer) > model.config.text_config.vocab_size // 2 else None
            hooked = cls(model, processor, tokenizer)
        except Exception as error:  # readers of model files, tokenizers among them, have errors of every type
            raise ValueError(
                f"The model {name_or_path!r} could not be loaded; give --model_name if it has moved: {reason(error)}"
            ) from error
        return hooked.to(device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def classifies(self) -> bool:
        """Whether it can compare images with text: a whole CLIP or SigLIP model with its tokenizer."""
        return self.tokenizer is not None and hasattr(self.model, "logit_scale")

    def forward(
        self,
        pixel_values: torch.Tensor,
        return_type: Returned | None = "embeds",
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
    ) -> torch.Tensor | None:
        """Run the vision model.

        Args:
            pixel_values: `(batch, channel, height, width)`, as `preprocess` gives them.
            return_type: `"embeds"`, one vector per image `(batch, d_embed)`: the projected image features
                of a whole CLIP or SigLIP model, else the pooled output, else the first token; `"tokens"`,
                what `transformers` calls `last_hidden_state`, `(batch, pos, d_model)`; None for no output.
            stop_at_layer: run the blocks before this one and return the residual stream
                `(batch, pos, d_model)`; negative numbers count from the end, as in a slice.
            start_at_layer: take the first argument as the residual stream before this block.
        """
        if start_at_layer is not None:
            x = pixel_values
        else:
            x = self.hook_embed(self.tower.embeddings(pixel_values.to(self.device, self.dtype)))
            x = self.ln_pre(x) if self.ln_pre is not None else x
        for block in self.blocks[start_at_layer:stop_at_layer]:  # type: ignore[index]
            x = block(x)
        if stop_at_layer is not None:
            return x
        if self.family.norm_first_token_only:
            tokens, pooled = x, self.ln_final(x[:, 0])
        else:
            tokens = self.ln_final(x)
            head = module_at(self.tower, self.family.head)
            # Without a head or a class token there are patches alone, of which a classifier reads the mean.
            first_or_mean = tokens[:, 0] if self.cfg.n_prefix_tokens else tokens.mean(1)
            pooled = head(tokens) if head is not None else first_or_mean
        projection = getattr(self.model, "visual_projection", None)
        embeds = self.hook_image_embeds(projection(pooled) if projection is not None else pooled)
        return {"embeds": embeds, "tokens": tokens, None: None}[return_type]

    def run_with_cache(  # type: ignore[override]
        self,
        *model_args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache | dict[str, torch.Tensor]]:
        """Output and activations of one forward pass, as `HookedTransformer.run_with_cache` returns them."""
        out, cache = super().run_with_cache(*model_args, remove_batch_dim=remove_batch_dim, **kwargs)
        if return_cache_object:
            return out, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)
        return out, cache

    def resolve_hook_name(self, name: str) -> str:
        """The full name of a hook: `blocks.-2.hook_resid_post` becomes `blocks.10.hook_resid_post` in ViT-B.

        Raises:
            ValueError: the model has no such hook; the message names near ones.
        """
        layer = re.match(r"blocks\.(-\d+)\.", name)
        index = self.cfg.n_layers + int(layer.group(1)) if layer else 0
        full = f"blocks.{index}.{name[layer.end() :]}" if layer and index >= 0 else name
        if full not in self.mod_dict or not full.rsplit(".", 1)[-1].startswith("hook_"):
            near = difflib.get_close_matches(full, self.hook_dict, n=3)
            raise ValueError(
                f"The model has no hook {name!r}; it has {self.cfg.n_layers} layers and hooks such as "
                f"{', '.join(near or ['blocks.0.hook_resid_post'])}."
            )
        return full

    def add_sae(
        self,
        sae: SAE[Any],
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> None:
        """Attach an SAE at the hook named in its metadata, until `reset_saes`; one already there is replaced.

        But: there are no tokens with an id in an image, so `exclude_special_tokens` is refused; and a hook that the
        model does not have is an error, where SAELens warns and goes on without the SAE.

        Args:
            sae: the SAE, or a transcoder (`metadata.hook_name_out`).
            use_error_term: add what the SAE misses back to its output, so that the model computes what it
                would without it; None keeps the SAE's own setting.
            exclude_special_tokens: must be False.

        Raises:
            ValueError: the SAE names no hook, or one that the model has not; or tokens were to be excluded.
        """
        if exclude_special_tokens is not False:
            raise must_be("exclude_special_tokens", "False, as no token of an image has an id", exclude_special_tokens)
        names = [sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out]
        if not names[0]:
            raise ValueError("The SAE does not say where it belongs: its metadata has no hook_name.")
        for name in filter(None, names):
            if name not in self._acts_to_saes and self.resolve_hook_name(name) != name:
                raise ValueError(
                    f"The SAE's hook {name!r} is written in a short form; set it to "
                    f"{self.resolve_hook_name(name)!r} before attaching it."
                )
        HookedSAETransformer.add_sae(self, sae, use_error_term)  # type: ignore[arg-type]

    # They touch nothing but hook points, so they are taken from SAELens as they are.
    acts_to_saes = HookedSAETransformer.acts_to_saes
    reset_saes = HookedSAETransformer.reset_saes
    saes = HookedSAETransformer.saes
    run_with_saes = HookedSAETransformer.run_with_saes
    run_with_cache_with_saes = HookedSAETransformer.run_with_cache_with_saes
    run_with_hooks_with_saes = HookedSAETransformer.run_with_hooks_with_saes
    _reset_sae = HookedSAETransformer._reset_sae

    def preprocess(self, images: Image.Image | list[Image.Image]) -> torch.Tensor:
        """Resize, crop and normalise images of any mode and size as the model expects.

        Returns:
            `(batch, channel, height, width)`, float32, on the CPU.

        Raises:
            ValueError: the model came without an image processor.
        """
        if self.image_processor is None:
            raise ValueError("This model has no image processor; give one to HookedViT(..., image_processor=...).")
        images = images if isinstance(images, list) else [images]
        return self.image_processor([as_rgb(image) for image in images], return_tensors="pt")["pixel_values"]

    def _image_size(self, configured: int | list[int]) -> tuple[int, int]:
        """Height and width of what the image processor makes of images: DINOv2's are not what it is configured for."""
        height, width = (configured, configured) if isinstance(configured, int) else configured
        if self.image_processor is not None:
            height, width = self.preprocess(Image.new("RGB", (width, height))).shape[-2:]
        return height, width

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Text embeddings `(n_texts, d_embed)` of a whole CLIP or SigLIP model, not normalised.

        Raises:
            ValueError: the model has no text tower or came without a tokenizer.
        """
        if not hasattr(self.model, "text_model") or self.tokenizer is None:
            raise ValueError(
                "Text needs a whole CLIP or SigLIP model and its tokenizer; "
                f"this is a {type(self.model).__name__} with tokenizer {self.tokenizer!r}."
            )
        # SigLIP was trained on padded texts and reads its embedding from the last position.
        padding = "max_length" if self.family.head == "head" else True
        tokens = self.tokenizer(texts, padding=padding, truncation=True, return_tensors="pt").to(self.device)
        return self.model.get_text_features(**tokens).pooler_output

    def zero_shot_logits(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Scaled cosine similarities `(n_images, n_texts)`, with the model's learned scale (and SigLIP's
        bias).

        Args:
            image_embeds: `(n_images, d_embed)`, from `forward`.
            text_embeds: `(n_texts, d_embed)`, from `encode_text`.

        Raises:
            ValueError: the model was not trained on pairs of images and texts.
        """
        if not hasattr(self.model, "logit_scale"):
            raise ValueError(
                f"Zero-shot logits need a whole CLIP or SigLIP model; this is a {type(self.model).__name__}."
            )
        image_embeds = image_embeds / image_embeds.norm(dim=-1, keepdim=True)
        text_embeds = text_embeds / text_embeds.norm(dim=-1, keepdim=True)
        return image_embeds @ text_embeds.T * self.model.logit_scale.exp() + getattr(self.model, "logit_bias", 0)
