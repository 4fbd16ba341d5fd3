"""What several ranks will need, worked out by hand for a small configuration."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from sae_lens.saes.sae import TrainStepInput
from torch.distributed.device_mesh import init_device_mesh

from sae_lens_sparsemax import SparsemaxTrainingSAE
from sae_lens_sparsemax.attention import selection, shards
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.processes.together import join
from sae_lens_sparsemax.sae import folding
from sae_lens_sparsemax.training import estimate
from sae_lens_sparsemax.training.config_file import config_from_values, load_config
from sae_lens_sparsemax.training.estimate import (
    available_memory,
    collectives,
    described,
    final_sae,
    memory,
    require_room_for_final_sae,
    sizes,
)
from sae_lens_sparsemax.training.mesh import ParallelConfig, tokens_per_rank
from tests.support.started_ranks import StartedRanks

D, M, N_TOKENS = 16, 100, 64


def config(data: int, concepts: int, **sae):
    return config_from_values(
        {
            "model_name": "m", "hook_name": "h", "dataset_path": "d", "context_size": 32,
            "train_batch_size_tokens": N_TOKENS, "training_tokens": 64_000, "n_batches_in_buffer": 10,
            "parallel": {"data": data, "concepts": concepts},
            "sae": {"d_in": D, "d_sae": M, "target_l0": 4} | sae,
        }
    ).config  # fmt: skip


def test_a_rank_holds_its_concepts_and_all_else_whole():
    at = sizes(config(1, 8))
    assert (at.n, at.N, at.m) == (8, 64, 13)
    maps = 4 * D * D  # W_k, W_v and two turns
    assert at.divided == 13 * D and at.replicated == maps + D
    assert memory(config(1, 8))["weights, gradients, Adam's averages"] == 16 * (13 * D + maps + D)
    cfg = config(1, 8)
    cfg.parallel = ParallelConfig(1, 8, async_checkpoints=True)
    assert sum(memory(cfg).values()) - sum(memory(config(1, 8)).values()) == 12 * (13 * D + maps + D)
    with pytest.raises(ValueError, match="parallel.async_checkpoints must be false in one process, got True"):
        ParallelConfig(async_checkpoints=True)
    mlp = sizes(config(2, 4, structure="mlp"))
    assert mlp.divided == 25 * (2 * D + 1) and mlp.N == 32
    assert sizes(config(2, 4, encoder_bias=True)).divided == 25 * (D + 1)


def test_numbers_that_the_method_has_are_those_of_the_method():
    assert estimate._CUTS == shards._CUTS
    assert selection.BLOCK_SCORES["cuda"] == estimate._SCORES_AT_A_TIME
    assert estimate._CONCEPTS_FOLDED_AT_A_TIME == folding._CONCEPTS_OF_A_BLOCK
    for dtype in (torch.float32, torch.float64):
        largest = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
        rounds = shards._rounds(shards._ordered(-largest), shards._ordered(largest))
        assert estimate._ROUNDS[dtype.itemsize] == rounds


def received(cfg) -> dict[str, tuple[str, int, int]]:
    return {each.what: (each.axis, each.calls, each.n_bytes) for each in collectives(cfg)}


def test_what_travels_between_ranks_is_counted():
    found = received(config(1, 4))
    assert found["all-gather of queries"] == ("concepts", 3, 3 * 4 * N_TOKENS * (D + 1) * 3 // 4)
    assert found["reduce-scatter of contexts"] == ("concepts", 3, 3 * 4 * N_TOKENS * D * 3 // 4)
    assert found["all-reduce of the costs of 7 cuts"] == ("concepts", 22, 22 * 56 * N_TOKENS * 2 * 3 // 4)
    assert found["all-reduce of the other gradients"] == ("all", 1, 4 * (4 * D * D + D) * 2 * 3 // 4)
    assert not any(axis == "data" for axis, *_ in found.values())
    one_look = received(config(1, 4, passes=1, refinements=0))
    assert one_look["all-gather of queries"][1] == 1 and one_look["all-reduce of the costs of 7 cuts"][1] == 11
    assert received(config(4, 1))["all-reduce of the concepts' gradient"] == ("data", 1, 4 * M * D * 2 * 3 // 4)
    of_concepts = received(config(4, 1, floor_of="concept"))
    assert of_concepts["all-reduce of mean activations"] == ("data", 1, 8 * M * 2 * 3 // 4)


def travelling(cfg, folder: Path) -> None:
    """One step on random tokens: what each kind of message between ranks that share the concepts comes to."""
    assert join()
    found: dict[str, list[int]] = {}

    def counted(kind, send):
        def counting(*args, **kwargs):
            tensors = [each for each in args if isinstance(each, torch.Tensor)]
            size = max(each.numel() * each.element_size() for each in tensors)
            found.setdefault(kind, []).append(size)
            return send(*args, **kwargs)

        return counting

    mesh = init_device_mesh("cpu", (1, cfg.parallel.concepts), mesh_dim_names=("data", "concepts"))
    torch.manual_seed(0)
    sae = SparsemaxTrainingSAE(cfg.sae)
    sae.shard(mesh)
    acts = torch.randn(tokens_per_rank(cfg), D, generator=torch.Generator().manual_seed(dist.get_rank()))
    for _ in range(2):  # the first step makes b_dec
        found.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "_all_gather", counted("gather", shards._all_gather))
            patch.setattr(shards, "_reduce_scatter", counted("scatter", shards._reduce_scatter))
            patch.setattr(dist, "all_reduce", counted("reduce", dist.all_reduce))
            sae.training_forward_pass(TrainStepInput(acts, {}, None, 1, False)).loss.backward()
    if dist.get_rank() == 0:
        (folder / "found").write_text(json.dumps(found))


ONE_LOOK = {"passes": 1, "refinements": 0, "activation_floor": 0.0}


@pytest.mark.parametrize("look", [{}, pytest.param(ONE_LOOK, marks=pytest.mark.slow)], ids=["default", "one"])
def test_a_step_sends_what_was_counted(tmp_path, look):
    cfg = config(1, 2, **look)
    ranks = StartedRanks(2, tmp_path / "printed", travelling, cfg, tmp_path)
    assert ranks.wait() == [0, 0], ranks.printed()
    found = json.loads((tmp_path / "found").read_text())
    told = {name: (calls, n_bytes) for name, (axis, calls, n_bytes) in received(cfg).items() if axis == "concepts"}

    def of(*names):
        return sum(told[name][0] for name in names), sum(told[name][1] for name in names)

    # A rank of two receives half of what is gathered or scattered, and all of what is reduced.
    gathered = of("all-gather of queries", "backwards, all-gather of contexts")
    scattered = of("reduce-scatter of contexts", "backwards, reduce-scatter of queries")
    assert (len(found["gather"]), sum(found["gather"]) // 2) == gathered
    assert (len(found["scatter"]), sum(found["scatter"]) // 2) == scattered
    per_round = 8 * 7 * N_TOKENS
    rounds = found["reduce"].count(per_round)
    assert 0 < rounds <= 2 * told["all-reduce of the costs of 7 cuts"][0]
    others = [size for size in found["reduce"] if size != per_round and size > 64]
    assert (len(others), sum(others)) == of("all-reduce of the largest and least scores", "all-reduce of counts")


def test_both_axes_move_about_the_same_where_one_look_at_twice_the_batch_of_concepts_is_taken():
    """The design's rule: tokens travel cheaper than gradients from M = 2 N on."""
    look = {"d_in": 64, "d_sae": 2 * 4096, "passes": 1, "refinements": 0}

    def total(data, concepts, kinds):
        values = {"model_name": "m", "hook_name": "h", "dataset_path": "d", "training_tokens": 10**6, "sae": look}
        values |= {"train_batch_size_tokens": 4096, "n_batches_in_buffer": 64}
        cfg = config_from_values(values | {"parallel": {"data": data, "concepts": concepts}}).config
        return sum(each.n_bytes for each in collectives(cfg) if any(kind in each.what for kind in kinds))

    tokens = total(1, 8, ["queries", "contexts"])
    assert tokens == pytest.approx(total(8, 1, ["concepts' gradient"]), rel=0.02)


def test_the_first_rank_is_asked_for_the_memory_of_the_final_sae(monkeypatch, capsys):
    folded = M * D  # of the encoder; and of the decoder
    cfg = config(1, 2)
    assert final_sae(cfg) == 4 * (M * D + 4 * D * D + D) + 4 * 2 * folded + 8 * 3 * M * D
    assert final_sae(config(1, 2, structure="mlp")) == pytest.approx(4 * (M * (2 * D + 1) + folded), abs=4 * 4 * D * D)
    assert available_memory() is None or available_memory() > 2**20
    monkeypatch.setattr(estimate, "available_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"sae.d_sae must be at most about \d, whose final SAE .* 1 kB .* got 100"):
        require_room_for_final_sae(cfg)
    words = ["train", "gpt2_1m_concepts_8_gpus", "--dry_run"]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert "sae.d_sae must be at most about 0, whose final SAE" in printed.err and "Estimate for 8" in printed.out


@pytest.mark.parametrize("recipe", ["gpt2_1m_concepts_8_gpus", "clip_1m_concepts_2_nodes"])
def test_recipes_for_many_devices_tell_what_each_needs(recipe):
    loaded = load_config(recipe)
    lines = loaded.describe().splitlines()
    estimate = lines[next(n for n, line in enumerate(lines) if line.startswith("# Estimate for")) :]
    assert all(line.startswith("#") for line in estimate)
    assert "not measured" in estimate[0] and "ms a step" in estimate[-1]
    assert 2e9 < sum(memory(loaded.config).values()) < 1e10


def test_without_the_width_the_estimate_says_what_is_missing():
    lines = list(described(config(2, 1, d_in=0)))
    assert lines[-1] == (
        "None can be made: sae.d_in must be given for an estimate: the width of the activations at the hook, got 0."
    )
