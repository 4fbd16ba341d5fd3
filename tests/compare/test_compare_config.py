import copy

import pytest

from sae_lens_sparsemax import PRESETS
from sae_lens_sparsemax.compare.arm import Arm
from sae_lens_sparsemax.compare.config import CompareConfig, config_from_yaml
from sae_lens_sparsemax.compare.runs import RunSettings
from sae_lens_sparsemax.settings.checking import build

SETTINGS = {
    "model_name": "m",
    "hook_name": "blocks.0.hook_resid_post",
    "trainer": {"lr_warm_up_steps": 5},
    "dataset_path": "text.jsonl",
    "eval_datasets": {"wiki": {"path": "wiki.txt"}},
    "arms": [
        {"name": "a", "architecture": "topk", "sparsity_field": "k", "sparsities": [4], "lrs": ["1e-3"]},
    ],
}


def changed(*path, to):
    settings = copy.deepcopy(SETTINGS)
    target = settings
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = to
    return settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (changed("step", to=3), r"step is not a valid key; did you mean steps\?"),
        (
            changed("trainer", "warm_up_steps", to=3),
            r"did you mean trainer\.lr_warm_up_steps",
        ),
        (changed("trainer", "lr", to=3), r"trainer\.lr is not a valid key"),
        (
            changed("arms", 0, "architecture", to="topkk"),
            r"arms\.a\.architecture must .*; did you mean 'topk'",
        ),
        (changed("arms", 0, "sparsity_field", to="kk"), r"arms\.a\.sae\.kk is not a valid key"),
        (changed("arms", 0, "sae", to={"use_sparse": True}), r"did you mean arms\.a\.sae\.use_sparse_activations"),
        (changed("arms", 0, "sae", to={"preset": "paper"}), r"arms\.0\.sae\.architecture must be 'sparsemax'"),
        (changed("arms", 0, "lrs", to=[]), "arms.a must be given at least one value of each"),
        (changed("arms", to=[{"name": "a"}]), r"arms\.0\.architecture must be given"),
        (
            changed("arms", to=SETTINGS["arms"] * 2),
            r"names of arms must be different from each other, got \['a', 'a'\]",
        ),
        (changed("arms", to=[]), r"arms must be at least one, got \[\]"),
        (changed("seeds", to=[0, 1, 0]), r"seeds must be different from each other, got \[0, 1, 0\]"),
        (changed("matched_l0", to=[3, 3.0]), r"matched_l0 must be different from each other"),
        (changed("arms", 0, "lrs", to=[1e-3, "1e-3"]), r"arms\.a\.lrs must be different from each other"),
        (changed("arms", 0, "sparsities", to=[3, 3.0]), r"arms\.a\.sparsities must be different from each other"),
        (changed("arms", 0, "sparsities", to=[3, 0]), r"arms\.a\.sae\.k must be above 0 .*, got 0"),
        (changed("arms", 0, "sparsities", to=[3, 9999]), r"arms\.a\.sae\.k must be .* at most d_sae, 2304, got 9999"),
        (changed("arms", 0, "sparsities", to=[3, 2.5]), r"arms\.a\.sae\.k must be a whole number, got 2\.5"),
        (changed("arms", 0, "name", to=""), r"arms\.0\.name must be a file name .*, got ''"),
        (changed("arms", 0, "name", to="a/b"), r"arms\.0\.name must be a file name"),
        (changed("arms", 0, "name", to="../../x"), r"arms\.0\.name must be a file name"),
        (changed("arms", 0, "name", to="x" * 300), r"arms\.0\.name must be a file name of at most 120 bytes"),
        (changed("eval_datasets", to={"..": {"path": "x"}}), r"a name in eval_datasets must be a file name"),
        (
            changed("eval_datasets", to={"a b": {"path": "x"}, "a_b": {"path": "y"}}),
            r"names of eval_datasets must be different from each other, got \['a_b', 'a_b'\]",
        ),
        (changed("arms", 0, "sparsity_field", to="d_sae"), r"arms\.0\.sparsity_field must be a field that"),
        *[
            (changed("arms", 0, "sae", to={key: value}), rf"arms\.0\.sae\.{key} must be left out")
            for key, value in (("d_in", 5), ("d_sae", 5), ("device", "cpu"), ("metadata", {"a": 1}), ("k", 5))
        ],
        (changed("trainer", "lr_scheduler_name", to="foo"), r"trainer\.lr_scheduler_name must be one of constant"),
        (
            changed("trainer", "lr_decay_steps", to=10**6),
            r"lr_warm_up_steps and trainer\.lr_decay_steps must be at most the \d+ steps of .*, got \d+",
        ),
        (changed("trainer", "adam_beta1", to=1.5), r"trainer\.adam_beta1 must be at least 0 and below 1, got 1\.5"),
        (
            changed("eval_datasets", "wiki", to={"paht": "x"}),
            r"did you mean eval_datasets\.wiki\.path",
        ),
        (
            changed("eval_datasets", to={"train": {"path": "x"}}),
            r"must be of other names, .*, got \['train'\]",
        ),
        (changed("hook_name", to=None), "model_name and hook_name must be given"),
        (changed("held_out_fraction", to=0.5), "between 0 and 0.5, got 0.5"),
        (changed("b_dec_init", to="median"), "b_dec_init must be one of mean, zeros, got 'median'"),
        (changed("matched_l0", to=[8, 0]), r"matched_l0 must be positive, got \[8, 0\]"),
        (changed("arms", 0, "sae", to={"normalize_activations": "layer_norm"}), "b_dec_init must be 'zeros'"),
        (changed("dataset_path", to=None), "dataset_path must be given"),
        (changed("eval_datasets", "wiki", "path", to=None), r"eval_datasets\.wiki\.path must be given"),
        (changed("training_data", to={"path": "x"}), r"training_data\.path is now called dataset_path"),
        (changed("evaluation_data", to={"wiki": {"path": "x"}}), "evaluation_data is now called eval_datasets"),
        (changed("seeds", to=[]), "at least one seed"),
        *[(changed("seeds", to=[seed]), rf"seeds must be .* 0 to 4294967295, got \[{seed}\]") for seed in (-3, 10**13)],
        (
            changed("eval_datasets", "wiki", "held_out", to=True),
            r"eval_datasets\.wiki\.path must be left out beside held_out, .* got 'wiki\.txt'",
        ),
        (
            changed("eval_datasets", to={"x": {"held_out": True, "text_column": "body"}}),
            r"eval_datasets\.x\.text_column must be left out beside held_out, .* got 'body'",
        ),
        (
            changed("eval_datasets", to={"x": {"path": "text.jsonl", "text_column": "body"}}),
            r"eval_datasets\.x must be other text, or held_out: true, than what is trained on, got 'text\.jsonl'",
        ),
        (
            {**SETTINGS, "images": {}, "eval_datasets": {"x": {"held_out": True, "path": "images"}}},
            r"eval_datasets\.x\.held_out must be left out beside images",
        ),
        (changed("steps", to="many"), "steps must be a whole number, got 'many'"),
        (changed("steps", to=True), "steps must be a whole number, got True"),
        (changed("arms", 0, "lrs", to=["fast"]), r"arms\.0\.lrs must be a list of numbers, got \['fast'\]"),
        (changed("arms", 0, "sae", to={"dtype": 3}), r"arms\.a\.sae\.dtype must be text"),
        (changed("trainer", "lr_warm_up_steps", to="x"), r"trainer\.lr_warm_up_steps must be a whole"),
        (
            changed("synthetic_model", to={"num_features": 8, "hiden_dim": 4}),
            r"synthetic_model\.hidden_dim",
        ),
        (
            changed("synthetic_model", to={"num_features": 8, "hidden_dim": 4, "hierarchy": {"max_dept": 3}}),
            r"hierarchy\.max_dept is not a valid key; did you mean synthetic_model\.hierarchy\.max_depth",
        ),
        (
            changed("synthetic_model", to={"num_features": 8, "hidden_dim": 4, "firing_probability": {"exponent": 1}}),
            r"synthetic_model\.firing_probability\.generator_name must be one of constant, linear, random, zipfian",
        ),
        (changed("synthetic_model", to=3), "synthetic_model must be a group of keys or text"),
        (changed("arms", 0, "steps_factor", to=0), r"arms\.0\.steps_factor must be above 0.*, got 0"),
        ({"model_name": "m"}, "arms must be given"),
    ],
)
def test_mistakes_are_found_before_anything_runs(settings, message):
    with pytest.raises(ValueError, match=message):
        build(CompareConfig, settings)


@pytest.mark.parametrize("given", [{}, {"path": "text.jsonl"}, {"split": "train", "text_column": "text"}])
def test_held_out_documents_may_be_said_to_be_of_the_training_text(given):
    settings = changed("eval_datasets", to={"x": {"held_out": True, **given}})
    assert build(CompareConfig, settings).eval_datasets["x"].held_out


def test_numbers_that_yaml_reads_as_strings_are_numbers_and_dotted_keys_override(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "model_name: null\nhook_name: h\ndataset_path: a.txt\n"
        "arms: [{name: a, architecture: topk, sparsity_field: k, sparsities: [4], lrs: [1e-3]}]\n"
    )
    cfg = config_from_yaml(path, {"model_name": "x/y-1e5", "dataset_path": "b.jsonl", "seeds": "[1, 2]"})
    assert cfg.arms[0].lrs == [1e-3]
    assert (cfg.model_name, cfg.dataset_path, cfg.seeds) == ("x/y-1e5", "b.jsonl", [1, 2])
    with pytest.raises(ValueError, match=r"hook_name must be a group of keys for hook_name\.x to be set, got 'h'"):
        config_from_yaml(path, {"hook_name.x": 1})


@pytest.mark.parametrize("kind", [("topk", "k", int), ("batchtopk", "k", float), ("standard", "l1_coefficient", float)])
def test_sparsities_have_the_type_that_the_architecture_wants(kind):
    architecture, name, wanted = kind
    value = getattr(Arm("a", architecture, name, [], []).sae_config(8.0, d_in=4, d_sae=16), name)
    assert type(value) is wanted and value == 8


def test_an_arm_takes_a_preset_and_is_known_by_what_it_holds():
    given = {"name": "a", "architecture": "sparsemax", "sparsity_field": "target_l0", "sparsities": [4], "lrs": [1e-3]}
    arm = Arm(**given, sae={"preset": "sparsemax", "passes": 3})
    assert arm.sae == {**PRESETS["sparsemax"], "passes": 3} and arm.sae_config(4, d_in=8, d_sae=16).alpha == 2
    with pytest.raises(ValueError, match=r"sae\.preset must be one of .*did you mean 'features'"):
        Arm(**given, sae={"preset": "feature"})


@pytest.mark.parametrize(("lr", "sparsity", "name"), [(1e-3, 4, "0.001"), (1e-3 + 1e-9, 4, "0.001000001")])
def test_runs_of_different_settings_have_different_folders(lr, sparsity, name):
    arm = Arm("a", "topk", "k", [sparsity], [lr])
    assert RunSettings(arm, sparsity, lr, 0).name == f"a_k-4_lr-{name}_seed-0"


@pytest.mark.parametrize("lr_end", [None, 2e-4])
def test_an_end_of_the_learning_rate_that_is_null_is_a_tenth(lr_end):
    cfg = build(CompareConfig, changed("trainer", "lr_end", to=lr_end))
    assert cfg.trainer_config(cfg.arms[0], 1e-3).lr_end == (lr_end or 1e-4)
