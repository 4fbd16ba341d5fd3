"""python -m tests.benchmark.evaluation: time and memory of evaluating an SAE on many images.

But: concepts and activations are random, so that it needs no model; every image's tokens have a part in common.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from sae_lens_sparsemax.evaluation.geometry import evaluate_geometry
from sae_lens_sparsemax.sae.config import SparsemaxSAEConfig
from sae_lens_sparsemax.sae.inference import SparsemaxSAE
from tests.benchmark.machine import machine
from tests.benchmark.measure import peak_bytes

_IMAGES_AT_A_TIME = 4


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.evaluation", description=__doc__)
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--tokens", type=int, default=197, help="tokens of an image (default 197)")
    parser.add_argument("--d_in", type=int, default=768, metavar="D")
    parser.add_argument("--d_sae", type=int, default=49_152, metavar="M")
    parser.add_argument("--gate_scale", type=float, default=12.0, help="larger for fewer concepts per token")
    args = parser.parse_args(arguments)
    sae = random_sae(args.d_in, args.d_sae, args.gate_scale)
    before, started = peak_bytes(), time.process_time()
    measured = evaluate_geometry(sae, _images(args.images, args.tokens, args.d_in)).reconstruction
    sys.stdout.write(
        f"{machine('cpu')}\n"
        f"{args.d_sae:,} concepts, {measured.n_tokens:,} tokens, L0 {measured.l0:.1f}: "
        f"{time.process_time() - started:.0f} s of processor time; peak memory of the process "
        f"{peak_bytes() / 1e9:.2f} GB, {before / 1e9:.2f} GB with the SAE alone\n"
    )


def random_sae(d_in: int, d_sae: int, gate_scale: float) -> SparsemaxSAE:
    """An SAE whose concepts are random unit vectors."""
    torch.manual_seed(0)
    sae = SparsemaxSAE(SparsemaxSAEConfig(d_in=d_in, d_sae=d_sae, gate_scale=gate_scale))
    with torch.no_grad():
        sae.W_dec.copy_(normalize(torch.randn_like(sae.W_dec), dim=-1))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def _images(n_images: int, n_tokens: int, d_in: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    with tqdm(total=n_images, unit="image") as bar:
        for start in range(0, n_images, _IMAGES_AT_A_TIME):
            n = min(_IMAGES_AT_A_TIME, n_images - start)
            shared = torch.randn(n, 1, d_in, generator=generator)
            yield shared + 0.7 * torch.randn(n, n_tokens, d_in, generator=generator)
            bar.update(n)


if __name__ == "__main__":
    main()
