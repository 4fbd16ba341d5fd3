import pytest
import torch
from sae_lens.load_model import HookedProxyLM
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens_sparsemax.models.language_models import (
    check_hook_width,
    hook_width,
    load_language_model,
    require_positions,
    resolve_hook_name,
)


@pytest.fixture(scope="module")
def bridge(tiny_model_folder):
    return load_language_model("TransformerBridge", str(tiny_model_folder), "blocks.0.hook_out")


@pytest.fixture(scope="module")
def hooked_transformer():
    config = HookedTransformerConfig(n_layers=2, d_model=12, n_ctx=8, d_head=4, n_heads=3, d_vocab=10, act_fn="gelu")
    return HookedTransformer(config)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("blocks.1.hook_resid_post", "blocks.1.hook_out"),
        ("blocks.0.hook_resid_pre", "blocks.0.hook_in"),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"),
        ("blocks.1.hook_out", "blocks.1.hook_out"),
    ],
)
def test_aliases_of_a_bridge_become_the_names_it_caches_under(bridge, alias, name):
    assert resolve_hook_name(bridge, alias) == name
    assert name in bridge.run_with_cache(torch.tensor([[1, 2]]), names_filter=[name])[1]
    assert hook_width(bridge, name) == 16


def test_a_misspelt_hook_is_answered_with_the_nearest(bridge, hooked_transformer, tiny_model_folder):
    with pytest.raises(ValueError, match=r"'blocks\.2\.hook_out'; did you mean 'blocks\..\.hook_out'"):
        resolve_hook_name(bridge, "blocks.2.hook_out")
    with pytest.raises(ValueError, match=r"did you mean 'blocks\.1\.hook_resid_post'"):
        resolve_hook_name(bridge, "blocks.1.hook_residual_post")
    with pytest.raises(ValueError, match=r"did you mean 'blocks\.1\.hook_resid_post'"):
        resolve_hook_name(hooked_transformer, "blocks.1.hook_resid_pst")
    with pytest.raises(ValueError, match=r"did you mean 'model\.layers\.1'"):
        load_language_model("AutoModelForCausalLM", str(tiny_model_folder), "model.layer.1")


def test_widths_of_plain_hooks_of_all_heads_and_of_one(hooked_transformer):
    assert hook_width(hooked_transformer, "blocks.0.hook_resid_post") == 12
    assert hook_width(hooked_transformer, "blocks.0.mlp.hook_post") == 48
    assert hook_width(hooked_transformer, "blocks.0.attn.hook_z") == 12
    assert hook_width(hooked_transformer, "blocks.0.attn.hook_z", hook_head_index=2) == 4
    with pytest.raises(ValueError, match=r"'hook_head_index' is 3, but .* has 3 heads"):
        hook_width(hooked_transformer, "blocks.0.attn.hook_z", hook_head_index=3)
    with pytest.raises(ValueError, match="has no heads"):
        hook_width(hooked_transformer, "blocks.0.hook_resid_post", hook_head_index=0)
    with pytest.raises(ValueError, match=r"gives shape \(1, 3, 1, 1\) for one token"):
        hook_width(hooked_transformer, "blocks.0.attn.hook_pattern")


def test_contexts_longer_than_a_table_of_positions_are_refused(bridge, hooked_transformer):
    require_positions(bridge, 10**6)  # its positions are turns of what attention compares
    require_positions(hooked_transformer, 8)
    with pytest.raises(ValueError, match="context_size must be at most 8, the positions that the model knows, got 9"):
        require_positions(hooked_transformer, 9)
    for kind, hook_name in (("TransformerBridge", "blocks.0.hook_out"), ("AutoModelForCausalLM", "transformer.h.0")):
        model = load_language_model(kind, "quickstart", hook_name)
        require_positions(model, 128)
        with pytest.raises(ValueError, match="at most 128"):
            require_positions(model, 129)


def test_a_hugging_face_model_is_hooked_at_its_module(tiny_model_folder):
    model = load_language_model("AutoModelForCausalLM", str(tiny_model_folder), "model.layers.1")
    assert isinstance(model, HookedProxyLM)
    assert hook_width(model, resolve_hook_name(model, "model.layers.1")) == 16


def test_the_embedded_model_has_a_name():
    model = load_language_model("TransformerBridge", "quickstart", "blocks.2.hook_out")
    assert hook_width(model, "blocks.2.hook_out") == 128


def test_models_that_cannot_be_loaded_are_explained(tiny_model_folder):
    with pytest.raises(ValueError, match="set 'model_class_name' to 'TransformerBridge'"):
        load_language_model("HookedTransformer", str(tiny_model_folder), "x")
    with pytest.raises(ValueError, match="The model '/no/such/model' could not be loaded"):
        load_language_model("TransformerBridge", "/no/such/model", "x")
    with pytest.raises(ValueError, match="'trust_remote_code' cannot be true"):
        load_language_model("TransformerBridge", "x", "x", from_pretrained_kwargs={"trust_remote_code": True})


def test_a_given_width_must_be_the_hooks():
    assert (
        check_hook_width(0, 16, "hook") == check_hook_width(None, 16, "hook") == check_hook_width(16, 16, "hook") == 16
    )
    with pytest.raises(ValueError, match=r"'sae\.d_in' is 8, but .* 'hook' are 16 wide"):
        check_hook_width(8, 16, "hook")


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("model_class_name", ["TransformerBridge", "AutoModelForCausalLM"])
def test_the_type_of_the_numbers_is_given_by_name(tiny_model_folder, model_class_name, name):
    hook_name = {"TransformerBridge": "blocks.0.hook_out", "AutoModelForCausalLM": "model.layers.0"}[model_class_name]
    model = load_language_model(model_class_name, str(tiny_model_folder), hook_name, "cpu", {name: "bfloat16"})
    assert next(model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=f"model_from_pretrained_kwargs.{name} must be one of float16, bfloat16"):
        load_language_model(model_class_name, str(tiny_model_folder), hook_name, "cpu", {name: "int8"})


@pytest.mark.parametrize("model_class_name", ["AutoModelForCausalLM", "TransformerBridge"])
def test_a_model_in_the_users_folder_is_loaded(tiny_model_folder, monkeypatch, model_class_name):
    monkeypatch.setenv("HOME", str(tiny_model_folder.parent))
    load_language_model(model_class_name, f"~/{tiny_model_folder.name}", "model.layers.1")


def test_a_user_that_is_none_is_a_name_like_any_other():
    with pytest.raises(ValueError, match="'~nosuchuser/x' could not be loaded: there is no such folder"):
        load_language_model("AutoModelForCausalLM", "~nosuchuser/x", "transformer.h.0")


def test_a_missing_folder_is_answered_by_the_nearest_model(tiny_model_folder):
    near = str(tiny_model_folder)
    with pytest.raises(ValueError, match=f"there is no such folder; did you mean '{near}'"):
        load_language_model("TransformerBridge", near + "x", "x")
