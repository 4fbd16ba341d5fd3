"""The page over HTTP, with a session that only answers, and in a browser with a real one."""

import http.client
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.explore.app import server as server_module
from sae_lens_sparsemax.explore.app.server import listen
from sae_lens_sparsemax.explore.app.session import open_session
from sae_lens_sparsemax.explore.settings import AppSettings
from tests.support.sites import save_clip, save_image_sae, save_images, save_text, save_text_sae


class Echo:
    kind, most_bytes, opening = "text", 2**20, {}
    pages: Any = None

    def inspect(self, given, position, changes, classes=None):
        if not given:
            raise ValueError("The text is empty.")
        return {"given": given, "position": position, "changes": [[c, *change] for c, change in changes.items()]}

    def steer(self, given, changes, *, before_each, **sampling):
        before_each()
        return {"given": given, **sampling}


def request(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(*server.listener.getsockname(), timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
    response = connection.getresponse()
    return response, response.read()


def test_questions_are_answered_and_mistakes_told(serve):
    server = serve(Echo())
    body = json.dumps({"given": "a", "position": 2, "changes": [[3, 0, 1.5]]})
    response, answer = request(server, "POST", "/api/inspect", body)
    assert response.status == 200
    assert json.loads(answer) == {"given": "a", "position": 2, "changes": [[3, 0, 1.5]]}
    response, answer = request(server, "POST", "/api/inspect", json.dumps({"given": ""}))
    assert (response.status, json.loads(answer)) == (400, {"error": "The text is empty."})
    for nonsense in (
        "",
        "[]",
        "{}",
        '{"given": 1}',
        '{"given": "a", "changes": [1]}',
        '{"given": "a", "position": "b"}',
    ):
        assert request(server, "POST", "/api/inspect", nonsense)[0].status == 400
    assert request(server, "GET", "/../session.py")[0].status == 404


def test_other_sites_and_floods_are_refused(serve):
    server = serve(Echo())
    body = json.dumps({"given": "a"})
    assert request(server, "POST", "/api/inspect", body, Host="evil.example")[0].status == 403
    assert request(server, "GET", "/", Host="evil.example")[0].status == 403
    assert request(server, "POST", "/api/inspect", body, **{"Content-Type": "text/plain"})[0].status == 415
    assert request(server, "POST", "/api/inspect", "", **{"Content-Length": str(10**9)})[0].status == 413
    assert server.listener.getsockname()[0] == "127.0.0.1"


def test_pages_are_served_from_their_folder_alone(serve, tmp_path):
    folder = tmp_path / "pages"
    (folder / "data").mkdir(parents=True)
    (folder / "index.html").write_text("all concepts")
    (folder / "data" / "explore.js").write_text("1")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "data" / "link.txt").symlink_to(tmp_path / "secret.txt")
    echo = Echo()
    echo.pages = SimpleNamespace(folder=folder, number=1)
    server = serve(echo)
    assert json.loads(request(server, "GET", "/api/session")[1])["pages"] == 1
    for path, text in (
        ("/pages/", b"all concepts"),
        ("/pages/index.html", b"all concepts"),
        ("/pages/data/explore.js", b"1"),
    ):
        response, found = request(server, "GET", path)
        assert (response.status, found) == (200, text)
        assert "style-src 'self' 'unsafe-inline'" in response.headers["Content-Security-Policy"]
    assert "style-src" not in request(server, "GET", "/")[0].headers["Content-Security-Policy"]
    for path in (
        "../secret.txt",
        "%2e%2e/secret.txt",
        "data/..%2f..%2fsecret.txt",
        "data/link.txt",
        "data",
        "/etc/passwd",
        "%00",
    ):
        response, found = request(server, "GET", f"/pages/{path}")
        assert response.status == 404 and b"secret" not in found
    assert request(server, "GET", "/pages/index.html", Host="evil.example")[0].status == 403
    assert request(server, "POST", "/pages/index.html", "")[0].status == 405
    assert request(serve(Echo()), "GET", "/pages/index.html")[0].status == 404


def test_steering_is_limited_and_ends_when_nobody_waits(serve, monkeypatch):
    echo, begun, ended = Echo(), threading.Event(), threading.Event()
    server = serve(echo)
    wish = {"given": "a", "max_new_tokens": 7, "temperature": 0.5, "seed": 3}
    response, answer = request(server, "POST", "/api/steer", json.dumps(wish))
    assert response.status == 200 and json.loads(answer) == wish
    for wrong in (
        {"max_new_tokens": 101},
        {"max_new_tokens": 0},
        {"temperature": 2.5},
        {"temperature": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"max_new_tokens": 2**70},
    ):
        response, answer = request(server, "POST", "/api/steer", json.dumps({"given": "a"} | wrong))
        assert response.status == 400 and f"{next(iter(wrong))} must be from" in json.loads(answer)["error"]

    def endless(given, changes, *, before_each, **_):
        begun.set()
        try:
            while True:
                before_each()
        finally:
            ended.set()

    monkeypatch.setattr(echo, "steer", endless)
    connection = http.client.HTTPConnection(*server.listener.getsockname())
    connection.request("POST", "/api/steer", '{"given": "a"}', {"Content-Type": "application/json"})
    assert begun.wait(30)
    connection.close()
    assert ended.wait(30)
    monkeypatch.setattr(server_module, "_SECONDS_FOR_TEXTS", 0)
    response, answer = request(server, "POST", "/api/steer", '{"given": "a"}')
    assert response.status == 400 and "ask for fewer tokens" in json.loads(answer)["error"]


def test_the_page_asks_nobody_else(serve):
    server = serve(Echo())
    for path in ("/", "/app.js", "/steering.js", "/app.css", "/base.js", "/base.css"):
        response, page = request(server, "GET", path)
        assert response.status == 200 and "default-src 'self'" in response.headers["Content-Security-Policy"]
        assert b"://" not in page.replace(b"http://www.w3.org/2000/svg", b"")


def test_a_port_in_use_is_told(serve):
    with pytest.raises(ValueError, match="Choose another with --port"):
        listen(serve(Echo()).port)


def test_wrong_saes_and_words_are_one_line(tmp_path, capsys):
    sae = save_text_sae(tmp_path / "sae", save_text(tmp_path))
    assert main(["app", str(tmp_path)]) == 2
    assert "holds no SAE" in capsys.readouterr().err
    assert main(["app", str(sae), "--words", "words.txt"]) == 2
    assert "a language model chooses among its tokens" in capsys.readouterr().err


@pytest.mark.slow
def test_an_image_in_a_browser(serve, chromium, tmp_path):
    clip, images = save_clip(tmp_path / "clip"), save_images(tmp_path)
    server = serve(open_session(str(save_image_sae(tmp_path / "sae", clip, images))))
    photo = Image.new("L", (128, 64))
    photo.paste(255, (64, 0, 128, 64))
    photo.save(tmp_path / "photo.png")
    (tmp_path / "no.png").write_text("no image")
    page = chromium.new_page()
    page.goto(server.url)
    page.wait_for_selector("#shared:has-text('All 3 inputs share')")  # it opens with images of the training
    page.set_input_files("#file", tmp_path / "photo.png")
    page.wait_for_selector("#inputs .input >> nth=3")
    page.click("#patches button >> nth=3")
    page.wait_for_selector("#where:has-text('Patch 3')")
    picture, patch = (page.locator(name).bounding_box() for name in ("#picture", "#patches button >> nth=3"))
    assert patch["x"] - picture["x"] == pytest.approx(picture["width"] * 80 / 128, abs=1)
    assert page.locator("#outcomes").is_hidden() and page.locator("#classes").is_hidden()  # no tokenizer
    assert "sparsemax-sae explore" in page.inner_text("#chosen")
    page.set_input_files("#file", tmp_path / "no.png")
    page.wait_for_selector("#message.error:has-text('no image')")
    assert page.locator("#found").is_hidden()
    page.close()


@pytest.mark.slow
def test_a_text_in_a_browser(serve, chromium, text_world, text_pages):
    server = serve(open_session(str(text_world / "sae"), AppSettings(pages=str(text_pages))))
    page = chromium.new_page()
    page.goto(server.url)
    page.wait_for_selector("#inputs .input >> nth=1")
    page.wait_for_selector("#shared:has-text('All 2 inputs share')")
    assert "in 2 of 2" in page.inner_text("#concepts")
    concept = page.inner_text("tbody tr:first-child button >> nth=0")
    assert page.get_attribute("#chosen .concept-link", "href") == f"concept.html#{concept}"
    assert page.locator("#chosen .example mark").count() > 0
    with page.context.expect_page() as opened:
        page.click("#chosen .concept-link")
    opened.value.wait_for_selector(f"h1:has-text('Concept {concept}')")
    opened.value.click("nav >> text=App")
    opened.value.wait_for_url(server.url)
    opened.value.close()
    page.fill("#n-tokens", "5")
    page.locator("#chosen input[type=range]").fill("4")
    page.wait_for_selector("tbody tr:first-child:has-text('everywhere')")
    page.click("#go-on")
    page.wait_for_selector("#texts:visible")
    assert page.inner_text("#text-before") != page.inner_text("#text-after")
    page.click("#reset")
    page.wait_for_selector("tbody tr:first-child:has-text('everywhere')", state="detached")
    page.fill("#text", "The <b>river</b> of stone")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#outcomes .outcome")
    assert page.locator("#tokens b").count() == 0
    page.click("#tokens button:nth-child(1)")
    page.wait_for_selector("#left-out:has-text('trained without special tokens')")
    assert "trained without special tokens" in page.locator("#tokens button:nth-child(1)").get_attribute("title")
    page.click("#tokens button:nth-child(3)")
    page.wait_for_selector("#where:has-text('Token 2')")
    page.click("tbody tr:first-child button:text('off')")
    page.wait_for_selector(".outcome:has-text('→')")
    page.click("#reset")
    page.wait_for_selector(".outcome:has-text('→')", state="detached")
    page.fill("#text", " ")
    page.click("text=Show concepts")
    page.wait_for_selector("#message.error:has-text('empty')")
    page.close()
