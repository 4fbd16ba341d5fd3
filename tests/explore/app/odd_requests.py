"""Requests that no page of ours sends, as bytes on the wire, with the status that each is answered with."""

import base64
import io
import json
import socket
import zlib
from typing import Any

from PIL import Image

HOST = "127.0.0.1"


def post(body: bytes, host: str, *headers: str, length: object = None, path: str = "/api/inspect") -> bytes:
    """A question as the page asks it, but for what is given."""
    own = {"Host": host, "Content-Type": "application/json", "Content-Length": len(body) if length is None else length}
    for header in headers:
        name, _, value = header.partition(": ")
        own[name] = value
    lines = [f"{name}: {value}" for name, value in own.items() if value != ""]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


def ask(port: int, *parts: bytes, end: bool = False) -> tuple[int, Any]:
    """Status and JSON of the answer to bytes that are sent as they are; `end` closes our side after them."""
    with socket.create_connection((HOST, port), timeout=60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            if end:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # what was refused need not be sent to its end
        answer = b""
        while True:
            answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            head, found, body = answer.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if found and lengths and len(body) >= int(lengths[0].split(b":")[1]):
                break
            part = connection.recv(2**16)
            assert part, f"no whole answer: {answer[:200]!r}"
            answer += part
        assert b"\r\ncontent-type: application/json" in head.lower()
        return int(head.split()[1]), json.loads(body)


def question(given: object = "a b", **more: object) -> bytes:
    return json.dumps({"given": given, **more}).encode()


def bodies() -> dict[str, bytes]:
    """Bodies that are no question to a session on text: each is a 400."""
    return {
        "nothing": b"",
        "no JSON": b"{'given': 1}",
        "nested lists": b"[" * 100_000,
        "nested objects": b'{"given":' * 100_000,
        "nested in the text": b'{"given":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a list": b"[]",
        "null": b"null",
        "a text": b'"given"',
        "no text": b"{}",
        "a number for a text": question(1),
        "null for a text": question(None),
        "a list for a text": question(["a"]),
        "a truth value for a position": question(position=True),
        "half a position": question(position=0.5),
        "an endless position": b'{"given":"a b","position":1e999}',
        "a position beyond": question(position=10**6),
        "a position before": question(position=-1),
        "a position of 5,000 digits": b'{"given":"a b","position":1' + b"0" * 5_000 + b"}",
        "an endless concept": b'{"given":"a b","changes":[[1e999,1,0]]}',
        "an endless factor": b'{"given":"a b","changes":[[0,1e999,0]]}',
        "a factor that is none": b'{"given":"a b","changes":[[0,NaN,0]]}',
        "a factor of minus infinity": b'{"given":"a b","changes":[[0,-Infinity,0]]}',
        "a factor of 400 digits": b'{"given":"a b","changes":[[0,1' + b"0" * 400 + b",0]]}",
        "a concept beyond": question(changes=[[10**9, 0, 0]]),
        "a concept before": question(changes=[[-1, 0, 0]]),
        "a change of two": question(changes=[[1, 2]]),
        "a change of four": question(changes=[[1, 2, 3, 4]]),
        "a change that is none": question(changes=[None]),
        "changes by name": question(changes={"1": [0, 0]}),
        "too many changes": question(changes=[[0, 1, 0]] * 5_000),
        "an unknown key": question(given_by="me"),
        "a lone surrogate": b'{"given":"a \\ud800 b"}',
        "a surrogate the wrong way round": b'{"given":"a \\udc00\\ud800 b"}',
        "a surrogate for a key": b'{"given":"a b","\\udfff":1}',
        "no UTF-8": b'{"given":"a \xff b"}',
        "UTF-16": '{"given":"a b"}'.encode("utf-16"),
        "an empty text": question(" \n"),
        "too long a text": question("word " * 5_000),
        "two questions": question() * 2,
    }


def wholes(port: int) -> dict[str, tuple[int, bytes]]:
    """Whole requests with the status of each."""
    host, good = f"{HOST}:{port}", question()
    head = f"POST /api/inspect HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n".encode()
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    return {
        "another site": (403, post(good, "evil.example")),
        "another site at our port": (403, post(good, f"evil.example:{port}")),
        "another port": (403, post(good, f"{HOST}:{port + 1}")),
        "no host": (403, b"GET / HTTP/1.0\r\n\r\n"),
        "a host with a name in it": (403, post(good, f"127.0.0.1.evil.example:{port}")),
        "a page of another site": (403, post(good, host, "Origin: https://evil.example")),
        "a file's page": (403, post(good, host, "Origin: null")),
        "another port's page": (403, post(good, host, f"Origin: http://{HOST}:{port + 1}")),
        "a page over TLS": (403, post(good, host, f"Origin: https://{host}")),
        "two hosts": (400, post(good, host, f"host: {host}")),
        "text": (415, post(good, host, "Content-Type: text/plain")),
        "a form": (415, post(b"given=a", host, "Content-Type: application/x-www-form-urlencoded")),
        "no type": (415, post(good, host, "Content-Type: ")),
        "almost JSON": (415, post(good, host, "Content-Type: application/jsonp")),
        "no such page": (404, post(good, host, path="/api/nothing")),
        "a path upwards": (404, f"GET /../server.py HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()),
        "a hidden path upwards": (404, f"GET /%2e%2e/%00server.py HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()),
        "the wrong method": (405, f"GET /api/inspect HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()),
        "an unknown method": (405, f"BREW / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()),
        "a proxy's request": (404, f"GET http://evil.example/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()),
        "no length": (400, post(good, host, length="")),
        "a negative length": (400, post(good, host, length="-5")),
        "a length in words": (400, post(good, host, length="ten")),
        "a length in superscript": (400, post(good, host, length="\xb2")),
        "two lengths": (400, post(good, host, "content-length: 3")),
        "a length of 40 digits": (400, post(good, host, length="9" * 40)),
        "a large length": (413, post(good, host, length=10**9)),
        "a large body": (413, post(b'{"given":"' + b"a" * (40 * 2**20) + b'"}', host)),
        "a large body for no page": (404, post(b"a" * (8 * 2**20), host, path="/nothing")),
        "a large body from another site": (403, post(b"a" * (8 * 2**20), "evil.example")),
        "a large chunked body": (413, chunked + (b"100000\r\n" + b"a" * 2**20 + b"\r\n") * 40 + b"0\r\n\r\n"),
        "a chunk without a size": (400, chunked + b"zz\r\nabc\r\n"),
        "a chunk too short": (400, chunked + b"2\r\nabcdef\r\n0\r\n\r\n"),
        "an unknown coding": (400, head + b"Transfer-Encoding: gzip\r\n\r\n" + good),
        "a long head": (400, post(good, host, "X-Long: " + "a" * 200_000)),
        "no HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n"),
        "HTTP of another age": (403, b"GET / HTTP/9.9\r\n\r\n"),
        "a line break in a header": (400, f"GET / HTTP/1.1\r\nHost: {host}\r\n broken\r\nno colon\r\n\r\n".encode()),
    }


def images() -> dict[str, bytes]:
    """Files that are no image to be taken: each is a 400."""

    def saved(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
        file = io.BytesIO()
        Image.effect_noise(size, 50).save(file, kind)
        return file.getvalue()

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    def png(width: int, height: int) -> bytes:
        head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
        content = zlib.compress(bytes(10**6))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")

    whole = {kind: saved(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")}
    return {
        "nothing": b"",
        "text": b"no image",
        "zeros": bytes(1_000),
        "a page": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "a bomb": png(60_000, 60_000),
        "an endless image": png(2**31 - 1, 2**31 - 1),
        "an empty image": png(0, 0),
        "a stripe": saved("PNG", (2_000, 2)),
        **{f"half a {kind}": content[: len(content) // 2] for kind, content in whole.items() if kind != "TIFF"},
        **{f"the head of a {kind}": content[:20] for kind, content in whole.items()},
    }


def image_question(content: bytes) -> bytes:
    return question(base64.b64encode(content).decode())
