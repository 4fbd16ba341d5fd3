import json
from pathlib import Path

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.compare.paper.columns import check_columns, flat
from sae_lens_sparsemax.data.texts import TextData, load_text_dataset, part_of_dataset
from sae_lens_sparsemax.evaluation.predictions import (
    PREDICTIONS,
    evaluate_cross_entropy,
    evaluate_cross_entropy_baseline,
)
from sae_lens_sparsemax.evaluation.reconstruction import RECONSTRUCTION, evaluate_reconstruction
from sae_lens_sparsemax.evaluation.settings import TextSuiteSettings
from sae_lens_sparsemax.evaluation.suite import evaluate_suite
from sae_lens_sparsemax.evaluation.suite.text import read_tokens
from sae_lens_sparsemax.models.at_hook import open_text
from sae_lens_sparsemax.settings.checking import build
from tests.support.tiny_language_model import documents

CONTEXT = 12
HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents(40)))
    return path


@pytest.fixture
def folder(tmp_path, tiny_model_folder, text) -> Path:
    """A saved random SAE whose metadata say everything."""
    torch.manual_seed(1)
    metadata = SAEMetadata(
        model_name=str(tiny_model_folder),
        model_class_name="TransformerBridge",
        hook_name=HOOK,
        context_size=CONTEXT,
        prepend_bos=True,
        exclude_special_tokens=True,
        dataset_path=str(text),
        held_out_fraction=0.3,
    )
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=40, metadata=metadata))
    sae.save_model(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.mark.usefixtures("pictures")
def test_the_suite_measures_what_the_metrics_measure_one_by_one(folder, text, tiny_model_folder):
    settings = {"datasets": {"all": {"path": str(text)}}, "n_tokens": 240, "n_prediction_tokens": 120, "batch_size": 4}
    result = evaluate_suite(str(folder), settings=settings, progress=False)
    groups = result.results["groups"]
    numbers = {name for name, value in flat(groups).items() if isinstance(value, int | float)}
    check_columns({name: name for name in numbers}, [], build(TextSuiteSettings, settings))
    sae = StandardSAE.load_from_disk(folder)
    model = open_text(sae, str(tiny_model_folder), "TransformerBridge", hook_name=HOOK)
    amount = TextSuiteSettings(context_size=CONTEXT, batch_size=4, n_tokens=240, n_prediction_tokens=120)
    tokens = read_tokens(model, TextData(str(text)), amount)
    assert tokens.tokens.shape == (20, CONTEXT)
    alone = evaluate_reconstruction(sae, tokens.activations())
    measured = groups["all/reconstruction"]
    assert measured["reconstruction"]["fvu"] == pytest.approx(alone.fvu)
    assert measured["reconstruction"]["n_tokens"] == alone.n_tokens == int((tokens.tokens != 0).sum())
    assert measured["l0"]["mean"] == pytest.approx(alone.l0)
    assert sum(measured["l0"]["counts"]) == alone.n_tokens
    batches = list(tokens.tokens[:10].split(4))
    baseline = evaluate_cross_entropy_baseline(model, batches, progress=False)
    ce = evaluate_cross_entropy(model, batches, baseline, progress=False)
    assert groups["all/predictions"]["cross_entropy"]["ce_with_sae"] == pytest.approx(ce.ce_with_sae)
    assert groups["all/predictions"]["divergence"]["kl_with_sae"] > 0
    report = result.report.read_text()
    for word in ("CE degradation", "KL score", "NMSE, Σ", "dead fraction", "l0_histogram.png"):
        assert word in report
    assert (result.folder / "l0_histogram.png").is_file()


def test_held_out_documents_are_those_that_training_left_out(folder, text):
    result = evaluate_suite(str(folder), settings={"n_tokens": 10_000, "batch_size": 4}, progress=False)
    assert result.results["settings"]["held_out_fraction"] == 0.3
    data = load_text_dataset(str(text))
    parts = {
        p: {row["text"] for row in part_of_dataset(data, p, 0.3, "x")} for p in ("train", "validation", "held_out")
    }
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 40
    # 40 words a document, each followed by one separator at most.
    n_words = 40 * len(parts["held_out"])
    assert (
        n_words - CONTEXT
        <= result.results["groups"]["held_out/reconstruction"]["reconstruction"]["n_tokens"]
        <= n_words
    )


@pytest.mark.parametrize(("part", "is_noted"), [({}, True), ({"held_out": True}, False), ({"split": "other"}, False)])
def test_text_that_was_trained_on_is_noted_as_images_are(folder, text, part, is_noted):
    data, said = {"path": f"{text.parent}/./{text.name}", **part}, []
    with pytest.raises(ValueError, match="groups must be one of"):
        evaluate_suite(str(folder), settings={"datasets": {"x": data}}, groups=["y"], say=said.append)
    assert ["that the SAE was trained on; figures to report need others" in line for line in said] == [True] * is_noted


def test_a_finished_group_is_not_measured_again(folder, capsys):
    command = ["evaluate", str(folder), "--suite", "text", "--n_tokens", "48", "--batch_size", "4"]
    assert main([*command, "--groups", "held_out/reconstruction"]) == 0
    assert "CE degradation" not in capsys.readouterr().out
    assert main([*command, "--n_prediction_tokens", "48"]) == 0
    printed = capsys.readouterr()
    assert "held_out/reconstruction: kept, it was finished earlier" in printed.err
    assert "CE degradation" in printed.out and "explained variance" in printed.out


def test_all_is_saelens_own_harness_and_the_suite(folder, capsys):
    command = ["evaluate", str(folder), "--suite", "all", "--batches", "1", "--batch_size", "2", "--n_tokens", "48"]
    assert main([*command, "--n_token", "48"]) == 2  # in neither of the two
    assert "n_token is not a valid key; did you mean n_tokens?" in capsys.readouterr().err
    assert main([*command, "--n_prediction_tokens", "24"]) == 0
    printed = capsys.readouterr().out
    assert "held_out/predictions" in printed
    for name in (*PREDICTIONS.values(), *(RECONSTRUCTION[key] for key in ("explained_variance", "cosine_similarity"))):
        assert printed.count(f"{name}  ") == 2, name  # in both tables by the same name
    assert "saelens" in json.loads((folder / "evaluation.json").read_text())
    assert (folder / "evaluation" / "text" / "report.md").is_file()


@pytest.mark.parametrize("suite", [[], ["--suite", "saelens"], ["--suite", "all"]], ids=str)
def test_groups_are_refused_where_saelens_harness_would_measure_all_of_its_own(folder, capsys, suite):
    assert main(["evaluate", str(folder), *suite, "--groups", "held_out/reconstruction"]) == 2
    message = "--groups must be given with '--suite text': SAELens's own harness has none"
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets.owt.path", "absent.jsonl"], "there is no file 'absent.jsonl'"),
        (["--datasets.owt.text_column", "txt"], "datasets.owt.path must be given"),
        (
            ["--datasets.held_out.path", "{text}", "--datasets.held_out.text_column", "txt"],
            "text_column must be one of 'text' in",
        ),
        (["--datasets.owt.pth", "x"], "datasets.owt.pth is not a valid key; did you mean datasets.owt.path?"),
        (["--hook_name", "blocks.0.hook_resid_pots"], "did you mean 'blocks.0.hook_resid_post'"),
        (["--hook_name", "blocks.0.mlp.hook_pre"], "'sae.d_in' is 16"),
        (["--n_tokns", "4"], "did you mean n_tokens"),
        (["--groups", "held_out/reconstructions"], "did you mean 'held_out/reconstruction'"),
        (["--held_out_fraction", "0.7"], "held_out_fraction must be at least 0 and below 0.5, got 0.7"),
        # Files of theirs would be one.
        (["--datasets", "{{a/b: {{path: {text}}}, a-b: {{path: {text}}}}}"], "a name in datasets must be a file name"),
        (["--probing", "{{" + "x" * 300 + ": {{path: {text}}}}}"], "a name in probing must be a file name"),
    ],
)
def test_a_mistake_is_one_sentence(folder, text, capsys, arguments, message):
    arguments = [argument.format(text=text) for argument in arguments]
    assert main(["evaluate", str(folder), "--suite", "text", "--n_tokens", "48", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model_name", "have no 'model_name'; give --model_name"),
        ("held_out_fraction", "give --datasets.NAME.path FILE"),
    ],
)
def test_metadata_that_lack_something_say_what_to_give(folder, capsys, missing, message):
    cfg = json.loads((folder / "cfg.json").read_text())
    del cfg["metadata"][missing]
    (folder / "cfg.json").write_text(json.dumps(cfg))
    assert main(["evaluate", str(folder), "--suite", "text"]) == 2
    assert message in capsys.readouterr().err


def labelled(tmp_path, labels, name="classes") -> str:
    """Texts of random words whose last word is their class."""
    path = tmp_path / f"{name}.jsonl"
    rows = [{"text": f"{text} w{label}", "label": label} for text, label in zip(documents(120), labels, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.usefixtures("pictures")
def test_probes_tell_classes_and_sets_of_text_apart(folder, text, tmp_path, caplog):
    few, many = labelled(tmp_path, [1, 2] * 60), labelled(tmp_path, [3, 4, 5, None] * 30, "many")
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join("w1 w2 w3 w4 w5 w6" for _ in range(300)))
    settings = {
        "datasets": {"all": {"path": str(text)}, "other": {"path": str(other)}},
        "probing": {"few": {"path": few}, "many": {"path": many}},
        "probing_ks": [1, 16],
        "n_tokens": 600,
        "batch_size": 8,
    }
    names = [f"{name}/probing" for name in ("all", "other", "few", "many")]
    result = evaluate_suite(str(folder), settings=settings, groups=names, progress=False)
    groups = result.results["groups"]
    assert list(groups) == names
    (task,) = groups["all/probing"]["probing"]["tasks"]
    assert task["task"] == "all or other" and task["raw"]["auc"] > 0.8
    assert groups["all/probing"]["probing"]["too_few_texts"] == [
        f"{it} ahead" for it in ("digit", "question mark", "quotation mark")
    ]
    assert groups["other/probing"]["not_measured"].startswith("no task has 20 texts of each class")
    (task,) = groups["few/probing"]["probing"]["tasks"]
    assert (task["task"], task["n_train"], task["n_test"]) == ("2 or 1", 60, 60)
    assert min(task["raw"]["auc"], task["sparse"][1]["auc"]) > 0.8 and task["sparse"][0]["auc"] > 0.6
    assert [task["task"] for task in groups["many/probing"]["probing"]["tasks"]] == [
        f"{i} or another" for i in (3, 4, 5)
    ]
    assert f"30 of 120 texts of {many!r} have no class in 'label'" in caplog.text
    report = result.report.read_text()
    raw = task["raw"]
    assert f"| 2 or 1, raw activations | accuracy {100 * raw['accuracy']:.1f} %, AUC {raw['auc']:.4f}, F1 " in report
    assert "mean over 3 tasks, k = 16" in report and "probing.png" in report
    said = []
    evaluate_suite(
        str(folder), settings=settings | {"probing_ks": [1]}, groups=names[:1], say=said.append, progress=False
    )
    evaluate_suite(str(folder), settings=settings, groups=names[1:], say=said.append, progress=False)
    assert [line for line in said if "kept" in line] == [line for line in said if line.startswith(("few", "many"))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probing.few.label_column", "lable"], "label_column must be one of 'text', 'label' in the data set"),
        (["--probing_ks", "[0]"], "probing_ks must be at least 1, got [0]"),
        (["--probing_pooling", "max"], "probing_pooling must be one of last, mean, got 'max'"),
        (
            ["--probing.held_out.path", "x"],
            "probing must be sets of text of other names than those of datasets, got 'held_out'",
        ),
        (
            ["--probing.few.labels", "x"],
            "probing.few.labels is not a valid key; valid are path, split",
        ),
    ],
)
def test_a_mistake_in_what_is_probed_is_one_sentence(folder, tmp_path, capsys, arguments, message):
    path = labelled(tmp_path, [1, 2] * 60)
    command = ["evaluate", str(folder), "--suite", "text", "--groups", "few/probing", "--probing.few.path", path]
    assert main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
