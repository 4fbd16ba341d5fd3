"""A random language model with a word-level tokenizer, saved as a folder that transformers loads offline."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(60)]


def save_tiny_llama(folder: Path, d_model: int = 16, n_layers: int = 2) -> Path:
    """Save a random Llama of `n_layers` layers over 62 tokens, <s> being token 0."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def documents(n: int, seed: int = 0, words_each: int = 40) -> list[str]:
    """Documents of random words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words_each)) for _ in range(n)]
