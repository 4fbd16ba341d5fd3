"""The vision benchmark on a tiny model: what it runs and prints, not how long it takes."""

import pytest

from tests.benchmark.vision import main
from tests.benchmark.vision_problem import VisionProblem
from tests.benchmark.vision_step import PARTS, step_cost
from tests.support.tiny_training import make_files

SIZES = ["--image_batch", "4", "--train_batch", "16", "--buffer_batches", "2", "--workers", "0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("vision")
    make_files(folder, 40)
    return ["--model_name", str(folder / "model"), "--dataset_path", str(folder / "images.parquet")]


@pytest.mark.slow
def test_the_store_is_compared_with_the_model_alone(files, capsys):
    main(["store", *files, *SIZES, "--batches", "2", "--rounds", "1", "--with_cache"])
    printed = capsys.readouterr().out
    assert "| model alone, images ready |" in printed and "| 100 % |" in printed
    assert "| store, activations from disk |" in printed


def test_the_parts_of_a_step_add_up(files):
    problem = VisionProblem(
        model_name=files[1],
        dataset_path=files[3],
        image_batch=4,
        train_batch=16,
        buffer_batches=2,
        workers=0,
        d_sae=64,
        target_l0=4,
    )
    cost = step_cost(problem, 6)
    assert sum(cost[name] for name in PARTS) == pytest.approx(cost["step"])
    assert all(cost[name] > 0 for name in PARTS)


def test_a_step_is_printed_with_its_memory(files, capsys):
    main(["step", *files, *SIZES, "--d_sae", "64", "--target_l0", "4", "--steps", "3"])
    printed = capsys.readouterr().out
    assert "| optimiser |" in printed and "images a second; peak memory of the process" in printed
