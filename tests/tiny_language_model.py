"""A GPT-2 with random weights and a byte-level tokenizer, small enough to train an SAE on in a second."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

D_MODEL = 16
N_LAYERS = 2
HOOK_NAME = "blocks.0.hook_out"
END_OF_TEXT = "<|endoftext|>"


def save_tiny_language_model(folder: Path) -> Path:
    """Write the model and its tokenizer as a Hugging Face folder; the same weights every time."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([END_OF_TEXT, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(vocabulary),
                n_positions=64,
                n_embd=D_MODEL,
                n_layer=N_LAYERS,
                n_head=2,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    model.save_pretrained(folder)
    return folder
