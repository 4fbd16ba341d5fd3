"""The evaluation benchmark on a tiny SAE: what it runs and prints."""

import re

from tests.benchmark.evaluation import main


def test_every_token_is_evaluated_and_memory_reported(capsys):
    main(["--images", "6", "--tokens", "200", "--d_in", "16", "--d_sae", "64", "--gate_scale", "3"])
    printed = capsys.readouterr().out
    assert "64 concepts, 1,200 tokens, L0 " in printed
    l0, peak, before = (float(x) for pair in re.findall(r"L0 ([\d.]+)|([\d.]+) GB", printed) for x in pair if x)
    assert 1 <= l0 <= 64
    assert 0 < before <= peak < 20
