import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_sparsemax.evaluation.probing import (
    MIN_TEXTS,
    PooledTexts,
    ProbeScores,
    _answers,
    _fit,
    _scores,
    joined,
    pool_texts,
    probe,
)
from sae_lens_sparsemax.models.at_hook import open_text
from tests.support.tiny_language_model import documents

D_SAE, CONCEPT = 30, 7


def planted(labels: torch.Tensor) -> PooledTexts:
    """Texts of which one weak concept alone knows the class, among strong ones that do not."""
    torch.manual_seed(0)
    acts = (torch.rand(len(labels), D_SAE) > 0.7) * torch.rand(len(labels), D_SAE) * 100
    acts[:, CONCEPT] = 0.01 * labels * (1 + torch.rand(len(labels)))
    return PooledTexts(acts @ torch.randn(D_SAE, 12), acts.to_sparse(), torch.ones(len(labels), dtype=torch.bool))


def test_a_concept_that_tells_the_classes_apart_is_found_alone():
    labels = torch.arange(400) % 2
    found = probe("planted", planted(labels), labels, (1, 2, 500))
    assert found is not None and (found.n_train, found.n_test) == (300, 100)
    assert found.sparse[0].concepts == [CONCEPT] and found.sparse[1].concepts[0] == CONCEPT
    assert found.sparse[0].auc == 1 and found.sparse[0].accuracy > 0.95
    assert (found.sparse[2].k, len(found.sparse[2].concepts)) == (500, D_SAE)
    assert found.majority == ProbeScores(accuracy=0.5, auc=0.5, f1=1 / 3)


def test_shuffled_labels_are_told_apart_by_chance():
    labels = torch.arange(1200) % 2
    texts = planted(labels)
    found = probe("shuffled", texts, labels[torch.randperm(1200)], (1, 16))
    assert found is not None
    for scores in (*found.sparse, found.raw):
        assert scores.auc == pytest.approx(0.5, abs=0.12) and scores.accuracy == pytest.approx(0.5, abs=0.12)


def test_texts_of_neither_class_or_without_tokens_are_left_out():
    labels = torch.arange(4 * MIN_TEXTS) % 4 - 1  # of -1, 0, 1 and 2 a quarter each
    texts = planted(labels.clamp(min=0))
    found = probe("few", texts, labels)
    assert found is not None and (found.n_train, found.n_test) == (MIN_TEXTS, MIN_TEXTS)
    texts.is_read[2] = False
    assert probe("too few", texts, labels) is None


@pytest.mark.parametrize("c", [1e-5, 1.0, 1e5])
@pytest.mark.parametrize("separable", [False, True])
def test_the_weights_are_where_the_loss_is_least(c, separable):
    torch.manual_seed(0)
    x = torch.randn(60, 5, dtype=torch.float64) * torch.tensor([1e-3, 1, 1, 1, 300])
    x[:, 2] = 0  # never active
    y = (x[:, 1] > 0 if separable else torch.rand(60) > 0.5).double()
    found = _fit(x, y, c)
    assert found[2].item() == pytest.approx(0, abs=1e-9)
    weights = found.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        odds = x @ weights[:-1] + weights[-1]
        losses = torch.nn.functional.binary_cross_entropy_with_logits(odds, y, reduction="sum")
        total = losses + weights[:-1].square().sum() / (2 * c)
        total.backward()
        return total

    before = loss().item()
    optimizer.step(loss)
    assert before - 1e-5 < loss().item() <= before + 1e-12


def test_more_inputs_than_texts_are_the_same_problem():
    torch.manual_seed(0)
    x, test, y = torch.randn(40, 20).double(), torch.randn(9, 20).double(), (torch.arange(40) % 2).double()
    x[:, 0] += y
    turned = torch.linalg.qr(torch.randn(50, 20).double())[0].T  # the same distances in a wider space
    assert _answers(x @ turned, y, test @ turned).tolist() == pytest.approx(_answers(x, y, test).tolist(), rel=1e-3)


def test_scores_by_hand():
    odds = torch.tensor([3.0, 1.0, -1.0, -1.0, 2.0])
    found = _scores(odds, torch.tensor([True, True, True, False, False]))
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.auc == pytest.approx((2 + 1 + 0.5) / 6)  # of six pairs, one tie
    assert found.f1 == pytest.approx(3 / 5 * 2 / 3 + 2 / 5 * 1 / 2)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_texts_are_pooled_over_what_the_sae_reads(tiny_model_folder, pooling):
    torch.manual_seed(0)
    metadata = SAEMetadata(
        model_name=str(tiny_model_folder),
        model_class_name="TransformerBridge",
        hook_name="blocks.0.hook_resid_post",
        prepend_bos=True,
        exclude_special_tokens=True,
        seqpos_slice=(None, -2),
    )
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=40, metadata=metadata))
    at_hook = open_text(sae)
    texts = [*documents(3, words_each=9), *documents(3, seed=1, words_each=4), "w1"]  # nothing is read of the last
    contexts = [at_hook.tokens(text) for text in texts]
    pooled = pool_texts(at_hook, contexts, pooling, batch_size=2)
    assert pooled.is_read.tolist() == [True] * 6 + [False]
    for i, ids in enumerate(contexts[:6]):
        acts = at_hook.activations(ids[None])[0, 1:-2]  # without <s> and the last two
        acts = acts[-1:] if pooling == "last" else acts
        assert torch.allclose(pooled.inputs[i], acts.mean(0), atol=1e-5)
        assert torch.allclose(pooled.acts.to_dense()[i], sae.encode(acts).mean(0), atol=1e-5)
    assert pooled.acts.to_dense()[6].eq(0).all()
    assert joined([pooled, pooled]).acts.shape == (14, 40)
