"""What a command names and is not there is found before a model is loaded, and nothing that is there is lost."""

import json

import pytest
import yaml

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.data.loading import refuse_missing_data, split_names
from sae_lens_sparsemax.settings.recipes import RECIPES
from tests.support import sites

COMPARISON = {
    "model_name": "quickstart",
    "model_class_name": "AutoModelForCausalLM",
    "hook_name": "transformer.h.2",
    "dataset_path": "quickstart",
    "eval_datasets": {"a": {"held_out": True}, "b": {"path": "absent.txt"}},
    "d_sae": 64,
    "steps": 2,
    "output_path": "compared",
    "arms": [{"name": "topk", "architecture": "topk", "sparsity_field": "k", "sparsities": [8], "lrs": [1e-3]}],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a recipe, an empty folder, a note, and an SAE on text and one on images; no model can be loaded."""
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(COMPARISON))
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("a thought")
    (tmp_path / "five.json").write_text("5")
    sites.save_text_sae(tmp_path / "sae", sites.save_text(tmp_path))
    images = sites.save_images(tmp_path)
    sites.save_image_sae(tmp_path / "image_sae", sites.save_clip(tmp_path / "clip"), images)

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    for place in ("training.sources.load_language_model", "training.sources.HookedViT.from_pretrained",
                  "models.at_hook.load_language_model", "models.language_models.load_model",
                  "compare.text_source.load_language_model"):  # fmt: skip
        monkeypatch.setattr(f"sae_lens_sparsemax.{place}", load)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "train quickstart --dataset_path absent.txt",
        "train quickstart_vision --dataset_path absent.parquet",
        "train quickstart_vision --eval_dataset_path absent.parquet",
        "cache-activations quickstart --dataset_path absent.txt --cached_activations_path cache",
        "cache-activations quickstart_vision --dataset_path absent.parquet --cached_activations_path cache",
        "evaluate sae --dataset_path absent.txt",
        "evaluate sae --suite text --datasets.a.path text.jsonl --datasets.b.path absent.txt",
        "evaluate sae --suite text --datasets.a.path text.jsonl --probing.b.path absent.csv",
        "evaluate sae --suite all --datasets.b.path absent.txt",
        "evaluate image_sae --dataset_path absent.parquet",
        "evaluate image_sae --dataset_path images.parquet --counting_dataset.path absent.parquet",
        "explore sae --dataset_path absent.txt",
        "explore image_sae --dataset_path absent.parquet",
        "compare compare.yaml",
        "reproduce table5 --small --evaluate.dataset_path absent.parquet",
        "reproduce table17 --small --evaluate.counting_dataset.path absent.parquet",
    ],
)
def test_a_file_that_is_missing_is_found_before_any_work(here, capsys, words):
    before = {path for path in here.rglob("*") if path.is_file()}
    assert main(words.split()) == 2
    assert "there is no file 'absent." in capsys.readouterr().err.splitlines()[-1]
    assert {path for path in here.rglob("*") if path.is_file()} == before


def test_data_of_another_machine_are_replaced_by_a_setting(here, capsys):
    (here / "text.jsonl").unlink()
    for command in ("evaluate", "explore"):
        assert main([command, "sae"]) == 2
        assert capsys.readouterr().err.strip().endswith("text.jsonl'; --dataset_path names another")


@pytest.mark.parametrize("recipe", ["quickstart", "quickstart_vision"])
def test_a_cache_that_is_missing_is_found_before_any_work(here, capsys, recipe):
    assert main(["train", recipe, "--cached_activations_path", "empty"]) == 2
    assert "cached_activations_path must be a folder with manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["evaluate image_sae --dataset_path images.parquet", "explore image_sae"])
def test_an_encoder_that_is_missing_is_found_before_any_work(here, capsys, words):
    assert main([*words.split(), "--encoder", "models/absent/encoder"]) == 2
    assert "there is no such folder; --encoder says where it is" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train empty", "'empty' is a folder, no file and no recipe"),
        ("compare sae", "'sae' is a folder, no file and no recipe"),
        ("suggest-k sae --settings empty --l0 8", "'empty' is a folder, no file."),
        ("evaluate note.txt", "'note.txt' is a file; an SAE is a folder with cfg.json."),
        ("explore .", "The folder '.' holds no SAE: it has no cfg.json; did you mean 'image_sae'?"),
        ("explore sae --output_path note.txt", "output_path must be a folder, got 'note.txt'"),
    ],
)
def test_a_file_for_a_folder_and_a_folder_for_a_file_are_told(here, capsys, words, message):
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        "evaluate sae --output_path note.txt",
        "evaluate sae --output_path sae/cfg.json",
        "evaluate sae --output_path images.parquet",
        "evaluate sae --output_path five.json",
        "export sae --output_path note.txt",
        "export sae --format parquet --output_path text.jsonl",
    ],
)
def test_a_result_replaces_no_other_file(here, capsys, words):
    path = here / words.split()[-1]
    before = path.read_bytes()
    assert main(words.split()) == 2
    assert "holds something else and would be replaced; name another --output_path" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        "train quickstart",
        "quickstart",
        "evaluate sae",
        "evaluate sae --suite text --datasets.a.path text.jsonl",
        "suggest-k sae --l0 8",
        "explore sae",
        "export sae",
        "compare compare.yaml",
        "reproduce table5 --small",
    ],
)
def test_an_empty_path_is_not_the_folder_here(here, capsys, words):
    before = {*here.rglob("*")}
    assert main([*words.split(), "--output_path="]) == 2
    assert capsys.readouterr().err.strip().endswith("output_path must be a path, got ''")
    assert {*here.rglob("*")} == before


@pytest.mark.parametrize(
    "words",
    [
        "train ~nosuchuser/x.yaml",
        "train quickstart --from_pretrained_path ~nosuchuser/x",
        "evaluate ~nosuchuser/x",
        "evaluate sae --config ~nosuchuser/x",
        "suggest-k ~nosuchuser/x --l0 8",
        "suggest-k sae --l0 8 --settings ~nosuchuser/x",
        "explore ~nosuchuser/x",
        "explore sae --words ~nosuchuser/x",
        "export ~nosuchuser/x",
        "explain ~nosuchuser/x --explainer quickstart",
        "app ~nosuchuser/x",
    ],
)
def test_a_user_that_is_none_is_a_name_like_any_other(here, capsys, words):
    assert main(words.split()) == 2
    assert "~nosuchuser/x" in capsys.readouterr().err.splitlines()[-1]


def test_what_a_command_writes_and_reads_lies_in_the_users_folder(here, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "a home"))
    (here / "a home").mkdir()
    (here / "sae" / "runner_cfg.json").write_text(json.dumps({"sae": {"architecture": "topk", "k": 4, "d_sae": 64}}))
    (here / "sae").rename(here / "a home" / "sae")
    (here / "a home" / "x.yaml").write_text("base: ~/y.yaml\noutput_path: ~/run")
    (here / "a home" / "y.yaml").write_bytes((RECIPES / "quickstart.yaml").read_bytes())
    assert main(["suggest-k", "~/sae", "--l0", "8", "--output_path=~/found"]) == 0
    assert f"sparsemax-sae train '{here}/a home/found/topk.yaml'" in capsys.readouterr().out
    assert main(["train", "~/x.yaml", "--dry_run", "--cached_activations_path=~/cache"]) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    written = {name: told[name] for name in ("output_path", "checkpoint_path", "cached_activations_path")}
    assert written == {
        "output_path": f"{here}/a home/run",
        "checkpoint_path": f"{here}/a home/run/checkpoints",
        "cached_activations_path": f"{here}/a home/cache",
    }
    assert not (here / "~").exists()


def test_only_what_can_be_local_alone_is_missed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    refuse_missing_data(None, "quickstart", "a.jsonl", "*.jsonl", str(tmp_path), "user/data", "wikitext")
    for path in ("b.jsonl", "b.csv.gz", "*.csv", "no/such/folder/", "~/absent.txt", "~nobody/absent.txt", "\0.txt"):
        with pytest.raises(ValueError, match="could not be loaded: there is no file"):
            refuse_missing_data(path)
    with pytest.raises(ValueError, match=r"did you mean 'a\.jsonl'"):
        refuse_missing_data("aa.jsonl")
    assert split_names("absent.parquet", None) == ["train"]  # without asking the hub
