"""Many random rows through screening: the supports of their float32 scores by a float64 sort, row for row.

`TRIAL_ROWS` says how many.
"""

import math
import os
import random

import pytest
import torch

from sae_lens_sparsemax.attention import screening
from tests.attention.test_entmax import ALPHAS, support_by_definition
from tests.attention.test_screening import PAIRS, rescored, screened

N_ROWS = int(os.environ.get("TRIAL_ROWS", "20000"))
# A GPU, where there is one, takes many rows at once.
DEVICE, ROWS_AT_ONCE = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 256)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_no_row_of_many_differs(monkeypatch):
    monkeypatch.setattr(screening, "MAX_CANDIDATES", 1.0)
    n_rows = n_unscreened = 0
    for seed in range(10**9):
        if n_rows >= N_ROWS:
            break
        torch.manual_seed(seed)
        drawn = random.Random(seed)
        name, alpha, m = drawn.choice(sorted(PAIRS)), drawn.choice(ALPHAS), drawn.randint(1, 300)
        query, keys = (each.to(DEVICE) for each in PAIRS[name](ROWS_AT_ONCE, m, drawn.randint(1, 24)))
        keys = keys * 10.0 ** drawn.choice([0, 0, 0, *range(-30, 31)])
        if not bool(keys.isfinite().all()):
            continue
        spread = float(rescored(query, keys, None).double().std(correction=0)) or 1.0
        bias = drawn.choice([None, None, 0.01, 1.0, 100.0])
        noise = torch.randn(m, device=DEVICE)
        shift = None if bias is None or not math.isfinite(spread * bias) else (bias * spread * noise).float()
        size = 30 if math.isinf(alpha) else min(max(spread, 1e-30), 1e30) ** (1 / (alpha - 1))
        budget = drawn.choice([1e-3, 0.1, 1.0, 10.0]) * size
        support = screened(query, keys, shift, budget, alpha)
        if support is None:  # too large to be screened
            n_unscreened += len(query)
            continue
        expected = support_by_definition(rescored(query, keys, shift), budget, alpha)
        found = torch.stack([support.row, support.col], 1)
        assert torch.equal(found, expected.nonzero()), (seed, name, alpha, budget)
        n_rows += len(query)
    assert n_rows >= N_ROWS
    print(f"{n_rows} rows through screening, {n_unscreened} too large for it")
