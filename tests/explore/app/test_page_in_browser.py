"""The app's page as a person uses it, with models that answer in milliseconds."""

import json
import shutil
import sys

import pytest
import torch
from PIL import Image

from sae_lens_sparsemax.explore.app.gathering import Gathering
from sae_lens_sparsemax.explore.app.opening import Given
from sae_lens_sparsemax.explore.app.session import ImageSession, TextSession, open_session
from sae_lens_sparsemax.explore.settings import AppSettings
from tests.explore.app.test_session import encoded, photo
from tests.support.sites import BRIGHT, DEAD

FAILS_ONCE = """
import pathlib, shutil, sys, time
print('Reading:  45%|####', flush=True)
time.sleep(1.5)
if not (tried := pathlib.Path({tried!r})).exists():
    tried.touch()
    sys.exit('sparsemax-sae: error: dataset_path must be there, got none')
shutil.copytree({pages!r}, {output!r})
"""


class Classifies(ImageSession):
    """Chooses among any classes but a zebra, which it does not know, by embeddings of its own."""

    def __init__(self, model, sae, examples):
        super().__init__(model, sae, examples=examples)
        self.words, self.word_embeds = ["cat", "dog"], self.embeds(["cat", "dog"])

    @staticmethod
    def embeds(classes):
        generator = torch.Generator().manual_seed(0)
        return torch.nn.functional.normalize(torch.randn(len(classes), 24, generator=generator), dim=-1)

    def _classes(self, classes):
        if classes is None:
            return self.words, self.word_embeds
        if not classes or "zebra" in classes:
            raise ValueError(f"classes must be known to the model, got {classes}")
        return classes, self.embeds(classes)


@pytest.fixture
def opened(chromium):
    """A function that opens a server's page; an error in a script fails the test."""
    problems, contexts = [], []

    def open_page(server, **options):
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture
def image_page(serve, opened, clip_and_sae):
    return opened(serve(Classifies(*clip_and_sae, [Given("first", encoded(photo()))])))


def save(folder, name, number=0):
    Image.new("RGB", (40, 40), (number, 255 - number, 80)).save(folder / name)
    return folder / name


@pytest.mark.slow
def test_examples_are_gathered_and_shown_without_a_reload(serve, opened, text_world, text_pages, tmp_path, monkeypatch):
    source = shutil.copytree(text_world / "sae", tmp_path / "sae")
    session = open_session(str(source))
    gathering = Gathering(str(source), session, AppSettings())
    code = FAILS_ONCE.format(tried=str(tmp_path / "tried"), pages=str(text_pages), output=str(source / "explore"))
    monkeypatch.setattr(gathering, "_command", lambda: [sys.executable, "-c", code])
    page = opened(serve(session, gathering=gathering))
    page.wait_for_selector("#chosen .gather:has-text('reads up to 200 contexts of text.jsonl')")
    assert page.locator("#pages").is_hidden() and page.locator("#gather button").is_visible()
    page.evaluate("window.mark = 1")
    page.click("#chosen .gather button")
    page.wait_for_selector("#gather:has-text('Reading: 45 %')")
    page.wait_for_selector("#chosen .gather .error:has-text('dataset_path must be there')")
    page.click("#gather button:text('Try again')")
    page.wait_for_selector("#chosen .concept-link")
    concept = page.inner_text("tbody tr:first-child button >> nth=0")
    assert page.get_attribute("#chosen .concept-link", "href") == f"concept.html#{concept}"
    assert page.locator("#chosen .example mark").count() > 0 and page.locator(".gather:visible").count() == 0
    assert page.inner_text("#concepts .about >> nth=0").startswith(session.labels[int(concept)])
    assert page.locator("#pages").is_visible() and page.evaluate("window.mark") == 1
    with page.context.expect_page() as led:
        page.click("#chosen .concept-link")
    led.value.wait_for_selector(f"h1:has-text('Concept {concept}')")


@pytest.mark.slow
def test_a_broken_image_counts_nowhere_and_shows_nothing_of_another(image_page, tmp_path):
    (tmp_path / "corrupt.png").write_bytes(save(tmp_path, "good.png").read_bytes()[:60])
    image_page.wait_for_selector("#where")
    image_page.set_input_files("#file", [tmp_path / "good.png", tmp_path / "corrupt.png"])
    image_page.wait_for_selector(".input.broken")
    assert "All 2 inputs share" in image_page.inner_text("#shared")
    assert "of 2" in image_page.inner_text("#concepts .in >> nth=0")
    image_page.click(".input.broken button >> nth=0")
    image_page.wait_for_selector("#message.error:has-text('cannot be taken for an image')")
    for name in ("#found", "#effect", "#photo", "#whole", "#shared"):
        assert image_page.locator(name).is_hidden(), name
    image_page.click(".input.broken .remove")
    image_page.wait_for_selector("#found:visible")
    assert image_page.locator(".input").count() == 2 and not image_page.inner_text("#message")


@pytest.mark.slow
def test_classes_that_are_refused_leave_the_earlier_ones_and_no_class_those_of_the_command(image_page, tmp_path):
    shown = ".outcome:has-text('{}')"
    image_page.wait_for_selector(shown.format("dog"))
    image_page.click("#classes summary")
    for names, there in (("bird\nfish", "fish"), ("bird\nzebra", "fish"), (" \n", "dog")):
        image_page.fill("#names", names)
        image_page.click("text=Use these")
        image_page.wait_for_selector(shown.format(there))
        if "zebra" in names:
            image_page.wait_for_selector("#classes-message:has-text('zebra')")
            image_page.set_input_files("#file", save(tmp_path, "new.png"))
            image_page.wait_for_selector(".input >> nth=1")
            image_page.wait_for_selector("#message:empty", state="attached")
            assert image_page.locator(shown.format("fish")).is_visible()
        else:
            assert image_page.inner_text("#classes-message") == ""
    assert image_page.input_value("#names") == "cat\ndog"


@pytest.mark.slow
def test_generated_texts_go_when_the_changes_change(serve, opened, language_model_and_sae):
    page = opened(serve(TextSession(*language_model_and_sae)))
    page.fill("#n-tokens", "2")
    for change in (lambda: page.locator("#chosen input[type=range]").fill("4"), lambda: page.click("#reset")):
        page.click("#go-on")
        page.wait_for_selector("#texts:visible")
        change()
        page.wait_for_selector("#texts", state="hidden")


@pytest.mark.slow
def test_inputs_beyond_the_limit_and_files_chosen_again(image_page, tmp_path):
    files = [save(tmp_path, f"{number}.png", 9 * number) for number in range(22)]
    image_page.wait_for_selector("#where")
    image_page.set_input_files("#file", files)
    image_page.wait_for_selector(".input >> nth=19")
    assert image_page.locator(".input").count() == 20
    said = image_page.inner_text("#notice")
    assert "The first 20 of 22 files were taken." in said and "made room: first." in said
    image_page.set_input_files("#file", files[21])
    image_page.wait_for_selector("#notice:has-text('made room: 0.png')")
    assert image_page.locator("[aria-label='Remove 21.png']").count() == 1
    image_page.click("[aria-label='Remove 21.png']")
    assert image_page.inner_text("#notice") == "" and image_page.locator(".input").count() == 19
    assert image_page.input_value("#file") == ""


@pytest.mark.slow
def test_the_class_token_is_called_so_and_a_concept_without_a_patch_is_told(image_page):
    image_page.wait_for_selector("#where:has-text('Class token')")
    assert image_page.inner_text("#whole") == "Class token"
    for concept, told in ((DEAD, f"Concept {DEAD} is active on no patch."), (BRIGHT, "")):
        image_page.fill("#number", str(concept))
        image_page.click("#look-form button")
        image_page.wait_for_selector(f"#chosen h2:has-text('Concept {concept}')")
        assert image_page.locator("#nowhere:visible").all_inner_texts() == ([told] if told else [])


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_labels_of_the_chart_do_not_touch(serve, opened, language_model_and_sae, width):
    page = opened(serve(TextSession(*language_model_and_sae)), viewport={"width": width, "height": 900})
    page.wait_for_selector("#spikes svg")
    touching = """([n, concepts, values]) => {
      const drawn = explorer.spikeChart(n, concepts, values, { label: "", marked: 5, width: 400 });
      document.getElementById("spikes").replaceChildren(drawn);
      const boxes = [...drawn.querySelectorAll("text.top")].map((text) => text.getBoundingClientRect());
      const touch = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2;
      const { left, right } = drawn.querySelector("svg").getBoundingClientRect();
      return [boxes.length, boxes.some((a, i) => boxes.slice(i + 1).some((b) => touch(a, b))),
        boxes.every((box) => box.left > left - 1 && box.right < right + 1)];
    }"""
    for concepts, values, at_least in (
        ([12345, 12300, 12399, 12000, 11900], [9.0, 8.9, 8.8, 8.7, 8.6], 3),
        ([24575, 24570, 0, 1, 24000], [9.0, 1.0, 0.99, 0.98, 0.97], 4),
        ([100, 6000, 12000, 18000, 24000], [5.0, 4.0, 3.0, 2.0, 1.0], 5),
    ):
        n, touch, inside = page.evaluate(touching, [24576, concepts, values])
        assert n >= at_least and not touch and inside, json.dumps([concepts, n, touch, inside])
