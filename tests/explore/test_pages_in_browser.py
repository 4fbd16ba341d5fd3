"""The pages as a person uses them: opened from disk, clicked, and driven by keyboard."""

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sae_lens_sparsemax.explore.explored import Explored
from sae_lens_sparsemax.explore.pages.scripts import decode_levels, read_script, write_script
from tests.explore.test_explore_images import row_of
from tests.support.members import slow_but
from tests.support.sites import BRIGHT, DEAD, HOSTILE, HOSTILE_CLASS, bright_square

PAGES = [
    "index.html",
    "map.html",
    f"concept.html#{BRIGHT}",
    f"concept.html#1/{DEAD}",
    "example.html",
    "failures.html",
    "compare.html",
]
TEXT_PAGES = ["index.html", "map.html", "concept.html#3", "example.html", "failures.html"]
PHONE, LAPTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


class Reader:
    """A tab that notes every request, error and dialog."""

    def __init__(self, page: Any, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.requests: list[str] = []
        self.problems: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", self._failed)
        page.on("pageerror", lambda error: self.problems.append(f"error {error}"))
        page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left before its charts came
            self.problems.append(f"failed {request.url}")

    def check(self) -> None:
        problems = self.problems.copy()
        self.problems.clear()  # else the tests after would have them too
        assert not problems
        assert all(url.startswith((self.folder.as_uri(), "data:", "about:")) for url in self.requests)

    def open(self, page: str) -> Any:
        name, sign, place = page.partition("#")
        url = (self.folder / name).as_uri()
        if self.page.url.partition("#")[0] == url:
            self.page.goto("about:blank")  # else a change of the hash alone loads nothing
        self.page.goto(url + sign + place)
        self.page.wait_for_selector("main[data-ready]")
        return self.page


def reader(chromium: Any, folder: Path, viewport: dict[str, int] = LAPTOP, scheme: str = "light") -> Iterator[Reader]:
    context = chromium.new_context(viewport=viewport, color_scheme=scheme)
    found = Reader(context.new_page(), folder)
    yield found
    context.close()
    found.check()


@pytest.fixture(scope="module")
def images_tab(chromium: Any, image_pages: Path) -> Iterator[Reader]:
    yield from reader(chromium, image_pages)


@pytest.fixture(scope="module")
def texts_tab(chromium: Any, text_pages: Path) -> Iterator[Reader]:
    yield from reader(chromium, text_pages)


def as_new(tab: Reader) -> Iterator[Reader]:
    """A tab that an earlier test used, with nothing of it left: bookmarks, notes and choices are in the storage."""
    tab.page.mouse.move(0, 0)
    yield tab
    tab.page.evaluate("[localStorage, sessionStorage].forEach(each => each.clear())")
    tab.page.goto("about:blank")
    tab.check()
    tab.requests.clear()


@pytest.fixture
def images(images_tab: Reader) -> Iterator[Reader]:
    yield from as_new(images_tab)


@pytest.fixture
def texts(texts_tab: Reader) -> Iterator[Reader]:
    yield from as_new(texts_tab)


@pytest.fixture(params=["light", pytest.param("dark", marks=pytest.mark.slow)])
def phone(chromium: Any, image_pages: Path, request: Any) -> Iterator[Reader]:
    yield from reader(chromium, image_pages, PHONE, request.param)


def shown(page: Any) -> list[str]:
    return page.locator(".concepts tbody th").all_inner_texts()


def test_search_narrows_the_table_and_says_how_far(images):
    page = images.open("index.html")
    page.locator("#dead").check()
    assert len(shown(page)) == 8
    page.get_by_label("Search").fill("7")
    assert shown(page) == ["☆#7"] and "1 to 1 of 1" in page.get_by_role("status").inner_text()
    page.get_by_label("Search").fill("no such thing")
    assert shown(page) == [] and "No concept matches" in page.get_by_role("status").inner_text()


def test_concepts_are_found_for_words_that_their_examples_peak_on(texts):
    page = texts.open("index.html")
    interests = [float(text) for text in page.locator(".concepts tbody td:nth-last-child(2)").all_inner_texts()]
    assert interests == sorted(interests, reverse=True)
    page.get_by_label("Find concepts for a text").fill('"the river"')
    page.wait_for_selector("th[data-key='match']")
    hits, of = map(int, page.locator(".concepts tbody td").first.inner_text().split(" of "))
    assert 0 < hits <= of <= 6
    page.locator(".concepts tbody a").first.click()
    page.wait_for_selector(".example")
    strongest = """e => [...e.querySelectorAll('mark')].reduce((a, b) =>
        b.style.getPropertyValue('--level') > a.style.getPropertyValue('--level') ? b : a).textContent"""
    peaks = [example.evaluate(strongest) for example in page.locator(".example").all()[:of]]
    # A token is part of a word at most.
    assert sum(any(peak.strip() in word for word in ("the", "river")) for peak in peaks) >= hits
    texts.open("index.html").get_by_label("Find concepts for a text").fill("nowhere")
    page.get_by_text("No concept matches").wait_for()


# Each stands in a context of its own, over several tokens of it, and on no peak of a concept.
ODD_TEXTS = [
    "zebra <img src=x onerror=alert(1)> İx",
    r"a.*+?^${}()|[\]\\d zig",
    "🙂👩‍👧 smile",
    "שלום עולם",
    "ΟΔΥΣΣΕΥΣ &amp; ς",
]


@pytest.fixture(scope="module")
def odd_texts(
    chromium: Any, text_pages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Reader, list[tuple[str, int]]]]:
    """Pages with those texts in place of tokens on which a concept is active but none peaks, and where they stand."""
    folder = tmp_path_factory.mktemp("odd") / "pages"
    shutil.copytree(text_pages, folder)
    found, contexts, n = read_script(folder, "0/found"), read_script(folder, "contexts-0"), 32
    active, places = read_script(folder, "0/active-0"), []
    for number, line in active.items():
        peaks = set(found.get(number, [])[1::2])
        at = {t for levels in line[2::3] for t, level in enumerate(decode_levels(levels, n)) if level}
        free = [t for t in range(1, n - 2) if not peaks & {t, t + 1, t + 2} and t in at]
        if free and len(places) < len(ODD_TEXTS):
            text, t = ODD_TEXTS[len(places)], free[0]
            contexts[number][t : t + 3] = [f" {text[:4]}", text[4:], "\n  tail"]
            places.append((number, t))
    assert len(places) == len(ODD_TEXTS)
    write_script(folder, "contexts-0", contexts)
    for opened in reader(chromium, folder):
        yield opened, places


def rows_of_contexts(page: Any) -> Any:
    page.wait_for_selector("#contexts [role=status][aria-busy=false]")
    return page.locator("#contexts .example")


# By default one with markup and letters whose case changes their number, and one of several code points each.
@pytest.mark.parametrize("k", slow_but((0, 2), range(len(ODD_TEXTS))))
def test_a_text_is_found_where_no_concept_peaks_with_the_concepts_active_there(odd_texts, k):
    texts, places = odd_texts
    (number, first), text = places[k], ODD_TEXTS[k]
    page = texts.open("index.html")
    page.get_by_label("Find concepts for a text").fill(f"  {text.swapcase() if k != 2 else text}   tail")
    page.get_by_text("Contexts that contain this text").wait_for()
    rows = rows_of_contexts(page)
    assert rows.count() == 1 and rows.locator(".value").inner_text() == number
    assert "1 of " in page.locator("#contexts [role=status]").inner_text()
    marked = "".join(rows.locator("mark").all_text_contents())
    assert marked == f"{text}↵  tail"
    line = read_script(texts.folder, "0/active-0")[number]
    expected = {}
    for concept, peak, levels in zip(line[::3], line[1::3], line[2::3], strict=True):
        there = [level * peak for level in decode_levels(levels, 32)[first : first + 3] if level]
        expected[concept] = max(there, default=None)
    at_once = rows.locator(".neighbours li").count()
    assert 0 < at_once == min(5, sum(v is not None for v in expected.values()))
    if len(expected) > at_once:
        rows.get_by_role("button", name="more concepts").click()
    read = "items => items.map(item => ['a', '.quiet'].map(part => item.querySelector(part).innerText.trim()))"
    said = rows.locator(".neighbours li").evaluate_all(read)
    told = {int(name[1:]): None if value == "not active there" else float(value) for name, value in said}
    assert told == {c: v and pytest.approx(v, rel=0.01) for c, v in expected.items()}
    assert any(v is not None for v in told.values())
    values = [value for value in told.values() if value is not None]
    assert values == sorted(values, reverse=True) and list(told.values())[: len(values)] == values
    assert page.locator("main img").count() == 0
    link = rows.locator(".neighbours a").first
    concept = link.inner_text()
    link.click()
    page.wait_for_selector("main[data-ready] .example")
    assert f"Concept {concept[1:]}" in page.locator("h1").inner_text()


@pytest.mark.slow
def test_a_search_in_contexts_says_how_many_it_shows_and_typing_again_ends_it(texts):
    page = texts.open("index.html")
    assert not any("contexts-" in url or "active-" in url for url in texts.requests)
    field = page.get_by_label("Find concepts for a text")
    field.fill("THE   river")
    assert rows_of_contexts(page).count() == 20
    kept = read_script(texts.folder, "contexts-0").values()
    n = sum("the river" in " ".join("".join(tokens).split()) for tokens in kept)
    said = page.locator("#contexts [role=status]").inner_text()
    assert f"{n} of {len(kept)} contexts" in said and "the first 20 are shown" in said
    assert page.get_by_text("Concepts whose strongest examples peak on these words").is_visible()
    page.get_by_role("link", name=f"{n} contexts contain this text").click()
    assert page.evaluate("document.activeElement.id") == "contexts"
    page.get_by_role("button", name="Show 20 more").click()
    page.locator("#contexts .example").nth(20).wait_for()
    assert page.get_by_role("button", name="Show 20 more").is_visible() == (n > 40)
    field.fill("the")
    field.fill("nowhere at all")
    page.get_by_text("None of ").wait_for()
    assert rows_of_contexts(page).count() == 0
    field.fill("")
    page.locator("#contexts").wait_for(state="hidden")
    assert len(shown(page)) == 50


def test_pages_of_earlier_versions_are_searched_by_peaks_alone(chromium, text_pages, tmp_path):
    folder = tmp_path / "pages"
    shutil.copytree(text_pages, folder)
    site = read_script(folder, "explore")
    del site["contextShards"]
    write_script(folder, "explore", site)
    for path in folder.glob("data/0/active-*.js"):
        path.unlink()
    for opened in reader(chromium, folder):
        page = opened.open("index.html")
        page.get_by_label("Find concepts for a text").fill("river")
        page.wait_for_selector("th[data-key='match']")
        assert shown(page) and page.locator("#contexts").count() == 0


@pytest.mark.parametrize("viewport", [PHONE, pytest.param(LAPTOP, marks=pytest.mark.slow)])
def test_found_contexts_are_no_wider_than_the_screen(chromium, text_pages, viewport):
    for opened in reader(chromium, text_pages, viewport):
        page = opened.open("index.html")
        page.get_by_label("Find concepts for a text").fill("img src=x")
        rows = rows_of_contexts(page)
        assert rows.count() > 10
        rows.first.get_by_role("button", name="more", exact=True).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


@pytest.mark.slow
def test_bookmarks_and_notes_outlive_the_page_narrow_the_table_and_travel_as_a_file(images, tmp_path):
    page = images.open(f"concept.html#{BRIGHT}")
    page.get_by_role("button", name="Bookmark").click()
    page.get_by_label("Note").fill(f"white squares {HOSTILE}")
    page = images.open("index.html")
    page.get_by_label("Bookmarks and notes alone").check()
    assert shown(page) == [f"★#{BRIGHT}"] and HOSTILE in page.locator(".own").inner_text()
    assert page.locator("tbody img[onerror]").count() == 0
    with page.expect_download() as download:
        page.get_by_role("button", name="Save notes").click()
    download.value.save_as(tmp_path / "notes.json")
    assert json.loads((tmp_path / "notes.json").read_text())["concepts"] == {
        str(BRIGHT): {"star": True, "note": f"white squares {HOSTILE}"}
    }
    page = images.open("index.html#1/")  # another SAE has notes of its own
    page.get_by_label("Bookmarks and notes alone").check()
    assert shown(page) == []
    page.locator("#notes-file").set_input_files(tmp_path / "notes.json")
    page.locator(".own").wait_for()
    (tmp_path / "notes.json").write_text('{"concepts": {"99": {"note": ""}}}')
    page.locator("#notes-file").set_input_files(tmp_path / "notes.json")
    page.get_by_text("it holds no notes on concepts of this SAE").wait_for()


def test_the_table_is_narrowed_by_frequency_and_saved_as_it_is_shown(images):
    page = images.open("index.html")
    page.get_by_label("Frequency from").fill("10")
    frequencies = page.locator(".concepts tbody td:nth-child(3)").all_inner_texts()
    assert frequencies and all(float(text.rstrip(" %")) >= 10 for text in frequencies)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save table").click()
    saved = pd.read_csv(download.value.path())
    assert [f"☆#{concept}" for concept in saved["concept"]] == shown(page)
    assert (saved["frequency"] >= 0.1).all() and saved["label"].str.contains(HOSTILE_CLASS, regex=False).any()
    page.get_by_label("Find concepts for a class").fill("onmouseover")
    page.wait_for_selector("th[data-key='match']")


def test_headers_sort_up_and_down_with_those_without_a_value_last(images):
    page = images.open("index.html")
    page.locator("#dead").check()
    header = page.locator("th[data-key='max']")
    column = [cell.get_attribute("data-key") for cell in page.locator("thead th").all()].index("max")

    def values() -> list[str]:
        return page.locator(f".concepts tbody tr > :nth-child({column + 1})").all_inner_texts()

    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    numbers = [float(value) for value in values() if value != "–"]
    assert numbers == sorted(numbers, reverse=True) and values()[-1] == "–"
    header.get_by_role("button").press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    numbers = [float(value) for value in values() if value != "–"]
    assert numbers == sorted(numbers) and values()[-1] == "–"


def test_a_concept_is_opened_with_the_keyboard(images):
    page = images.open("index.html")
    page.get_by_label("Search").fill("0")
    page.locator(".concepts tbody a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/concept.html#{BRIGHT}")
    page.wait_for_selector(".strip .frame")
    assert f"Concept {BRIGHT}" in page.locator("h1").inner_text()


def test_charts_and_the_map_are_drawn_say_what_is_under_the_pointer_and_are_saved(images):
    page = images.open("map.html#0/")
    page.wait_for_selector(".plot[data-drawn]")
    page.get_by_label("Mark").fill("onmouseover")  # the class that is called like markup
    assert "marked" in page.get_by_role("status").inner_text()
    point = page.locator(".scatterlayer .point").first
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".hoverlayer .hovertext")
    text = page.locator(".hoverlayer").text_content()
    assert re.search(r"#\d", text) and "of tokens" in text
    assert HOSTILE_CLASS in page.locator(".js-plotly-plot").evaluate("plot => plot.data[0].text.join()").replace(
        "&lt;", "<"
    ).replace("&gt;", ">")
    assert page.locator("b[onmouseover]").count() == 0
    images.requests.clear()
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url("**/concept.html#*")
    page.wait_for_selector("main[data-ready]")
    assert not any("plotly" in url for url in images.requests)
    page = images.open("index.html")
    page.get_by_role("link", name="Charts").click()
    page.wait_for_selector(".plot[data-drawn] .bars .point")
    page.locator(".plot").first.hover()
    with page.expect_download() as download:
        page.locator(".modebar-btn").first.click()
    assert download.value.suggested_filename.endswith(".svg")


def test_every_control_is_reached_by_tab_and_shows_that_it_has_the_focus(images):
    page = images.open("index.html")
    focused = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        focused.add(page.evaluate("document.activeElement.tagName"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
    assert focused >= {"A", "INPUT", "BUTTON"}


def test_a_mask_leaves_the_white_square_bright_and_darkens_the_rest(images):
    """By the pixels that are seen: were the mask anywhere else, the square would be darkened."""
    page = images.open(f"concept.html#{BRIGHT}")
    for number in range(5):
        picture = page.locator(".picture").nth(number)
        sample = int(re.findall(r"(\d+).jpg", picture.locator("img").get_attribute("src"))[0])
        image, box = bright_square(row_of(sample))
        seen = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("RGB")).min(-1)
        seen = np.array(seen)
        # At edges cut through a pixel, and in rounded corners, the page shows.
        for outside in (seen[:2], seen[-2:], seen[:, :2], seen[:, -2:], seen[:6, :6], seen[:6, -6:], seen[-6:, :6]):
            outside[:] = 0
        seen[-6:, -6:] = 0
        scale = seen.shape[1] / image.width
        y, x = (seen > 180).nonzero()
        found = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert found == pytest.approx([edge * scale for edge in box], abs=4)
        assert len(x) > 0.8 * (found[2] - found[0]) * (found[3] - found[1])


def test_images_are_shown_plain_or_hot_where_a_concept_fires_and_from_strong_to_weak(images):
    page = images.open(f"concept.html#{BRIGHT}")

    def colours() -> set[tuple[int, ...]]:
        shot = Image.open(io.BytesIO(page.locator(".picture").first.screenshot())).convert("RGB")
        pixels = np.asarray(shot.crop((8, 8, shot.width - 8, shot.height - 8))).reshape(-1, 3)
        return {tuple(int(part) for part in pixel) for pixel in pixels[:: len(pixels) // 997]}

    page.get_by_role("button", name="heat").click()
    assert any(red > blue + 60 for red, _, blue in colours())
    page = images.open(f"concept.html#{BRIGHT}")
    assert page.get_by_role("button", name="heat").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="plain").click()
    assert all(abs(red - blue) < 8 for red, _, blue in colours())  # the images are black and white
    assert page.locator(".strip:visible").count() == 5 and page.locator(".band").count() == 4
    headings = page.locator(".band h3").all_inner_texts()
    assert all("quarter of those drawn" in heading for heading in headings)
    assert "drawn at random from all" in page.locator("section", has=page.locator(".band")).inner_text()
    page.get_by_role("button", name="strongest patch").click()
    assert "any one patch" in page.locator("section .note").first.inner_text()
    assert page.locator(".strip:visible").count() == 5


def test_a_dead_concept_has_a_page_that_says_so(images):
    page = images.open(f"concept.html#{DEAD}")
    assert "This concept is dead" in page.get_by_role("note").inner_text()
    assert page.locator(".strip").count() == 0


def test_a_concept_that_is_not_there_is_an_error_in_words(images):
    page = images.open("concept.html#12345")
    assert "There is no concept 12345" in page.get_by_role("alert").inner_text()


def test_a_clicked_patch_shows_its_concepts_in_every_sae(images):
    page = images.open("example.html")
    assert page.locator("section.column").count() == 2
    before = page.locator("section.column .note").first.inner_text()
    assert "this image" in before
    page.locator("[data-patch='9']").click()
    page.wait_for_selector(".columns[data-token='10']")
    assert all("patch 9" in text for text in page.locator("section.column > .note").all_inner_texts())
    page.get_by_role("button", name="Whole image").click()
    page.wait_for_selector(".columns[data-token='']")


def test_a_patch_is_chosen_with_the_keyboard(images):
    page = images.open("example.html")
    page.locator(".choosable").focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector(".columns[data-token='6']")  # patch 5, after the class token
    assert page.evaluate("document.activeElement.classList.contains('choosable')")


def test_the_comparison_puts_saes_beside_each_other(images):
    page = images.open("compare.html")
    heads = page.locator(".figures thead th").all_inner_texts()
    assert heads == ["sae", "other"]
    boxes = [column.bounding_box() for column in page.locator(".stage section.column").all()]
    assert len(boxes) == 2 and boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    page.locator(".sheet a").nth(2).click()
    page.wait_for_selector(".sheet a:nth-of-type(3)[aria-current]")


@pytest.mark.parametrize("name", slow_but(PAGES[:3], PAGES))
def test_nothing_is_wider_than_a_phone_and_pictures_have_a_text_or_are_marked_as_ornaments(name, phone):
    page = phone.open(name)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.locator("img:not([alt])").count() == 0
    charts = page.locator(".plot:visible")
    for i in range(charts.count()):
        charts.nth(i).scroll_into_view_if_needed()
        charts.nth(i).and_(page.locator("[data-drawn]")).wait_for()
    read = "drawing => !drawing.closest('[aria-hidden], [aria-label]')"
    drawings = "[...document.querySelectorAll('svg')]"
    assert page.evaluate(f"{drawings}.filter({read}).map(drawing => drawing.outerHTML)") == []
    assert page.locator("h1").count() == 1 and page.title()


@pytest.mark.slow
def test_dark_pages_are_dark(chromium, image_pages):
    lightness = {}
    for scheme in ("light", "dark"):
        for opened in reader(chromium, image_pages, LAPTOP, scheme):
            page = opened.open("index.html")
            color = page.evaluate("getComputedStyle(document.body).backgroundColor")
            lightness[scheme] = sum(int(part) for part in color.strip("rgb()").split(",")) / 3
    assert lightness["dark"] < 60 < 200 < lightness["light"]


def test_class_names_and_texts_stay_texts(images, texts):
    page = images.open("index.html")
    page.get_by_label("Search").fill("onmouseover")
    assert HOSTILE_CLASS in page.locator(".concepts tbody").inner_text()
    assert page.locator("b[onmouseover]").count() == 0
    for name in TEXT_PAGES:
        page = texts.open(name)
        assert page.locator("main img").count() == 0
    assert any(HOSTILE in texts.open(f"example.html#{k}").locator(".whole").inner_text() for k in range(3))


def test_text_is_shaded_where_a_concept_fires_and_opens_to_its_whole(texts):
    page = texts.open("concept.html#3")
    first = page.locator(".example").first
    short = first.locator(".context").inner_text()
    assert first.locator("mark").count() >= 1
    strongest = first.locator("mark").evaluate_all(
        "marks => marks.map(m => Number(m.style.getPropertyValue('--level')))"
    )
    assert max(strongest) == 1
    first.get_by_role("button", name="more").click()
    assert len(first.locator(".context").inner_text()) > len(short)
    assert first.get_by_role("button", name="less").get_attribute("aria-expanded") == "true"
    assert page.locator(".tokens li").count() == 20


def test_an_activation_below_zero_is_shown_as_strong_as_it_is(chromium, signed_pages, images):
    pages = Explored(signed_pages)
    below = next(c for c in range(pages.d_sae) if any(min(e.acts) == e.acts[e.peak] < 0 for e in pages.examples(c)[:1]))
    for tab in reader(chromium, signed_pages):
        first = tab.open(f"concept.html#{below}").locator(".example").first
        strongest = pages.examples(below)[0]
        assert float(first.locator(".value").inner_text()) == pytest.approx(-strongest.score, rel=1e-2)
        assert first.locator("mark.negative").count()
        tab.open("example.html").wait_for_selector(".example")
        values = [float(text) for text in tab.page.locator(".here .value").all_inner_texts()]
        assert min(values) < 0 and sorted(map(abs, values), reverse=True) == list(map(abs, values))
    dark = images.open("concept.html#0").evaluate(
        """() => [...explorer.masked(0, explorer.levels("G-z", 17)).querySelectorAll("rect.shade")]
            .map((rect) => Number(rect.style.getPropertyValue("--dark")))"""
    )
    assert dark[-1] == 0 and set(dark[:-1]) == {0.72}


def test_a_chosen_token_shows_its_concepts(texts):
    page = texts.open("example.html")
    page.locator("[data-token='5']").first.click()
    page.wait_for_selector(".columns[data-token='5']")
    assert "token 5" in page.locator("section.column .note").inner_text()


def test_scripts_of_other_places_are_refused(images):
    """The policy in the pages' head, should anything slip through."""
    page = images.open("index.html")
    blocked = page.evaluate(
        """() => new Promise(resolve => {
          document.addEventListener('securitypolicyviolation', event => resolve(event.violatedDirective));
          const script = document.createElement('script');
          script.textContent = 'window.hacked = true';
          document.head.append(script);
          setTimeout(() => resolve('nothing'), 1000);
        })"""
    )
    assert blocked.startswith("script-src") and page.evaluate("window.hacked") is None
    images.problems.clear()  # the violation itself is written to the console


def test_a_long_name_is_cut_and_never_the_number_beside_it(phone):
    page = phone.open(f"concept.html#{BRIGHT}")
    page.evaluate("""document.querySelectorAll('.caption .named, .neighbours .label').forEach((each) =>
        each.textContent = "a name that is longer than a phone is wide ".repeat(4))""")
    lines = page.locator(".caption:visible, .neighbours li").all()
    for line in lines:
        box, value = line.bounding_box(), line.locator(".quiet").first.bounding_box()
        assert value["width"] > 0 and value["x"] + value["width"] <= box["x"] + box["width"] + 1
    assert len(lines) > 5
