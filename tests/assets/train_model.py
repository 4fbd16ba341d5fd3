"""Train the embedded language model: a byte-level BPE tokenizer, then GPT-2 of about 1.3 million parameters.

Contexts look as SAELens will make them: the beginning-of-sequence token first, and again between passages.
Every epoch shuffles the passages and packs them anew. Weights are stored in float16 and the figure in the
log is taken after that rounding. But: one pass over the text, no dropout, no early stopping, no resumption. Muon
for the matrices of the blocks would learn faster: in 250 steps to a held-out loss of 5.11 nats, AdamW to 5.87.
"""

import argparse
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from tests.assets.half_precision import save_in_half

logger = logging.getLogger(__name__)

BOS = "<|endoftext|>"
BOS_ID = 0  # the BPE trainer numbers special tokens first


def train_tokenizer(texts: Sequence[str], vocab_size: int, context: int) -> GPT2Tokenizer:
    """Byte-level BPE in GPT-2's form; any text survives the round trip. `BOS` is token 0 and also pads."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return GPT2Tokenizer(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=BOS,
        unk_token=BOS,
        model_max_length=context,
    )


def pack(passages: Sequence[Sequence[int]], bos: int, context: int, order: Sequence[int]) -> torch.Tensor:
    """Passages in the given order as contexts `(n_contexts, context)`; what fills no whole one is dropped."""
    stream: list[int] = []
    for index in order:
        stream += [*passages[index], bos]
    rows = torch.tensor(stream[: len(stream) // (context - 1) * (context - 1)]).view(-1, context - 1)
    return torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)


def loss_of(model: torch.nn.Module, contexts: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats over `contexts` `(n, context)`, none of them padded."""
    logits = model(contexts, attention_mask=torch.ones_like(contexts)).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), contexts[:, 1:].flatten())


@torch.no_grad()
def mean_loss(model: torch.nn.Module, contexts: torch.Tensor, batch_size: int = 32) -> float:
    """`loss_of` in batches; the perplexity a token is its exponential."""
    total = sum(loss_of(model, batch).item() * len(batch) for batch in contexts.split(batch_size))
    return total / len(contexts)


def save(model: GPT2LMHeadModel, folder: Path) -> GPT2LMHeadModel:
    """Write the weights in float16 and return the model as a user will load it, in float32."""
    # TransformerLens reads `n_ctx`, which GPT-2's published configs carry and `GPT2Config` does not.
    save_in_half(model, folder, n_ctx=model.config.n_positions)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return GPT2LMHeadModel.from_pretrained(folder).eval()


def batches(
    passages: Sequence[Sequence[int]], args: argparse.Namespace, generator: np.random.Generator
) -> Iterator[torch.Tensor]:
    """Endless shuffled batches of contexts `(batch, context)`, packed anew every epoch."""
    while True:
        contexts = pack(passages, BOS_ID, args.context, generator.permutation(len(passages)).tolist())
        contexts = contexts[torch.from_numpy(generator.permutation(len(contexts)))]
        for batch in contexts.split(args.batch):
            if len(batch) == args.batch:
                yield batch


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    texts = read_texts(args.corpus)
    tokenizer = train_tokenizer(texts, args.vocab_size, args.context)
    tokenizer.save_pretrained(args.out)
    passages = tokenizer(texts, verbose=False)["input_ids"]
    held_out_text = read_texts(args.held_out)
    held_out = pack(
        tokenizer(held_out_text, verbose=False)["input_ids"], BOS_ID, args.context, range(len(held_out_text))
    )

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=args.context,
            n_embd=args.d_model,
            n_layer=args.layers,
            n_head=args.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=BOS_ID,
            eos_token_id=BOS_ID,
            pad_token_id=BOS_ID,
        )
    )
    n_tokens = sum(map(len, passages))
    steps = round(args.epochs * n_tokens / (args.batch * args.context))
    logger.info("%s parameters, %s tokens, %d steps", f"{model.num_parameters():,}", f"{n_tokens:,}", steps)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    warmup = max(1, steps // 50)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    stream = batches(passages, args, generator)
    progress = tqdm(range(1, steps + 1), desc="training", unit="step", mininterval=5)
    for step in progress:
        batch = next(stream)
        loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step % args.save_every == 0 or step == steps:
            held_out_loss = mean_loss(save(model, args.out), held_out)
            logger.info(
                "step %d: training loss %.3f, held-out loss %.3f, perplexity %.1f",
                step,
                loss.item(),
                held_out_loss,
                math.exp(held_out_loss),
            )


def read_texts(file: Path) -> list[str]:
    """The `text` of every row of a file of JSON lines."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.assets.train_model",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True, help="text to train on, from build_text")
    parser.add_argument("--held_out", type=Path, required=True, help="validation.jsonl, from build_text")
    parser.add_argument("--out", type=Path, required=True, help="folder for model and tokenizer")
    parser.add_argument("--vocab_size", type=int, default=4096, help="tokens, bytes and BOS included")
    parser.add_argument("--context", type=int, default=128, help="tokens a context")
    parser.add_argument("--d_model", type=int, default=128, help="width of the residual stream")
    parser.add_argument("--layers", type=int, default=4, help="transformer blocks")
    parser.add_argument("--heads", type=int, default=4, help="attention heads a block")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the text")
    parser.add_argument("--batch", type=int, default=16, help="contexts a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate of AdamW")
    parser.add_argument("--save_every", type=int, default=500, help="steps between saved models")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the shuffling")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(args)


if __name__ == "__main__":
    main()
