"""Train the embedded vision model: a CLIP of about 0.6 million parameters on drawings and their captions.

A batch holds one new drawing of every class against the captions of all of them, so no two pairs of a batch are the
same and none is seen twice. Weights are stored in float16 and the figure in the log is taken after that rounding.
But: no dropout, no early stopping, no resumption, and a text tower that knows twenty words.
"""

import argparse
import logging
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from sae_lens_sparsemax.data.drawings import CAPTION, CLASSES, COLOURS, SHAPES, SIZE, drawing, quickstart_images
from sae_lens_sparsemax.data.images import encoded_images
from sae_lens_sparsemax.data.labelled_images import LabelledImages
from sae_lens_sparsemax.evaluation.classification import contrastive_loss, text_prototypes
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from tests.assets.half_precision import save_in_half

logger = logging.getLogger(__name__)

_LONGEST_CAPTION = 8  # tokens: six words between the beginning and the end


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, `<pad>` 0 and `<bos>` 1 first, `<eos>` last; unknown words are left as `<pad>`."""
    words = ["<pad>", "<bos>", *CAPTION.format("").split(), *COLOURS, *SHAPES, "<eos>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    ends = [("<bos>", vocabulary["<bos>"]), ("<eos>", vocabulary["<eos>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<pad>",
        model_max_length=_LONGEST_CAPTION,
    )


def new_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """A CLIP with random weights."""
    vision = {
        "hidden_size": args.d_model,
        "intermediate_size": 4 * args.d_model,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "image_size": SIZE,
        "patch_size": args.patch,
    }
    text = {
        "hidden_size": args.d_text,
        "intermediate_size": 4 * args.d_text,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": _LONGEST_CAPTION,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=args.d_text))


def held_out_accuracy(folder: Path, n_images: int = 640) -> float:
    """Zero-shot accuracy of a saved model on the drawings held out for evaluation."""
    model = HookedViT.from_pretrained(str(folder))
    data = encoded_images(quickstart_images("validation", n_images), "image")
    ((pixels, labels),) = LabelledImages(data, model.image_processor, n_images)
    prototypes = text_prototypes(model.encode_text, CLASSES, [CAPTION])
    with torch.no_grad():
        logits = model.zero_shot_logits(model(pixels), prototypes)  # type: ignore[arg-type]
    return (logits.argmax(-1) == labels).double().mean().item()


def train(args: argparse.Namespace) -> float:
    """Train, save, and return the accuracy of what was saved on held-out drawings."""
    torch.manual_seed(args.seed)
    tokenizer, processor = make_tokenizer(), CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE)
    tokenizer.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    model = new_model(args, tokenizer)
    logger.info("%s parameters", f"{model.num_parameters():,}")
    captions = tokenizer([CAPTION.format(name) for name in CLASSES], padding=True, return_tensors="pt")
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    warmup = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps))),
    )
    last = min(args.steps, args.stop_at)
    progress = tqdm(range(last), desc="training", unit="step", mininterval=5)
    for step in progress:
        images = [drawing("model", step * len(CLASSES) + label)[0] for label in range(len(CLASSES))]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        loss = contrastive_loss(model(pixel_values=pixels, **captions).logits_per_image)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # as CLIP does, or the loss becomes unstable
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if (step + 1) % args.save_every == 0 or step + 1 == last:
            save_in_half(model, args.out)
            logger.info(
                "step %d: loss %.3f, held-out accuracy %.3f", step + 1, loss.item(), held_out_accuracy(args.out)
            )
    return held_out_accuracy(args.out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.assets.train_clip",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for model, tokenizer and image processor")
    parser.add_argument("--steps", type=int, default=2500, help="batches of one drawing per class")
    parser.add_argument(
        "--stop_at", type=int, default=1500, help="step to stop at, before the rate has fallen to its end"
    )
    parser.add_argument("--d_model", type=int, default=96, help="width of the vision tower")
    parser.add_argument("--layers", type=int, default=4, help="transformer blocks of the vision tower")
    parser.add_argument("--heads", type=int, default=4, help="attention heads a block")
    parser.add_argument("--patch", type=int, default=8, help="pixels along a patch")
    parser.add_argument("--d_text", type=int, default=64, help="width of the text tower and of the joint space")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate of AdamW")
    parser.add_argument("--save_every", type=int, default=500, help="steps between saved models")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(args)


if __name__ == "__main__":
    main()
