"""Peak memory of an evaluation does not grow with what is evaluated: measured in processes of their own."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens_sparsemax.evaluation.geometry import evaluate_geometry
from sae_lens_sparsemax.evaluation.monosemanticity import evaluate_monosemanticity
from sae_lens_sparsemax.evaluation.sparsity import l0_of_images

n_batches = int(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
sae = TopKSAE(TopKSAEConfig(d_in=64, d_sae=4_096, k=16))

def images():
    for seed in range(n_batches):
        yield torch.randn(20, 50, 64, generator=torch.Generator().manual_seed(seed))

measured = evaluate_geometry(sae, images(), level="image", cknna_batch_size=64)
assert measured.reconstruction.n_tokens == 20 * n_batches
assert l0_of_images(sae, images()).per_token.n == 1000 * n_batches
evaluate_monosemanticity(sae, ((acts, acts[:, 0]) for acts in images()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_bytes(n_batches: int) -> int:
    command = [sys.executable, "-c", SCRIPT, str(n_batches)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return 1024 * int(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_peak_memory_does_not_grow_with_the_number_of_images():
    few, many = peak_bytes(4), peak_bytes(16)
    # All activations of the 12 batches more would take 200 MB dense, and the tokens themselves 3 MB.
    assert many - few < 40e6
