"""The page over HTTP, with a session that only answers, and in a browser with a real one."""

import http.client
import json

import pytest
from PIL import Image

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.explore.app.server import listen
from sae_lens_sparsemax.explore.app.session import open_session
from tests.support.sites import save_clip, save_image_sae, save_images, save_text, save_text_sae


class Echo:
    kind, most_bytes = "text", 2**20

    def inspect(self, given, position, changes):
        if not given:
            raise ValueError("The text is empty.")
        return {"given": given, "position": position, "changes": [[c, *change] for c, change in changes.items()]}


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


def test_the_page_asks_nobody_else(serve):
    server = serve(Echo())
    for path in ("/", "/app.js", "/app.css", "/base.js", "/base.css"):
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
    page.set_input_files("#file", tmp_path / "photo.png")
    page.click("#patches button >> nth=3")
    page.wait_for_selector("#where:has-text('Patch 3')")
    picture, patch = (page.locator(name).bounding_box() for name in ("#picture", "#patches button >> nth=3"))
    assert patch["x"] - picture["x"] == pytest.approx(picture["width"] * 80 / 128, abs=1)
    assert page.locator("#effect").is_hidden()  # no tokenizer, so no classes
    page.set_input_files("#file", tmp_path / "no.png")
    page.wait_for_selector("#message.error:has-text('no image')")
    assert page.locator("#found").is_hidden()
    page.close()


@pytest.mark.slow
def test_a_text_in_a_browser(serve, chromium, tmp_path):
    server = serve(open_session(str(save_text_sae(tmp_path / "sae", save_text(tmp_path)))))
    page = chromium.new_page()
    page.goto(server.url)
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
