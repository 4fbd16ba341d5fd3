"""The embedded language model in the forms that SAELens takes, and a small SAE trained on its residual stream."""

import pytest
import torch
from datasets import Dataset
from sae_lens import HookedSAETransformer, SAETransformerBridge
from transformer_lens.loading_from_pretrained import get_pretrained_model_config
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_sparsemax.data.quickstart import quickstart_model_path, quickstart_text
from tests.support.host_training import HOOK, new_config, trainer_of

MODEL_PATH = str(quickstart_model_path())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_PATH)


@pytest.fixture(scope="session")
def tokens(tokenizer):
    """(64, 64) contexts of the embedded text, each after <bos>."""
    text = "\n".join(quickstart_text("train")["text"][:60])
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    contexts = ids[: 64 * 63].reshape(64, 63)
    return torch.cat([torch.full((64, 1), tokenizer.bos_token_id), contexts], 1)


@pytest.fixture
def token_dataset(tokens):
    """The same contexts as the tokenised data set that SAELens's runners read."""
    return Dataset.from_dict({"tokens": tokens.tolist()})


@pytest.fixture(scope="session")
def _hooked_model(tokenizer):
    # TransformerLens's `from_pretrained` takes names from its own list only, so its parts are called here.
    cfg = get_pretrained_model_config(MODEL_PATH, device="cpu")
    model = HookedSAETransformer(cfg, tokenizer)
    weights = convert_gpt2_weights(AutoModelForCausalLM.from_pretrained(MODEL_PATH), cfg)
    model.load_and_process_state_dict(weights, fold_ln=False, center_writing_weights=False, center_unembed=False)
    return model


@pytest.fixture
def model(_hooked_model):
    """The embedded model as a HookedSAETransformer, without SAEs or hooks before and after."""
    yield _hooked_model
    _hooked_model.reset_hooks()
    _hooked_model.reset_saes()


@pytest.fixture(scope="session")
def bridge():
    return SAETransformerBridge.boot_transformers(MODEL_PATH, device="cpu")


@pytest.fixture(scope="session")
def activations(_hooked_model, tokens):
    """(4032, 128) residual stream after block 2, <bos> positions left out: their norm dwarfs all others."""
    with torch.no_grad():
        _, cache = _hooked_model.run_with_cache(tokens, names_filter=[HOOK], stop_at_layer=3)
    return cache[HOOK][:, 1:].reshape(-1, 128)


@pytest.fixture(scope="session")
def trained(activations):
    """A training SAE after 40 steps on those activations; do not change it."""
    torch.manual_seed(0)
    trainer = trainer_of(new_config(), activations, steps=40)
    return trainer.fit()


@pytest.fixture
def inference_folder(trained, tmp_path):
    trained.save_inference_model(tmp_path / "inference")
    return tmp_path / "inference"
