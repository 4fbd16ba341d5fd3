"""Every request gets an answer, as JSON with one sentence, and the server goes on; also with twenty clients at once."""

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.explore.app import guard, questions
from sae_lens_sparsemax.explore.app import server as server_module
from sae_lens_sparsemax.explore.app.session import ImageSession, TextSession
from tests.explore.app import odd_requests
from tests.explore.app.odd_requests import HOST, ask, post, question
from tests.explore.app.test_session import encoded
from tests.support.sites import save_text, save_text_sae
from tests.support.started_ranks import StartedRanks

N_CLIENTS = 20


@pytest.fixture(scope="module")
def texts(serving, language_model_and_sae):
    return serving(TextSession(*language_model_and_sae))


@pytest.fixture(scope="module")
def photos(serving, clip_and_sae):
    return serving(ImageSession(*clip_and_sae))


def is_a_sentence(answer) -> bool:
    text = answer["error"]
    return set(answer) == {"error"} and text == " ".join(text.split()) and 10 < len(text) < 1_000


@pytest.mark.parametrize("name", odd_requests.bodies())
def test_what_is_no_question_is_told(texts, name):
    status, answer = ask(texts.port, post(odd_requests.bodies()[name], f"{HOST}:{texts.port}"))
    assert status == 400 and is_a_sentence(answer)


@pytest.mark.parametrize("name", odd_requests.wholes(1))
def test_what_is_no_request_is_told(texts, name):
    expected, request = odd_requests.wholes(texts.port)[name]
    status, answer = ask(texts.port, request)
    assert status == expected and is_a_sentence(answer)
    assert ask(texts.port, post(question(), f"{HOST}:{texts.port}"))[0] == 200


@pytest.mark.parametrize("name", odd_requests.images())
def test_what_is_no_image_is_told(photos, name):
    body = odd_requests.image_question(odd_requests.images()[name])
    status, answer = ask(photos.port, post(body, f"{HOST}:{photos.port}"))
    assert status == 400 and is_a_sentence(answer)


def test_good_questions_may_come_in_any_form(texts):
    host = f"{HOST}:{texts.port}"
    expected = ask(texts.port, post(question(), host))
    assert expected[0] == 200
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (question()[:7], question()[7:])) + b"0\r\n\r\n"
    head = post(b"", host, "Transfer-Encoding: chunked", length="")
    assert ask(texts.port, head + chunks) == expected
    assert ask(texts.port, post(question(), host, f"Origin: http://{host}")) == expected
    assert ask(texts.port, post(question(), f"LOCALHOST:{texts.port}")) == expected
    assert ask(texts.port, post(question(), host, "Content-Type: Application/JSON; charset=utf-8")) == expected
    assert ask(texts.port, post(question(), host, "Expect: 100-continue")) == expected
    assert ask(texts.port, post(question(), host), end=True) == expected
    assert ask(texts.port, post(question("a <|endoftext|> \0 \u202e b"), host))[0] == 200


def test_huge_changes_and_failures_of_the_model_are_told(texts, monkeypatch):
    host = f"{HOST}:{texts.port}"
    status, answer = ask(texts.port, post(question(changes=[[0, 1, 1e38], [1, 1, -1e38]]), host))
    assert status == 200 or (status == 400 and is_a_sentence(answer))

    def fail(*_):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(texts.session, "inspect", fail)
    status, answer = ask(texts.port, post(question(), host))
    assert status == 500 and "RuntimeError: out of memory" in answer["error"]


def test_those_who_stop_half_way_hold_nobody_up(texts, monkeypatch):
    monkeypatch.setattr(questions, "_SECONDS_FOR_BODY", 0.3)
    for name in ("_SECONDS_FOR_HEAD", "_SECONDS_AFTER_ANSWER"):
        monkeypatch.setattr(guard, name, 0.3)
    host = f"{HOST}:{texts.port}"
    whole = post(question(), host)
    for part in (b"", b"POST", whole[:60], whole[:-3]):
        status, answer = ask(texts.port, part)
        assert status == 408 and is_a_sentence(answer)
    for part in (b"POST", whole[:60], whole[:-3]):
        assert ask(texts.port, part, end=True)[0] == 400
    held = [socket.create_connection((HOST, texts.port)) for _ in range(100)]
    for connection in held:
        connection.sendall(whole[:-3])
    assert ask(texts.port, whole)[0] == 200
    for connection in held:
        connection.close()


def test_more_questions_than_can_wait_are_refused(serving, monkeypatch):
    monkeypatch.setattr(server_module, "_MOST_QUESTIONS", 4)
    go_on, running = threading.Event(), []

    class Slow:
        kind, most_bytes, opening, pages = "text", 1_000, {}, None

        def inspect(self, given, position, changes, classes):
            running.append(given)
            assert len(running) == 1  # one at a time
            go_on.wait(30)
            running.remove(given)
            return {"given": given}

    server = serving(Slow())
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(ask, server.port, post(question(str(n)), f"{HOST}:{server.port}")) for n in range(10)]
        while sum(answer.done() for answer in answers) < 6:
            pass
        assert ask(server.port, f"GET /api/session HTTP/1.1\r\nHost: {HOST}:{server.port}\r\n\r\n".encode())[0] == 200
        go_on.set()
        assert sorted(answer.result()[0] for answer in answers) == [200] * 4 + [503] * 6


@pytest.mark.parametrize("port", [99_999, -1, "no"])
def test_what_is_no_port_is_told_before_anything_is_loaded(port, capsys):
    assert main(["app", "no/such/sae", "--port", str(port)]) == 2
    assert "port must be" in capsys.readouterr().err


def test_a_taken_port_is_told_before_anything_is_loaded(texts, capsys):
    assert main(["app", "no/such/sae", "--port", str(texts.port)]) == 2
    assert f"got {texts.port}: Address already in use" in capsys.readouterr().err


def test_at_port_80_the_host_need_not_name_it():
    assert {"127.0.0.1", "localhost:80"} <= set(guard.Guarded(None, 80).hosts)  # type: ignore[arg-type]
    assert "localhost" not in guard.Guarded(None, 7860).hosts  # type: ignore[arg-type]


def app(sae: Path, out: Path) -> int:
    with out.open("w") as file, contextlib.redirect_stdout(file):
        return main(["app", str(sae), "--port", "0"])


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly(tmp_path):
    (out := tmp_path / "out").touch()
    started = StartedRanks(1, tmp_path / "err", app, save_text_sae(tmp_path / "sae", save_text(tmp_path)), out)
    while "Ctrl-C" not in out.read_text():
        assert started.processes[0].is_alive(), started.printed()
        time.sleep(0.1)
    port = int(out.read_text().split(f"http://{HOST}:")[1].split("/")[0])
    assert ask(port, post(question(), f"{HOST}:{port}"))[0] == 200
    half = socket.create_connection((HOST, port))
    half.sendall(post(question(), f"{HOST}:{port}")[:-1])
    os.kill(started.processes[0].pid, signal.SIGINT)
    assert started.wait(60) == [0]
    half.close()
    assert out.read_text().splitlines()[2:] == ["", "Ended."] and "Traceback" not in started.printed()


@pytest.mark.slow
def test_twenty_clients_at_once_get_what_each_asked_for(texts, photos):
    """Good and odd requests mixed at random: the good answers are right, and the odd ones told."""
    rng = random.Random(0)
    hosts = {server: f"{HOST}:{server.port}" for server in (texts, photos)}
    words = ["the", "river", "of", "stone", "said", "日本", "<b>"]
    good = []
    for _ in range(12):
        given = " ".join(rng.choices(words, k=rng.randrange(1, 8)))
        good.append((texts, (given, None, {}), question(given)))
        photo = Image.effect_noise((rng.randrange(20, 90), rng.randrange(20, 90)), 80)
        good.append((photos, (encoded(photo), rng.randrange(16), {}), None))
    requests = []
    for server, arguments, _ in good:
        body = question(arguments[0], position=arguments[1])
        expected = json.loads(json.dumps(server.session.inspect(*arguments)))
        requests += [(server, post(body, hosts[server]), 200, expected)] * 5
    odd = [(texts, post(body, hosts[texts]), 400, None) for body in odd_requests.bodies().values()]
    odd += [
        (server, raw, status, None) for server in hosts for status, raw in odd_requests.wholes(server.port).values()
    ]
    odd += [
        (photos, post(odd_requests.image_question(content), hosts[photos]), 400, None)
        for content in odd_requests.images().values()
    ]
    requests += odd
    rng.shuffle(requests)

    def one(request):
        server, raw, status, expected = request
        found, answer = ask(server.port, raw)
        return found == status and (answer == expected if expected is not None else is_a_sentence(answer))

    with ThreadPoolExecutor(N_CLIENTS) as pool:
        wrong = [request for request, right in zip(requests, pool.map(one, requests), strict=True) if not right]
    assert not wrong, [(raw[:200], status) for _, raw, status, _ in wrong]
