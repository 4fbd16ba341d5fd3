"""Pages that the app has made on the fly, by a process that is `explore` or stands for it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.explore.app.gathering import Gathering
from sae_lens_sparsemax.explore.app.session import open_session
from sae_lens_sparsemax.explore.explored import Explored, find_explored
from sae_lens_sparsemax.explore.settings import AppSettings
from sae_lens_sparsemax.models.saved_saes import load_sae
from tests.explore.app.test_server import request
from tests.support.sites import save_text, save_text_sae

COPY = "import shutil; shutil.copytree({!r}, {!r})"
FAIL = "import sys; print('sparsemax-sae: error: dataset_path must be there, got none', file=sys.stderr); sys.exit(2)"


@pytest.fixture
def source(text_world, tmp_path):
    """A folder of the SAE without any pages."""
    return shutil.copytree(text_world / "sae", tmp_path / "sae")


@pytest.fixture
def gathering(source):
    session = SimpleNamespace(
        kind="text", most_bytes=1_000, opening={}, sae=load_sae(str(source)), labels={}, pages=None
    )
    made = Gathering(str(source), session, AppSettings())
    yield made
    made.end()


def runs(gathering, code, monkeypatch):
    monkeypatch.setattr(gathering, "_command", lambda: [sys.executable, "-c", code])


def finished(gathering, seconds=30):
    end = time.monotonic() + seconds
    while (told := gathering.told())["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.05)
    return told


def test_pages_are_made_shown_and_served_without_a_new_start(serve, gathering, source, text_pages, monkeypatch):
    server = serve(gathering.session, gathering=gathering)
    told = json.loads(request(server, "GET", "/api/session")[1])
    assert told["pages"] is None and told["gathering"]["state"] == "offered"
    assert told["gathering"]["what"] == "up to 200 contexts of text.jsonl"
    assert request(server, "GET", "/pages/index.html")[0].status == 404
    runs(gathering, COPY.format(str(text_pages), str(source / "explore")), monkeypatch)
    assert json.loads(request(server, "POST", "/api/gather", "{}")[1])["state"] == "running"
    assert finished(gathering)["state"] == "done"
    assert json.loads(request(server, "GET", "/api/session")[1])["pages"] == 0
    assert request(server, "GET", "/pages/index.html")[0].status == 200
    assert gathering.session.labels == Explored(source / "explore").labels() != {}
    monkeypatch.setattr(gathering, "_command", lambda: pytest.fail("it is done"))
    assert json.loads(request(server, "POST", "/api/gather", "{}")[1])["state"] == "done"


def test_no_other_site_starts_it_and_nothing_but_an_empty_object_does(serve, gathering, monkeypatch):
    server = serve(gathering.session, gathering=gathering)
    monkeypatch.setattr(gathering, "_command", lambda: pytest.fail("it was started"))
    for body, status, headers in (
        ("{}", 403, {"Host": "evil.example"}),
        ("{}", 403, {"Origin": "http://evil.example"}),
        ("{}", 415, {"Content-Type": "text/plain"}),
        ("{}", 415, {"Content-Type": "application/x-www-form-urlencoded"}),
        ("", 413, {"Content-Length": str(10**9)}),
        ("", 400, {}),
        ("[]", 400, {}),
        ('{"samples": 9}', 400, {}),
    ):
        assert request(server, "POST", "/api/gather", body, **headers)[0].status == status
    assert request(server, "GET", "/api/gather", Host="evil.example")[0].status == 403
    assert request(server, "PUT", "/api/gather", "{}")[0].status == 405
    assert request(serve(gathering.session), "POST", "/api/gather", "{}")[0].status == 404
    assert gathering.told()["state"] == "offered"


def test_a_failure_is_one_sentence_and_can_be_tried_again(gathering, source, text_pages, monkeypatch):
    for code, sentence in (
        (FAIL, "dataset_path must be there, got none"),
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import os; os._exit(3)", "explore ended with the status 3."),
    ):
        runs(gathering, code, monkeypatch)
        gathering.start()
        told = finished(gathering)
        assert (told["state"], told["error"]) == ("failed", sentence)
    monkeypatch.setattr(gathering, "_command", lambda: ["/no/such/python"])
    gathering.start()
    assert "cannot be started" in gathering.told()["error"]
    runs(gathering, COPY.format(str(text_pages), str(source / "explore")), monkeypatch)
    gathering.start()
    assert finished(gathering) == gathering.told() and gathering.told()["state"] == "done"


def test_pages_of_another_sae_are_not_taken_and_those_made_meanwhile_are(
    gathering, source, image_pages, text_pages, monkeypatch
):
    runs(gathering, COPY.format(str(image_pages), str(source / "explore")), monkeypatch)
    gathering.start()
    told = finished(gathering)
    assert told["state"] == "failed" and "of this SAE" in told["error"] and gathering.session.pages is None
    shutil.rmtree(source / "explore")
    shutil.copytree(text_pages, source / "explore")
    monkeypatch.setattr(gathering, "_command", lambda: pytest.fail("there are pages"))
    gathering.start()
    assert gathering.told()["state"] == "done"


def test_one_runs_says_how_far_it_is_and_ends_with_the_app(serve, gathering, source, monkeypatch):
    (source / "explore").mkdir()
    (source / "explore" / "diary.txt").write_text("not to be replaced")
    bar = r"import sys, time; print('Reading:  10%|#\rReading:  45%|####', flush=True); time.sleep(60)"
    runs(gathering, bar, monkeypatch)
    server = serve(gathering.session, gathering=gathering)
    request(server, "POST", "/api/gather", "{}")
    process, scratch = gathering._process, gathering.output.parent
    assert gathering.output != source / "explore" and scratch.is_dir()
    request(server, "POST", "/api/gather", "{}")
    assert gathering._process is process
    while gathering.told()["progress"] != "Reading: 45 %":
        time.sleep(0.05)
    server.stop()
    assert process.wait(30) != 0
    while scratch.exists():
        time.sleep(0.05)
    gathering.start()
    assert gathering.told()["state"] == "offered"


def test_the_model_that_the_app_was_given_is_the_one_that_is_explored(gathering, monkeypatch):
    gathering.settings = AppSettings(model_name="other", model_class_name="TransformerBridge", device="cpu")
    command = " ".join(gathering._command())
    assert "--samples 200" in command and "--model_name other --model_class_name TransformerBridge" in command
    assert "--streaming" not in command
    gathering.session.kind = "image"
    monkeypatch.setattr(gathering.session.sae.cfg.metadata, "dataset_path", "somebody/photos")
    command = " ".join(gathering._command())
    assert "--samples 500" in command and "--streaming true" in command


@pytest.mark.slow
def test_explore_itself_is_run(source):
    session = open_session(str(source))
    assert {c["label"] for c in session.inspect("The river of stone", None, {})["concepts"]} == {""}
    gathering = Gathering(str(source), session, AppSettings())
    gathering.start()
    told = finished(gathering, 300)
    gathering.end()
    assert told["state"] == "done", told
    assert find_explored(source).summary["n_samples"] <= 200
    assert any(c["label"] for c in session.inspect("The river of stone", None, {})["concepts"])
    assert main(["export", str(source)]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look for processes in")
def test_what_runs_ends_with_an_app_that_is_told_to_end(tmp_path):
    sae = save_text_sae(tmp_path / "sae", save_text(tmp_path))
    command = [sys.executable, "-m", "sae_lens_sparsemax", "app", str(sae), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
        line = next(line for line in app.stdout if "http://" in line)
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        server = SimpleNamespace(listener=SimpleNamespace(getsockname=lambda: ("127.0.0.1", port)))
        assert json.loads(request(server, "POST", "/api/gather", "{}")[1])["state"] == "running"
        (child,) = children(app.pid)
        app.send_signal(signal.SIGTERM)
        app.wait(60)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))
    assert find_explored(sae) is None


def children(pid):
    """Numbers of the processes that a process has started, of which /proc tells: parents stand after their names."""
    stats = [stat.read_text() for stat in Path("/proc").glob("[0-9]*/stat")]
    return [int(stat.split()[0]) for stat in stats if int(stat.rpartition(")")[2].split()[1]) == pid]
