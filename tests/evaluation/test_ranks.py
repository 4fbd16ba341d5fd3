"""Evaluation where several processes share an SAE's training or its measures: the figures of one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import wandb
from sae_lens.config import LoggingConfig

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.evaluation.harness import evaluate_sae
from sae_lens_sparsemax.evaluation.settings import EvaluationSettings
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.training.log import TrainingLog
from tests.support.close_results import assert_close
from tests.support.started_ranks import StartedRanks

TRAIN = ["train", "quickstart", "--train_batch_size_tokens", "128", "--training_tokens", "1024", "--sae.d_sae", "48"]
TRAIN += ["--n_batches_in_buffer", "16", "--store_batch_size_prompts", "8", "--parallel.data", "2"]
TRAIN += ["--parallel.concepts", "2", "--n_eval_batches", "2", "--logger.log_to_wandb", "true"]
TRAIN += ["--logger.wandb_log_frequency", "1", "--logger.eval_every_n_wandb_logs", "4"]

DATA = ["--datasets.quickstart.path", "quickstart"]
SUITES = ["--suite", "all", "--n_tokens", "2000", "--n_prediction_tokens", "1000", "--batches", "2", *DATA]


def train_with_wandb(arguments: list[str], logged: Path) -> int:
    """What each rank does; the first one leaves in a file what wandb is told of evaluations."""

    def log(values: dict[str, Any], **_: Any) -> None:
        if "reconstruction" in values and dist.get_rank() == 0:
            with logged.open("a") as file:
                file.write(json.dumps({key: each for key, each in values.items() if isinstance(each, dict)}) + "\n")

    TrainingLog.close = lambda self: None  # drawing takes longer than these runs
    LoggingConfig.log = lambda *_, **__: None
    wandb.init, wandb.finish, wandb.Histogram, wandb.log = lambda **_: None, lambda: None, lambda _: None, log
    return main(arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of an SAE that four processes trained, with `logged.jsonl` beside it."""
    folder = tmp_path_factory.mktemp("ranks")
    words = [*TRAIN, "--output_path", str(folder / "sae")]
    ranks = StartedRanks(4, folder / "printed", train_with_wandb, words, folder / "logged.jsonl")
    assert ranks.wait() == [0] * 4, ranks.printed()[-3000:]
    return folder / "sae"


@pytest.mark.slow
def test_text_is_measured_while_four_train_as_the_saved_sae_is_afterwards(trained):
    lines = [json.loads(line) for line in (trained.parent / "logged.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0] != lines[1]
    after = evaluate_sae(load_sae(str(trained)), EvaluationSettings(batches=2, batch_size=8), progress=False)
    groups = {**after["saelens"], "reconstruction": after["reconstruction"]}
    assert {"model_performance_preservation", "model_behavior_preservation", "sparsity"} <= groups.keys()
    for each in (lines[1], groups):  # the length of an activation may move to the decoder when an SAE is saved
        each["sparsity"].pop("l1")
    assert_close({name: lines[1][name] for name in groups}, groups)


def evaluated(folder: Path) -> dict[str, Any]:
    text = {path.name: json.loads(path.read_text()) for path in sorted((folder).glob("*.json"))}
    text["report"] = (folder / "report.md").read_text().splitlines()[:2]
    return text


@pytest.mark.slow
def test_suites_over_three_processes_give_what_they_give_on_one(trained, tmp_path):
    assert main(["evaluate", str(trained), *SUITES, "--output_path", str(tmp_path / "one")]) == 0
    words = ["evaluate", str(trained), *SUITES, "--output_path", str(tmp_path / "three")]
    ranks = StartedRanks(3, tmp_path / "printed", main, words)
    assert ranks.wait() == [0, 0, 0], ranks.printed()[-3000:]
    assert_close(evaluated(tmp_path / "three"), evaluated(tmp_path / "one"))
    assert (tmp_path / "three" / "saelens.json").is_file()
    assert ranks.printed().count("Report: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--suite", "saelens"], "must be 1 with '--suite saelens', SAELens's own harness, got 2"),
        (["--suite", "text", "--groups", "nothing", *DATA], "groups must be one of quickstart/reconstruction"),
        (["--suite", "text", "--n_tokens", "none"], "n_tokens"),
    ],
)
def test_what_is_wrong_is_said_once(trained, tmp_path, more, sentence):
    ranks = StartedRanks(2, tmp_path / "printed", main, ["evaluate", str(trained), *more])
    assert ranks.wait() == [2, 2]
    assert ranks.printed().count(sentence) == 1 and "Traceback" not in ranks.printed(), ranks.printed()
