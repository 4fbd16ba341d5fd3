"""Several processes that train one SAE: they meet, agree, and each reads data of its own."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TopKTrainingSAEConfig
from sae_lens.config import LanguageModelSAERunnerConfig

from sae_lens_sparsemax import SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.data.texts import part_of_document
from sae_lens_sparsemax.processes.together import join, together
from sae_lens_sparsemax.settings.command_line import settings_help
from sae_lens_sparsemax.training.cache_runner import cache_activations
from sae_lens_sparsemax.training.checkpoints import differing_settings, output_of_run
from sae_lens_sparsemax.training.config import SyntheticRunnerConfig
from sae_lens_sparsemax.training.config_file import config_from_values, settings_of
from sae_lens_sparsemax.training.mesh import ParallelConfig
from sae_lens_sparsemax.training.synthetic_runner import SyntheticTrainingRunner
from sae_lens_sparsemax.training.text_runner import TextTrainingRunner
from sae_lens_sparsemax.training.vision_runner import VisionSAETrainingRunner
from tests.support import tiny_training
from tests.support.started_ranks import StartedRanks
from tests.support.tiny_language_model import documents
from tests.training.test_text_runner import BATCH, make_config

TEXT = {"model_name": "m", "hook_name": "h", "dataset_path": "d", "n_batches_in_buffer": 32, "sae": {"d_sae": 8}}


# What a configuration says


def test_the_settings_are_a_group_of_every_run_that_can_be_shared(tmp_path):
    text = config_from_values({**TEXT, "parallel": {"data": 2, "concepts": 4}}).config
    assert text.parallel == ParallelConfig(2, 4) and text.parallel.size == 8
    assert text.to_dict()["parallel"] == {"data": 2, "concepts": 4, "async_checkpoints": False}
    tiny_training.make_files(tmp_path)
    images = tiny_training.config(tmp_path, "sparsemax", parallel=ParallelConfig(concepts=2))
    assert type(images).from_dict(json.loads(json.dumps(images.to_dict()))).parallel == ParallelConfig(1, 2)
    assert config_from_values(TEXT).config.parallel.size == 1
    for word in ("--parallel.data N", "--parallel.concepts N", "--parallel.async_checkpoints"):
        assert word in settings_help(settings_of("quickstart"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": {"data": 0}}, "parallel.data must be at least 1, got 0"),
        ({"parallel": {"concept": 2}}, "parallel.concept is not a valid key; did you mean parallel.concepts?"),
        ({"parallel": {"data": "two"}}, "parallel.data must be a whole number, got 'two'"),
        (
            {"parallel": {"data": 3}, "train_batch_size_tokens": 4096},
            "train_batch_size_tokens must be divisible by the 3 processes",
        ),
        (
            {"parallel": {"data": 2}, "sae": {"architecture": "topk", "d_sae": 8, "k": 2}},
            "sae.architecture must be 'sparsemax' on several ranks, got 'topk'",
        ),
        (
            {"parallel": {"concepts": 2}, "sae": {"d_sae": 8, "gate": "relu", "target_l0": None}},
            "sae.gate must be 'sparsemax' where ranks share the concepts, got 'relu'",
        ),
        ({"parallel": {"concepts": 2}, "compile_sae": True}, "compile_sae must be false on several ranks, got True"),
    ],
)
def test_a_group_that_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(ValueError) as error:
        config_from_values({**TEXT, **changes})
    assert message in str(error.value)


def test_a_buffer_has_to_hold_the_tokens_of_one_rank_alone():
    few = {**TEXT, "context_size": 128, "n_batches_in_buffer": 4, "train_batch_size_tokens": 1024}
    with pytest.raises(ValueError, match="n_batches_in_buffer must be at least 8"):
        config_from_values(few)
    assert config_from_values({**few, "parallel": {"data": 2}}).config.n_batches_in_buffer == 4


def test_a_run_may_be_resumed_on_another_mesh(tmp_path):
    config = config_from_values({**TEXT, "parallel": {"data": 2}}).config
    (tmp_path / "runner_cfg.json").write_text(json.dumps(config.to_dict()))
    assert differing_settings(tmp_path, config_from_values({**TEXT, "parallel": {"concepts": 4}}).config) == []


def test_one_process_cannot_do_the_work_of_several(tmp_path):
    with pytest.raises(ValueError, match="must be the number of processes, 1, which torchrun .* starts, got 2"):
        TextTrainingRunner(text_config(tmp_path, tmp_path, tmp_path))


# What two ranks do; they are started once


def undivided(self, mesh) -> None:
    """In place of `shard`, for what is read rather than trained."""


def outcome(work, *args):
    """A value, or the name and words of what is raised."""
    try:
        return work(*args)
    except BaseException as error:
        return type(error).__name__, str(error)


def fail_on(ranks: tuple[int, ...]) -> str:
    with together():
        if (rank := torch.distributed.get_rank()) in ranks:
            raise ValueError(f"wrong on {rank}")
    return "went on"


def resumed_from(folder: Path) -> str | None:
    cfg = config_from_values({**TEXT, "output_path": str(folder)}).config
    with output_of_run(cfg, resume=True):
        return cfg.resume_from_checkpoint


def text_read(cfg):
    runner = TextTrainingRunner(cfg)
    texts = [row["text"] for row in runner.activations_store.dataset]
    weights = sum(each.detach().double().sum().item() for each in runner.sae.parameters())
    return texts, next(runner.activations_store), weights, runner.ranks.mesh.shape


def images_read(cfg):
    store = VisionSAETrainingRunner(cfg).activations_store
    return torch.cat([next(store), next(store)]), store.n_inputs


def of_rank(make, cfgs):
    return make(cfgs[torch.distributed.get_rank()])


def all_of(works: dict[str, tuple[Any, ...]], folder: Path) -> None:
    """Do each piece of work as one of the ranks, and leave what it came to in a file."""
    SparsemaxTrainingSAE.shard = undivided
    assert join()
    found = {name: outcome(*work) for name, work in works.items()}
    (folder / f"rank-{torch.distributed.get_rank()}").write_bytes(pickle.dumps(found))


def text_config(model, text, output, **changes):
    sae = SparsemaxTrainingSAEConfig(d_in=0, d_sae=32, target_l0=4)
    return make_config(model, text, output, **({"sae": sae, "parallel": ParallelConfig(2, 1)} | changes))


REFUSED = {
    "parallel.data × parallel.concepts must be the number of processes, 2,": {"parallel": ParallelConfig()},
    "which torchrun --nproc-per-node starts, got 4": {"parallel": ParallelConfig(2, 2)},
}


@pytest.fixture(scope="module")
def results(tiny_model_folder, tmp_path_factory) -> dict[str, list[Any]]:
    """What each piece of work came to, on both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "resumed" / "checkpoints" / "300").mkdir(parents=True)
    lines = [json.dumps({"text": text}) + "\n" for text in documents(25)]
    (folder / "texts.jsonl").write_text("".join(lines))
    (folder / "one.jsonl").write_text(lines[0])
    tiny_training.make_files(folder)
    cache = {"cached_activations_path": str(folder / "cache")}
    cache_activations(tiny_training.config(folder, "sparsemax", **cache))

    def text(name="texts", **changes):
        return text_config(tiny_model_folder, folder / f"{name}.jsonl", folder, **changes)

    def images(**changes):
        return tiny_training.config(folder, "sparsemax", parallel=ParallelConfig(1, 2), **changes)

    def without_model(**changes):  # which is missed later
        return text_config(folder / "no-model", folder / "texts.jsonl", folder, **changes)

    host = LanguageModelSAERunnerConfig(sae=TopKTrainingSAEConfig(d_in=0, d_sae=32, k=4), dataset_path="d")
    works = {
        "nobody fails": (fail_on, ()),
        "the second fails": (fail_on, (1,)),
        "both fail": (fail_on, (0, 1)),
        "resume": (resumed_from, folder / "resumed"),
        "resume from nothing": (resumed_from, folder / "nothing"),
        **{message: (TextTrainingRunner, without_model(**changes)) for message, changes in REFUSED.items()},
        "other lr": (of_rank, TextTrainingRunner, [without_model(), without_model(lr=2e-2)]),
        "other path": (of_rank, TextTrainingRunner, [without_model(), without_model(output_path="o")]),
        "synthetic": (SyntheticTrainingRunner, SyntheticRunnerConfig.__new__(SyntheticRunnerConfig)),
        "host": (TextTrainingRunner, host),
        "table": (text_read, text(held_out_fraction=0.1)),
        "stream": (text_read, text(held_out_fraction=0.1, streaming=True)),
        "one text": (text_read, text("one")),
        "one text streamed": (text_read, text("one", streaming=True)),
        "images": (images_read, images()),
        "streamed images": (images_read, images(streaming=True)),
        "cache": (images_read, images(**cache)),
    }
    ranks = StartedRanks(2, folder / "printed", all_of, works, folder)
    assert ranks.wait() == [0, 0], ranks.printed()
    assert "Traceback" not in ranks.printed()
    of_ranks = [pickle.loads((folder / f"rank-{rank}").read_bytes()) for rank in range(2)]
    return {name: [of_rank[name] for of_rank in of_ranks] for name in works}


def assert_first_says(found: list[Any], message: str) -> None:
    name, said = found[0]
    assert name in ("ValueError", "Mistake") and message in said
    assert found[1] == ENDED


ENDED = ("SystemExit", "2")


def test_what_fails_on_one_rank_fails_on_all_and_the_lowest_says_so(results):
    assert results["nobody fails"] == ["went on", "went on"]
    assert results["the second fails"] == [ENDED, ("ValueError", "wrong on 1")]
    assert results["both fail"] == [("ValueError", "wrong on 0"), ENDED]


def test_the_first_rank_has_the_folders_of_a_run_and_all_resume_from_one_checkpoint(results):
    assert_first_says(results["resume from nothing"], "There is no checkpoint to resume from")
    assert results["resume"][0] == results["resume"][1] and results["resume"][0].endswith("300")


@pytest.mark.parametrize("message", REFUSED)
def test_a_run_for_another_number_of_processes_is_refused_before_any_work(results, message):
    assert_first_says(results[message], message)


def test_settings_that_differ_between_ranks_are_named_unless_they_are_paths(results):
    assert_first_says(results["other lr"], "lr must be the same on all ranks, got 0.01 and 0.02")
    assert_first_says(results["other path"], "no-model")


def test_synthetic_data_and_the_hosts_own_configuration_are_for_one_process(results):
    assert_first_says(results["synthetic"], "--nproc-per-node must be 1 with runner: synthetic, got 2")
    assert_first_says(results["host"], "must be the number of processes, 2")


@pytest.mark.parametrize("kind", ["table", "stream"])
def test_documents_are_one_ranks_alone_and_none_is_left_out(results, kind):
    (first, batch, weights, shape), (second, other_batch, other_weights, _) = results[kind]
    trained_on = {text for text in documents(25) if part_of_document(text, 0.1) == "train"}
    assert not set(first) & set(second) and set(first) | set(second) == trained_on
    assert abs(len(first) - len(second)) <= 1
    assert len(batch) == len(other_batch) == BATCH // 2 and not torch.equal(batch, other_batch)
    assert weights == other_weights and shape == (2, 1)


@pytest.mark.parametrize("kind", ["one text", "one text streamed"])
def test_a_rank_without_data_is_refused(results, kind):
    assert results[kind][0] == ENDED
    assert "the data set must have a row for each of the 2 ranks, got none for 1" in results[kind][1][1]


@pytest.mark.parametrize("kind", ["images", "streamed images", "cache"])
def test_images_are_one_ranks_alone(results, kind):
    (first, n_first), (second, n_second) = results[kind]
    assert len(first) == len(second) == 2 * 8 and n_first > 3 and n_second > 3
    assert (torch.cdist(first, second) > 1e-4).all()


# Whole runs


def trained(cfg) -> None:
    VisionSAETrainingRunner(cfg).run()


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_ranks_train_on_images_and_evaluate_them_together(tmp_path, cached):
    tiny_training.make_files(tmp_path)
    changes: dict[str, Any] = {
        "parallel": ParallelConfig(1, 3),
        "train_batch_size_tokens": 15,
        "eval_dataset_path": str(tmp_path / "images.parquet"),
        "eval_dataset_split": "train[:14]",
        "eval_every_n_steps": 10,
        "output_path": str(tmp_path / "out"),
    }
    if cached:
        changes["cached_activations_path"] = str(tmp_path / "cache")
    cfg = tiny_training.config(tmp_path, "sparsemax", **changes)
    if cached:
        cache_activations(cfg)
    ranks = StartedRanks(3, tmp_path / "printed", trained, cfg)
    assert ranks.wait() == [0, 0, 0], ranks.printed()
    lines = [json.loads(line) for line in (tmp_path / "out" / "evaluation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 26]
    alone = tiny_training.config(tmp_path, "sparsemax", **changes | {"parallel": ParallelConfig()})
    measured = VisionSAETrainingRunner(alone).evaluation.evaluator(SAE.load_from_disk(tmp_path / "out"))
    assert measured == pytest.approx({name: lines[-1][name] for name in measured}, abs=1e-5)


# From the command line

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def torchrun(size, *words, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*TORCHRUN, str(size), "-m", "sae_lens_sparsemax", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "must be the number of processes, 2, which torchrun --nproc-per-node starts, got 1"),
        (["--parallel.data"], "--parallel.data needs a value"),
        (["--parallel.data", "2", "--sae.architecture", "topk", "--sae.k", "4"], "sae.target_l0"),
    ],
)
def test_one_rank_says_what_is_wrong_and_all_end_with_2(tmp_path, words, message):
    ranks = StartedRanks(2, tmp_path / "printed", main, ["train", "quickstart", *words])
    assert ranks.wait() == [2, 2]
    said = [line for line in ranks.printed().splitlines() if line.startswith("sparsemax-sae: error")]
    assert len(said) == 1 and message in said[0] and "Traceback" not in ranks.printed()


@pytest.mark.slow
def test_under_torchrun_as_well(tmp_path):
    ended = torchrun(2, "train", "quickstart", "--parallel.datas", "2", cwd=tmp_path)
    assert ended.returncode != 0 and ended.stderr.count("sparsemax-sae: error: ") == 1, ended.stderr
    assert "parallel.datas is not a valid key" in ended.stderr and "exitcode  : 2" in ended.stderr


def test_a_dry_run_is_printed_once_with_its_estimate(tmp_path):
    words = ["train", "quickstart", "--dry_run", "--parallel.data", "2", "--sae.d_in", "128"]
    ranks = StartedRanks(2, tmp_path / "printed", main, words)
    assert ranks.wait() == [0, 0], ranks.printed()
    assert ranks.printed().count("model_name: quickstart") == ranks.printed().count("Estimate for 2 ranks") == 1


def test_a_single_process_is_told_of_no_others(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not join() and not torch.distributed.is_initialized()
