import csv
import json
import shutil
from itertools import islice

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from sae_lens import SAE
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.util import temporary_seed

from sae_lens_sparsemax import SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.activations import cache_writer
from sae_lens_sparsemax.activations.cache_reader import ActivationTable
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.compare import CompareConfig, compare, config_from_yaml, runs, synthetic_source
from sae_lens_sparsemax.compare.report import spread_below_one
from sae_lens_sparsemax.compare.runs import all_runs, load_run, train_and_evaluate
from sae_lens_sparsemax.compare.synthetic_source import SyntheticSource
from sae_lens_sparsemax.sae import config as sae_config
from sae_lens_sparsemax.settings.checking import build
from tests.support.tiny_language_model import documents, save_tiny_llama

SYNTHETIC = {
    "synthetic_model": {"num_features": 12, "hidden_dim": 8},
    "n_validation_tokens": 256,
    "n_evaluation_tokens": 512,
    "d_sae": 16,
    "steps": 20,
    "batch_size": 32,
    "seeds": [0, 1],
    "arms": [
        {
            "name": "TopK",
            "architecture": "topk",
            "sparsity_field": "k",
            "sparsities": [2, 4],
            "lrs": ["1e-3", "1e-2"],
        },
        {
            "name": "BatchTopK",
            "architecture": "batchtopk",
            "sparsity_field": "k",
            "sparsities": [2],
            "lrs": [0.01],
        },
    ],
}


@pytest.fixture
def language_model_settings(tmp_path):
    model = save_tiny_llama(tmp_path / "model")
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(120)))
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(documents(20, seed=1)))
    return {
        **{key: value for key, value in SYNTHETIC.items() if key != "synthetic_model"},
        "model_name": str(model),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.0",
        "dataset_path": str(train),
        "eval_datasets": {"same": {"held_out": True}, "other": {"path": str(other)}},
        "held_out_fraction": 0.15,
        "context_size": 16,
        "store_batch_size_prompts": 4,
        "n_validation_tokens": 200,
        "n_evaluation_tokens": 300,
        "n_cross_entropy_tokens": 128,
        "trainer": {"lr_warm_up_steps": 2, "lr_decay_steps": 4},
    }


def write(folder, settings):
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**settings, "output_path": str(folder / "out")}))
    return path


@pytest.fixture(scope="module")
def synthetic_table(tmp_path_factory):
    return compare(config_from_yaml(write(tmp_path_factory.mktemp("synthetic"), SYNTHETIC)))


def test_synthetic_comparison_writes_a_row_for_each_sparsity_and_plots_of_what_was_measured(synthetic_table):
    table = synthetic_table
    rows = list(csv.DictReader((table.parent / "table.csv").open()))
    assert [(row["arm"], row["k"]) for row in rows] == [("TopK", "2"), ("TopK", "4"), ("BatchTopK", "2")]
    assert all(0 < float(row["synthetic/mcc"]) <= 1 and row["seeds"] == "2" for row in rows)
    assert float(rows[0]["synthetic/l0"]) <= 2 < float(rows[1]["synthetic/l0"]) <= 4
    assert len(list(csv.DictReader((table.parent / "runs.csv").open()))) == 10
    assert "BatchTopK | k 2" in table.read_text()
    plots = {path.name for path in table.parent.glob("*.png")}
    measures = ("explained_variance", "mcc", "f1", "precision", "recall", "uniqueness", "dead_fraction")
    assert plots == {"pareto.png", *(f"pareto_{m}.png" for m in measures)}


def test_the_reported_learning_rate_is_the_one_with_the_best_validation(synthetic_table):
    table = synthetic_table
    runs = list(csv.DictReader((table.parent / "runs.csv").open()))
    for row in csv.DictReader((table.parent / "table.csv").open()):
        scores = {}
        for run in runs:
            if (run["arm"], run["sparsity"]) == (row["arm"], row["k"]):
                scores.setdefault(run["lr"], []).append(float(run["validation/explained_variance"]))
        assert row["lr"] == max(scores, key=lambda lr: sum(scores[lr]))


@pytest.mark.usefixtures("without_pictures")
def test_a_repeated_comparison_trains_only_what_is_missing_or_changed(tmp_path, synthetic_table):
    shutil.copytree(synthetic_table.parent, tmp_path / "out")
    path = write(tmp_path, SYNTHETIC)
    results = sorted((tmp_path / "out").glob("runs/*/result.json"))
    assert len(results) == 10
    before = [json.loads(result.read_text()) for result in results]
    results[0].write_text('{"arm": "of another version"}')
    (results[1].parent / "evaluation.json").write_text("{}")  # of an SAE that was measured further since
    compare(config_from_yaml(path))
    after = [json.loads(result.read_text()) for result in results]
    assert after[1:] == before[1:]  # down to the wall time of the training
    assert (results[1].parent / "evaluation.json").is_file()
    assert after[0]["metrics"] == before[0]["metrics"]
    compare(config_from_yaml(path, {"steps": "21"}))
    assert all(json.loads(r.read_text())["metrics"] != b["metrics"] for r, b in zip(results, before, strict=True))


def test_language_model_comparison_measures_reconstruction_cross_entropy_and_probes(
    tmp_path, language_model_settings, caplog
):
    language_model_settings |= {"n_probing_tokens": 480, "seeds": [0]}
    table = compare(config_from_yaml(write(tmp_path, language_model_settings)))
    rows = list(csv.DictReader((table.parent / "table.csv").open()))
    assert len(rows) == 3
    for row in rows:
        for name in ("same", "other"):
            assert int(float(row[f"{name}/n_tokens"])) == 300
            score = float(row[f"{name}/ce_loss_score"])
            with_sae, original, zero = (float(row[f"{name}/ce_{m}"]) for m in ("with_sae", "original", "zero_ablation"))
            assert score == pytest.approx((zero - with_sae) / (zero - original))
            assert float(row[f"{name}/ce_degradation"]) == pytest.approx(original - with_sae)
        # Random words of both sets: nothing tells them apart, and nothing but words is ahead.
        assert row["other/probe_tasks"] == "1.0" and "same/probe_tasks" not in row  # sorted in the file
        assert all(0.1 < float(row[f"other/probe_auc_{kind}"]) < 0.9 for kind in ("k1", "k16", "without_sae"))
    assert "The text of same is not probed" in caplog.text
    assert (table.parent / "pareto_probe_auc_k5.png").is_file()
    assert (table.parent / "pareto_ce_loss_score.png").exists()


@pytest.mark.usefixtures("without_pictures")
def test_slow_measures_are_those_that_are_asked_for_and_what_lies_beside_an_sae_stays(
    tmp_path, language_model_settings, caplog
):
    arms = [{**language_model_settings["arms"][1], "sparsities": [2]}]
    path = write(tmp_path, {**language_model_settings, "seeds": [0], "arms": arms, "n_probing_tokens": 480})

    def compared(**given):
        compare(config_from_yaml(path, given))
        (result,) = (tmp_path / "out" / "runs").glob("*/result.json")
        return result, json.loads(result.read_text())["metrics"]["other"]

    result, before = compared()
    pages, evaluation = result.parent / "explore" / "pages.html", result.parent / "evaluation.json"
    pages.parent.mkdir()
    for n_tokens, asked in ((64, {"ce_loss_score"}), (0, set())):
        for file in (pages, evaluation):  # written anew between the comparisons, which is no damage
            file.write_text(str(n_tokens))
        result, after = compared(n_cross_entropy_tokens=n_tokens, n_probing_tokens=0)
        assert pages.read_text() == evaluation.read_text() == str(n_tokens)
        assert {"ce_loss_score", "probe_auc_k1"} & after.keys() == asked and {"ce_loss_score"} < before.keys()
        assert after["explained_variance"] == before["explained_variance"]
    assert "Training again" not in caplog.text


@pytest.mark.usefixtures("without_pictures")
def test_language_model_runs_once_and_interrupted_captures_go_on(tmp_path, language_model_settings, monkeypatch):
    from sae_lens_sparsemax.compare import sources, text_source

    arm = language_model_settings["arms"][1]
    language_model_settings |= {"n_cross_entropy_tokens": 0, "arms": [arm], "seeds": [0]}
    path = write(tmp_path, language_model_settings)
    monkeypatch.setattr(sources, "SHARD_BYTES", 16 * 4 * 100)
    whole = cache_writer.write_shard
    n_written = 0

    def fail_at_third(*args, **kwargs):
        nonlocal n_written
        n_written += 1
        if n_written == 3:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(cache_writer, "write_shard", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        compare(config_from_yaml(path))
    monkeypatch.setattr(cache_writer, "write_shard", whole)
    table = compare(config_from_yaml(path))
    (train,) = table.parent.glob("activations/*/train")
    resumed = ActivationTable(train, 640)
    rows = resumed.rows(torch.arange(len(resumed)))

    other = write(tmp_path / "afresh", language_model_settings)
    fresh_table = compare(config_from_yaml(other))
    (train,) = fresh_table.parent.glob("activations/*/train")
    fresh = ActivationTable(train, 640)
    assert torch.equal(rows, fresh.rows(torch.arange(len(fresh))))

    monkeypatch.setattr(text_source, "load_language_model", None)  # nothing is left to do for the model
    compare(config_from_yaml(path))


@pytest.mark.usefixtures("without_pictures")
def test_activations_of_outlying_norm_are_left_out_everywhere_and_counted(tmp_path, language_model_settings):
    language_model_settings |= {"n_cross_entropy_tokens": 0, "arms": SYNTHETIC["arms"][1:]}
    table = compare(config_from_yaml(write(tmp_path, language_model_settings), {"max_norm_over_median": 1.05}))
    (folder,) = table.parent.glob("activations/*")
    norms = json.loads((folder / "norms.json").read_text())
    assert norms["max"] == pytest.approx(1.05 * norms["median"])
    for name in ("train", "validation", "same", "other"):
        stored = ActivationTable(folder / name, 200)
        assert stored.rows(torch.arange(200)).norm(dim=-1).max() <= norms["max"]
        assert sum(shard.n_left_out for shard in stored.manifest.shards) > 0
    for run in table.parent.glob("runs/*"):
        assert SAE.load_from_disk(run).cfg.metadata.max_norm == norms["max"]


@pytest.mark.usefixtures("without_pictures")
def test_saved_saes_name_the_hook_they_belong_to(tmp_path, language_model_settings):
    language_model_settings |= {"n_cross_entropy_tokens": 0, "arms": SYNTHETIC["arms"][1:], "seeds": [0]}
    table = compare(config_from_yaml(write(tmp_path, language_model_settings)))
    sae = SAE.load_from_disk(next(iter(sorted(table.parent.glob("runs/BatchTopK*")))))
    assert sae.cfg.architecture() == "jumprelu"
    assert sae.cfg.metadata.hook_name == "model.layers.0"
    assert sae.cfg.metadata.context_size == 16


def test_too_little_text_is_an_error_that_says_how_much_there_is(tmp_path, language_model_settings):
    path = write(tmp_path, language_model_settings)
    with pytest.raises(ValueError, match=r"the data gave only \d+ of 102400 activations"):
        compare(config_from_yaml(path, {"steps": 3200}))


@pytest.mark.usefixtures("without_pictures")
def test_command_line_takes_overrides_and_reports_mistakes_in_one_line(tmp_path, capsys):
    path = write(tmp_path, {**SYNTHETIC, "arms": SYNTHETIC["arms"][1:]})
    assert main(["compare", str(path), "--steps", "3", "--seeds=[4]"]) == 0
    assert f"Tables and plots: {tmp_path / 'out'}" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["steps"], config["seeds"]) == (3, [4])
    assert main(["compare", str(path), "--step", "3"]) == 2
    assert "step is not a valid key; did you mean steps?" in capsys.readouterr().err


@pytest.mark.parametrize("kept_bytes", [0, 2048, 2**31])  # no batch, two, or all are kept
def test_all_architectures_train_on_the_same_batches(monkeypatch, kept_bytes):
    monkeypatch.setattr(synthetic_source, "_KEPT_BYTES", kept_bytes)
    cfg = build(CompareConfig, SYNTHETIC)
    assert len(all_runs(cfg)) == 10
    source = SyntheticSource(cfg)
    first, again, other = source.batches(0), source.batches(0), source.batches(1)
    for step in range(3):
        batch = next(first)
        torch.randn(7)  # what a run draws in between must not matter
        assert torch.equal(batch, next(again))
        assert not torch.equal(batch, next(other))
        with temporary_seed(8 * 1_000_003 + step):
            assert torch.equal(batch, source.model.sample(32))


def test_results_are_known_by_what_defaults_mean(monkeypatch):
    def fingerprint(architecture="sparsemax", field="target_l0", trainer=None, d_in=8, **sae):
        arm = {"name": "x", "architecture": architecture, "sparsity_field": field, "sparsities": [2], "lrs": [0.01]}
        model = {"num_features": 12, "hidden_dim": d_in}
        changes = {"synthetic_model": model, "arms": [{**arm, "sae": sae}], "trainer": trainer or {}}
        cfg = build(CompareConfig, {**SYNTHETIC, **changes})
        return all_runs(cfg)[0].fingerprint(SyntheticSource(cfg))

    first, wide, topk = fingerprint(), fingerprint(d_in=600), fingerprint("topk", "k")
    assert fingerprint(passes=2, map_lr_scale=1.0) == first != fingerprint(passes=1)
    assert fingerprint(trainer={"adam_beta2": 0.999, "n_checkpoints": 2}) == first
    assert fingerprint(trainer={"adam_beta2": 0.99}) != first
    monkeypatch.setattr(sae_config, "FULL_RATE_WIDTH", 300)
    assert fingerprint() == first and fingerprint(d_in=600) != wide
    monkeypatch.setattr(sae_config, "BEST_GATE", {**sae_config.BEST_GATE, "alpha": 4.0})
    assert fingerprint() != first == fingerprint(alpha=3.0)
    assert fingerprint("topk", "k") == topk


HIERARCHICAL = {
    "num_features": 40,
    "hidden_dim": 8,
    "hierarchy": {"total_root_nodes": 4, "branching_factor": 3, "max_depth": 2, "mutually_exclusive_portion": 0.5},
    "correlation": {"rank": 2, "correlation_scale": "1e-1"},
    "std_firing_magnitudes": {"generator_name": "folded_normal", "mean": 0.5, "std": 0.5},
    "seed": 5,
}


@pytest.mark.usefixtures("without_pictures")
def test_a_synthetic_model_may_be_a_saved_one(tmp_path):
    made = SyntheticSource(build(CompareConfig, {**SYNTHETIC, "synthetic_model": HIERARCHICAL}))
    made.model.save(tmp_path / "model")
    changes = {"synthetic_model": str(tmp_path / "model"), "steps": 3, "seeds": [0], "arms": SYNTHETIC["arms"][1:]}
    path = write(tmp_path, SYNTHETIC | changes)
    loaded = SyntheticSource(config_from_yaml(path))
    assert torch.equal(next(loaded.batches(0)), next(made.batches(0)))
    assert loaded.fingerprint != made.fingerprint
    assert "precision at the same L0 on synthetic" in compare(config_from_yaml(path)).read_text()


def test_a_synthetic_model_that_is_not_there_is_an_error_of_one_sentence(tmp_path, capsys):
    path = write(tmp_path, {**SYNTHETIC, "synthetic_model": str(tmp_path / "nothing")})
    assert main(["compare", str(path)]) == 2
    assert "nothing' is damaged or cannot be read: " in capsys.readouterr().err


LONGER = {**SYNTHETIC["arms"][1], "name": "longer", "steps_factor": 2.0}


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_an_arm_of_more_steps_leaves_the_others_as_they_are(tmp_path, synthetic_table, monkeypatch):
    shutil.copytree(synthetic_table.parent, tmp_path / "out")
    results = sorted((tmp_path / "out").glob("runs/*/result.json"))
    before = [result.read_text() for result in results]
    schedules = []

    def recorded(cfg, *rest):
        schedules.append([cfg.total_training_samples, cfg.lr_warm_up_steps, cfg.lr_decay_steps])
        return SAETrainer(cfg, *rest)

    monkeypatch.setattr(runs, "SAETrainer", recorded)
    table = compare(config_from_yaml(write(tmp_path, {**SYNTHETIC, "arms": [*SYNTHETIC["arms"], LONGER]})))
    assert schedules == [[40 * 32, 0, 0]] * 2  # of two seeds
    assert [result.read_text() for result in results] == before
    rows = list(csv.DictReader((table.parent / "table.csv").open()))
    assert [row["steps"] for row in rows] == ["20", "20", "20", "40"]
    assert all(
        float(row["seconds_per_step"]) == pytest.approx(float(row["training_seconds"]) / int(row["steps"]))
        for row in rows
    )
    assert "| steps | seconds | ms a step |" in table.read_text()
    cfg = config_from_yaml(write(tmp_path, {**SYNTHETIC, "arms": [{**LONGER, "steps_factor": 1.5}], "trainer": DECAY}))
    train_and_evaluate(all_runs(cfg)[0], SyntheticSource(cfg))
    assert schedules[-1] == [30 * 32, 6, 9]


DECAY = {"lr_warm_up_steps": 4, "lr_decay_steps": 6}


@pytest.mark.usefixtures("without_pictures")
def test_an_arm_of_more_steps_goes_on_with_further_activations(tmp_path, language_model_settings):
    arm = language_model_settings["arms"][1]
    settings = {**language_model_settings, "seeds": [0], "arms": [arm], "n_cross_entropy_tokens": 0}
    table = compare(config_from_yaml(write(tmp_path, settings)))
    (result,) = table.parent.glob("runs/*/result.json")
    before = result.read_text()
    compare(config_from_yaml(write(tmp_path, {**settings, "arms": [arm, {**arm, "name": "x", "steps_factor": 1.5}]})))
    assert result.read_text() == before
    (folder,) = table.parent.glob("activations/*/train")
    short, longer = ActivationTable(folder, 640), ActivationTable(folder, 960)
    first = list(islice(short.shuffled(32, 0), 20))
    drawn = list(islice(longer.shuffled(32, 0, 640), 30))
    assert all(torch.equal(a, b) for a, b in zip(first, drawn, strict=False))
    assert torch.equal(torch.cat(drawn).sort(0).values, torch.cat(list(longer.in_order(64))).sort(0).values)


def test_no_arm_starts_on_the_true_features_and_one_that_does_is_refused(tmp_path):
    model = {"num_features": 96, "hidden_dim": 32, "seed": 3, "orthogonalization": None}
    cfg = build(CompareConfig, {**SYNTHETIC, "synthetic_model": model, "d_sae": 64, "output_path": str(tmp_path)})
    source = SyntheticSource(cfg)
    features = source.model.feature_dict.feature_vectors
    for seed in (3, 0):
        torch.manual_seed(seed)  # the model's own, and another
        sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=32, d_sae=64))
        nearest = torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1) @ features.T
        assert nearest.abs().max() < 0.9
        source.check_start(sae, "apart")
    sae.dictionary.concepts.data.copy_(features[:64])
    with pytest.raises(ValueError, match=r"the run TopK_k-2 starts on the true features \(MCC 1.00 before training"):
        source.check_start(sae, "TopK_k-2")


@pytest.mark.parametrize("normalisation", ["none", "expected_average_only_in"])
def test_decoder_biases_start_at_the_mean_in_whatever_units_the_sae_works(tmp_path, normalisation):
    arm = {"name": "L1", "architecture": "standard", "sparsity_field": "l1_coefficient", "sparsities": [1]}
    arm |= {"lrs": [1e-12], "sae": {"normalize_activations": normalisation}}
    settings = {**SYNTHETIC, "arms": [arm], "output_path": str(tmp_path), "trainer": {"n_batches_for_norm_estimate": 9}}
    cfg = build(CompareConfig, {**settings, "steps": 2, "seeds": [0]})
    source = SyntheticSource(cfg)
    (run,) = all_runs(cfg)
    train_and_evaluate(run, source)
    assert torch.allclose(load_run(cfg, run).b_dec, source.mean(), atol=1e-5)
    assert source.mean().abs().max() > 0.01


@pytest.mark.parametrize(
    "given",
    [{"dtype": "bfloat16"}, {"dtype": "float64"}, {"normalize_activations": "constant_norm_rescale"}],
    ids=lambda given: next(iter(given.values())),
)
def test_saes_of_every_precision_and_normalisation_are_measured_against_the_true_features(tmp_path, given):
    settings = SYNTHETIC | {"output_path": str(tmp_path), "b_dec_init": "zeros", "steps": 2}
    settings["arms"] = [SYNTHETIC["arms"][0] | {"sae": given}]
    cfg = build(CompareConfig, settings)
    result = train_and_evaluate(all_runs(cfg)[0], SyntheticSource(cfg))
    assert 0 < result.metrics["synthetic"]["mcc"] <= 1
    assert load_run(cfg, all_runs(cfg)[0]).cfg.to_dict().items() >= given.items()


def test_explained_variance_has_ticks_whatever_its_range():
    generator = torch.Generator().manual_seed(0)
    for unexplained, spread in (10 ** (7 * torch.rand(100, 2, generator=generator).double() - 6)).tolist():
        axes = Figure().subplots()
        axes.plot([1, 2], [1 - unexplained - spread, 1 - unexplained])
        spread_below_one(axes)
        low, high = axes.get_ylim()
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
        assert len({axes.yaxis.get_major_formatter()(tick, 0) for tick in ticks}) == len(ticks) >= 2
