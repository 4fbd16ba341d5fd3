"""What of a saved SAE's configuration is taken, and what is refused."""

import pytest
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_sparsemax.models.saved_saes import load_sae


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("l0", [0.0, 3.5, None])
def test_what_saelens_saves_is_loaded(tmp_path, normalisation, l0):
    """An SAE none of whose concepts is active has an L0 of 0."""
    metadata = SAEMetadata(l0=l0)
    config = StandardSAEConfig(d_in=4, d_sae=8, normalize_activations=normalisation, metadata=metadata)
    StandardSAE(config).save_model(tmp_path)
    loaded = load_sae(str(tmp_path)).cfg
    assert (loaded.normalize_activations, loaded.metadata.l0) == (normalisation, l0)


@pytest.mark.parametrize(("name", "value"), [("l0", -1.0), ("max_norm", 0.0), ("context_size", 0)])
def test_metadata_that_cannot_be_are_refused(tmp_path, name, value):
    config = StandardSAEConfig(d_in=4, d_sae=8, metadata=SAEMetadata(**{name: value}))
    StandardSAE(config).save_model(tmp_path)
    with pytest.raises(ValueError, match=rf"metadata\.{name} must be .*, got {value}"):
        load_sae(str(tmp_path))
