"""Text end to end: from a saved SAE to the data of the pages."""

import json

import pytest
import torch

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.explore import streams
from sae_lens_sparsemax.explore.explored import Explored
from sae_lens_sparsemax.explore.pages.shown_samples import peak_tokens
from sae_lens_sparsemax.explore.run import explore
from sae_lens_sparsemax.explore.samples import encode_batch
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.explore.streams import TextStream
from sae_lens_sparsemax.models.at_hook import TextAtHook
from sae_lens_sparsemax.models.language_models import load_each_once
from sae_lens_sparsemax.models.saved_saes import load_sae
from tests.explore.test_explore_images import read
from tests.explore.test_page_data import decode_levels
from tests.support.sites import HOSTILE, save_text_sae


def test_an_examples_activations_are_those_of_the_model_on_its_tokens(text_pages, text_world):
    site = read(text_pages, "explore")
    sae = load_sae(str(text_world / "sae"))
    stream = TextStream(sae, ExploreSettings(samples=40, batch_size=8))
    batches = [batch for batch, _ in stream.batches(0)]
    acts = torch.cat([batch.acts for batch in batches])
    counts = torch.cat([batch.keep for batch in batches])
    assert not counts[:, 0].any()  # special tokens begin a context and stand between documents
    concepts = read(text_pages, "0/concepts-0")
    checked = 0
    for concept in range(0, 96, 7):
        drawn = concepts[concept]["d"]
        assert [score for _, score, _, _ in drawn] == sorted((score for _, score, _, _ in drawn), reverse=True)
        for sample, score, peak, text in concepts[concept]["e"] + drawn:
            exact = sae.encode(acts[sample])
            exact = (exact.to_dense() if exact.is_sparse else exact)[:, concept].detach()
            exact[~counts[sample]] = 0
            found = torch.tensor(decode_levels(text, site["tokens"])) * peak
            torch.testing.assert_close(found, exact, atol=0.03 * peak, rtol=0)
            assert abs(score - exact[exact != 0].max()) < 1e-2 * peak
            checked += 1
    assert checked > 30


def test_examples_of_activations_below_zero_are_the_strongest_by_size(signed_pages):
    pages, checked = Explored(signed_pages), 0
    stream = TextStream(load_sae(str(signed_pages.parent)), ExploreSettings(samples=16, batch_size=8))
    parts = [encode_batch(stream.at_hook.sae, batch).placed for batch, _ in stream.batches(0)]
    acts = torch.cat([torch.zeros(p.n_rows, p.d_sae).index_put((p.row, p.col), p.value) for p in parts])
    for concept in range(pages.d_sae):
        sizes = acts[:, concept].unflatten(0, (16, -1)).abs()
        drawn = pages.concept(concept)["d"]
        assert [score for _, score, _, _ in drawn] == sorted((score for _, score, _, _ in drawn), reverse=True)
        for example, size in zip(pages.examples(concept), sizes.amax(1).topk(4).values.tolist(), strict=False):
            assert example.score == pytest.approx(size, rel=1e-3)
            assert abs(example.acts[example.peak]) == pytest.approx(size, rel=1e-3)
            token = pages.tokens(example.sample)[example.peak].strip(" ").replace("\n", "↵")
            assert token in pages.table["label"][concept] or not token.isascii()
            checked += max(example.acts) <= 0
        if sizes.any():
            assert abs(pages.table["max"][concept]) == pytest.approx(sizes.max().item(), rel=1e-3)
    assert checked > 10


def test_tokens_of_a_larger_norm_do_not_count(text_world, tmp_path):
    sae = load_sae(str(text_world / "sae"))
    few = {"samples": 8, "batch_size": 8}
    (batch, _), *_ = TextStream(sae, ExploreSettings(**few)).batches(0)
    norms = batch.acts.norm(dim=-1)
    limit = norms[batch.keep].median().item()
    (fewer, _), *_ = TextStream(sae, ExploreSettings(max_norm=limit, **few)).batches(0)
    assert torch.equal(fewer.keep, batch.keep & (norms <= limit))
    assert 0 < fewer.keep.sum() < batch.keep.sum()
    sae.cfg.metadata.max_norm = limit  # as the training may have written
    (same, _), *_ = TextStream(sae, ExploreSettings(**few)).batches(0)
    assert torch.equal(same.keep, fewer.keep)
    settings = ExploreSettings(max_norm=limit, showcase=1, **few)
    index = explore([str(text_world / "sae")], tmp_path / "pages", settings, progress=False)
    (summary,) = read(index.parent, "explore")["saes"]
    assert summary["n_tokens"] == fewer.keep.sum() and summary["max_norm"] == limit


def test_outliers_of_huge_norm_are_set_apart_by_the_median_and_said(text_world, tmp_path, monkeypatch):
    sae = load_sae(str(text_world / "sae"))
    few = {"samples": 8, "batch_size": 8}
    (plain, _), *_ = TextStream(sae, ExploreSettings(**few)).batches(0)
    assert len(plain.outliers) == 0  # on these tokens norms differ by less than ten times
    compute, computed = TextAtHook.activations, []
    with monkeypatch.context() as patch:
        patch.setattr(TextAtHook, "activations", lambda self, *of: computed.append(of) or compute(self, *of))
        stream = TextStream(sae, ExploreSettings(samples=5, batch_size=8))
        (first, _), (again, _) = *stream.batches(0), *stream.batches(0)
    assert len(computed) == 2  # the first batch is not read twice, once for the norms
    assert len(first.acts) == 5 and torch.equal(first.acts, again.acts) and torch.equal(first.keep, again.keep)
    norms = plain.acts.norm(dim=-1)
    middle = norms[plain.keep].median()
    monkeypatch.setattr(streams, "OUTLIER_FACTOR", 1.05)
    (batch, _), *_ = TextStream(sae, ExploreSettings(**few)).batches(0)
    assert torch.equal(batch.keep, plain.keep & (norms <= 1.05 * middle))
    assert len(batch.outliers) == (plain.keep & ~batch.keep).sum() > 0
    settings = ExploreSettings(showcase=1, drawn_examples=0, **few)
    pages = explore([str(text_world / "sae")], tmp_path / "pages", settings, progress=False).parent
    (summary,) = read(pages, "explore")["saes"]
    assert summary["max_norm_over_median"] == 1.05 and summary["outliers"]["n"] == len(batch.outliers)
    assert sum(n for _, n in summary["outliers"]["tokens"]) <= len(batch.outliers)
    assert "d" not in read(pages, "0/concepts-0")[3]


def test_contexts_are_the_words_that_were_read(text_pages):
    site = read(text_pages, "explore")
    for sample in site["showcase"]:
        tokens = read(text_pages, f"contexts-{sample // site['contextShard']}")[str(sample)]
        assert len(tokens) == 32
    text = "".join(
        "".join(tokens)
        for shard in (text_pages / "data").glob("contexts-*.js")
        for tokens in read(text_pages, shard.stem).values()
    )
    # Characters that the tokenizer cuts into bytes are whole again.
    assert HOSTILE in text and "the river" in text and "日本" in text and text.count("�") < 10


def test_concepts_have_promoted_and_suppressed_tokens(text_pages):
    concept = read(text_pages, "0/concepts-0")[3]
    assert len(concept["p"]) == len(concept["s"]) == 10
    assert concept["p"][0][1] >= concept["p"][-1][1] > 0 > concept["s"][-1][1] >= concept["s"][0][1]


def test_a_concept_of_several_passes_has_its_share_of_later_ones(text_world, text_pages, tmp_path):
    assert read(text_pages, "0/table")["later"] is None and read(text_pages, "explore")["saes"][0]["later"] is None
    path = save_text_sae(tmp_path / "sae", text_world / "text.jsonl", passes=2, alpha=3.0)
    settings = ExploreSettings(samples=8, batch_size=8, showcase=1)
    pages = explore([str(path)], tmp_path / "pages", settings, progress=False).parent
    sae, table = load_sae(str(path)), read(pages, "0/table")
    ((batch, _),) = TextStream(sae, settings).batches(0)
    first = sae.first_passes(batch.acts[batch.keep]).to_dense()
    assert table["active"] == (first > 0).sum(0).tolist()
    later = torch.tensor(table["later"]) * torch.tensor(table["active"])
    torch.testing.assert_close(later, (first == 2).sum(0).float(), rtol=1e-3, atol=1e-3)
    assert read(pages, "explore")["saes"][0]["later"] == float(f"{(first == 2).sum() / (first > 0).sum():.4g}")


def test_peak_tokens_are_read_where_the_activation_is_highest(text_world):
    from sae_lens_sparsemax.explore.samples import TopExamples

    top = TopExamples(2, 2, 4)
    top.sample[0] = torch.tensor([5, 9])
    top.levels[0, 0, 2] = top.levels[0, 1, 0] = 100
    contexts = {5: torch.tensor([1, 2, 3, 4]), 7: torch.tensor([0, 0, 0, 0])}
    assert peak_tokens(top, contexts).tolist() == [[3, -1], [-1, -1]]


def test_the_command_writes_the_pages_beside_the_sae_and_says_where(text_world, tmp_path, capsys):
    output = tmp_path / "pages"
    words = ["explore", str(text_world / "sae"), "--output_path", str(output), "--samples", "6", "--showcase", "1"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert str(output / "index.html") in told and (output / "concept.html").is_file()
    assert told.endswith(f"sparsemax-sae app {text_world / 'sae'} --pages {output}\n")
    assert main([*words, "--dataset_path", str(tmp_path / "gone.jsonl")]) == 2
    assert "gone.jsonl' could not be loaded" in capsys.readouterr().err


def test_a_run_is_known_by_all_that_decides_what_it_reads(text_world, tmp_path):
    text = tmp_path / "text.jsonl"
    lines, load = (text_world / "text.jsonl").read_text().splitlines(), load_each_once()
    rows = [json.loads(line) | {"other": f"not {line}"} for line in lines]

    def write(some):
        text.write_text("".join(json.dumps(row) + "\n" for row in some))

    def identity(metadata=None, **settings):
        sae = load_sae(str(text_world / "sae"))
        for name, value in (metadata or {}).items():
            sae.cfg.metadata[name] = value
        given = {"dataset_path": str(text), "samples": 8, "batch_size": 8}
        return TextStream(sae, ExploreSettings(**given | settings), load).identity()

    write(rows)
    known = identity()
    assert known == identity(showcase=2, words=None) == json.loads(json.dumps(known))
    for settings in ({"text_column": "other"}, {"context_size": 16}):
        assert identity(**settings)["samples"] != known["samples"], settings
    for metadata in ({"seqpos_slice": (4, None)}, {"prepend_bos": False}, {"disable_concat_sequences": True}):
        assert identity(metadata)["samples"] != known["samples"], metadata
    for metadata in (
        {"exclude_special_tokens": False},
        {"max_norm": 9.0},
        {"hook_name": "blocks.1.hook_out"},
        {"model_from_pretrained_kwargs": {"dtype": "float32"}},
    ):
        changed = identity(metadata)
        assert changed["read"] != known["read"] and changed["samples"] == known["samples"], metadata
    write(rows[1:])
    assert identity()["samples"] != known["samples"]
