import pytest
import torch

from sae_lens_sparsemax.explore.concepts.text import concepts_of_text


def test_each_token_has_its_text_and_the_saes_activations(language_model_and_sae):
    model, sae = language_model_and_sae
    found = concepts_of_text(model, sae, "The river of stone")
    assert "".join(found.tokens[1:]) == "The river of stone"
    assert found.is_read.tolist() == [False] + [True] * (len(found.tokens) - 1)
    assert not found.feature_acts[0].any()  # the SAE was trained without the token before a text
    _, cache = model.run_with_cache(found.token_ids[None], names_filter=[sae.cfg.metadata.hook_name])
    expected = sae.encode(cache[sae.cfg.metadata.hook_name])[0]
    assert torch.allclose(found.feature_acts[1:], expected[1:], atol=1e-5)


def test_empty_and_overlong_texts_are_refused(language_model_and_sae):
    with pytest.raises(ValueError, match="empty"):
        concepts_of_text(*language_model_and_sae, " \n")
    with pytest.raises(ValueError, match="more than the 32"):
        concepts_of_text(*language_model_and_sae, "river " * 50)
