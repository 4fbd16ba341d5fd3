"""What the search reads: for each context the concepts that have it as an example, with their activations there."""

import torch

from sae_lens_sparsemax.explore.pages.scripts import decode_levels, fit_examples, read_script
from sae_lens_sparsemax.explore.pages.searched import write_active
from sae_lens_sparsemax.explore.pages.shown_samples import CONTEXT_SHARD
from sae_lens_sparsemax.explore.run import explore
from sae_lens_sparsemax.explore.samples import LEVELS, TopExamples
from sae_lens_sparsemax.explore.settings import ExploreSettings


def test_every_example_is_found_under_its_context_once_and_as_on_the_page_of_its_concept(text_pages):
    site = read_script(text_pages, "explore")
    numbers = sorted(int(path.stem.removeprefix("contexts-")) for path in text_pages.glob("data/contexts-*.js"))
    assert site["contextShards"] == numbers
    found = {}
    for shard in numbers:
        kept = read_script(text_pages, f"contexts-{shard}")
        for context, line in read_script(text_pages, f"0/active-{shard}").items():
            assert context in kept
            concepts = line[::3]
            assert concepts == sorted(set(concepts))
            for concept, peak, levels in zip(concepts, line[1::3], line[2::3], strict=True):
                found[concept, int(context)] = (peak, levels)
    expected = {}
    for number, page in enumerate(read_script(text_pages, "0/concepts-0")):
        for sample, _, peak, levels in [*page["d"], *page["e"]]:
            expected[number, sample] = (peak, levels)
    assert found == expected and len({concept for concept, _ in found}) > 10


def test_contexts_of_the_drawn_examples_are_found_too_and_files_without_examples_are_empty(tmp_path):
    best, drawn = TopExamples(3, 2, 4), TopExamples(3, 1, 4)
    best.sample = torch.tensor([[0, 1], [1, -1], [-1, -1]])
    best.peak[:] = torch.tensor([[2.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    best.levels[:, :, 1] = LEVELS
    drawn.sample = torch.tensor([[1], [2 * CONTEXT_SHARD], [-1]])  # the first is among the best as well
    drawn.peak[:], drawn.levels[:, :, 3] = 0.5, -LEVELS
    write_active(tmp_path, 0, [best, drawn], [2, 1], [0, 1, 2], progress=False)
    lines = {shard: read_script(tmp_path, f"0/active-{shard}") for shard in range(3)}
    assert list(lines[0]) == ["0", "1"] and lines[1] == {}
    assert lines[0]["0"][:2] == [0, 2] and lines[0]["1"][::3] == [0, 1] and lines[0]["1"][1::3] == [1, 3]
    ((name, line),) = lines[2].items()
    assert name == str(2 * CONTEXT_SHARD) and line[:2] == [1, 0.5] and decode_levels(line[2], 4) == [0, 0, 0, -1]


def test_what_the_search_reads_counts_into_the_size_of_the_folder():
    top = TopExamples(10, 5, 4)
    top.sample = torch.arange(50).view(10, 5)
    top.levels[:] = 1
    size = 50 * 1000 + 10 * 900 + 50 * (40 + 4 * 2)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert fit_examples([top], 1000, size, nothing).n_examples == [5]
    assert fit_examples([top], 1000, size, nothing, searched=True).n_examples == [4]
    assert fit_examples([top], 1000, size + 50 * (17 + 4 * 2), nothing, searched=True).n_examples == [5]


def test_pages_of_images_have_no_contexts_to_search(image_pages):
    assert read_script(image_pages, "explore")["contextShards"] == []
    assert not list(image_pages.glob("data/*/active-*.js"))


def test_of_several_saes_each_has_its_own(text_world, tmp_path):
    settings = ExploreSettings(samples=10, showcase=1, examples=2, batch_size=8)
    path = str(text_world / "sae")
    pages = explore([path, path], tmp_path / "pages", settings, names=["a", "b"], progress=False).parent
    (one,), (two,) = ([p.read_text() for p in pages.glob(f"data/{k}/active-*.js")] for k in range(2))
    assert one.replace("0/active", "1/active") == two
