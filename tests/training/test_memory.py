"""Freed memory is kept: a large tensor made again costs no page faults."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from sae_lens_sparsemax.cli.main import keep_freed_memory
def faults_of_last_tensor():
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 * 2**20)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return after - before
print(faults_of_last_tensor())
assert keep_freed_memory()
print(faults_of_last_tensor())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_is_reused_only_when_asked_for():
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    plain.pop("THP_MEM_ALLOC_ENABLE", None)
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=plain)
    before, after = map(int, out.stdout.split())
    assert before > 1000
    assert after < 100


def test_the_users_own_tuning_is_left_alone(monkeypatch):
    from sae_lens_sparsemax.cli.main import keep_freed_memory

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()
