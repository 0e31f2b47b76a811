"""Hundreds of requests that nobody means well with: each gets an answer, none ends or stops the server."""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from api_server import Live, data_url, error_of, image, live, png, served, text, user
from PIL import Image
from pydantic import ValidationError

from sightbridge.serving.api.body import ChatBody, ScoreBody

JSON = {"Content-Type": "application/json"}
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    2**70,
    10**400,
    1e308,
    -0.5,
    "",
    " ",
    "3",
    "\x00",
    "\ud800",
    "a" * 5000,
    "<image>" * 50,
    "<bbox99>",
    "</s><s>[INST]",
    [],
    [[[[]]]],
    {},
    {"a": {"b": [1]}},
    [None],
    "data:",
    "data:image/png;base64,",
    "data:text/html,<script>",
    "file:///etc/passwd",
    "/dev/zero",
    "../../etc/passwd",
    "http://127.0.0.1:1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:127.0.0.1]/",
    "file-" + "0" * 32,
]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    bounds = {"max_pixels": 1_000_000, "default_tokens": 2, "max_tokens": 16, "max_characters": 20_000}
    with live(served(), llava=True, **bounds) as running:
        question = user(image(3), text("What is it?"))
        before = running.ask(question, max_tokens=5).json()["choices"]
        yield running
        assert running.ask(question, max_tokens=5).json()["choices"] == before, "the server is as it was"
        assert running.state.in_flight == 0
        ours = [thread.name for thread in threading.enumerate() if thread.name.startswith("sightbridge")]
        assert len(ours) <= 2, "the engine's and that of scores"


def send(server: Live, path: str, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    """Post, and see that the answer comes soon, is an answer or a refusal, and says nothing of ours."""
    start = time.monotonic()
    response = server.http.post(path, content=content, headers=JSON if headers is None else headers)
    assert time.monotonic() - start < 10
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        error_of(response)
    elif path.startswith("/worker_generate"):
        lines = [json.loads(line) for line in response.content.removesuffix(b"\0").split(b"\0")]
        assert all(set(line) == {"text", "error_code"} for line in lines), lines
        assert not any("Something failed here" in line["text"] for line in lines), lines
    return response


def whole_request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A right request that uses many fields."""
    way = rng.random()
    if way < 0.2:
        return "/worker_generate_stream", {
            "model": "small",
            "prompt": "USER: <image>\nWhat is it? ASSISTANT:",
            "images": [base64.b64encode(png(1)).decode()],
            "temperature": 0.2,
            "top_p": 0.7,
            "top_k": 20,
            "repetition_penalty": 1.1,
            "max_new_tokens": 2,
            "stop": "</s>",
        }
    region = {"bbox": [1, 1, 9, 9], "polygon": [1, 1, 9, 2, 5, 9], "shape": "arrow", "color": "red", "width": 2}
    if way < 0.4:
        images = [data_url(1), {"url": data_url(2), "regions": [region]}]
        return "/score", {"model": "small", "images": images, "texts": ["a dog"], "kind": "vqascore", "trace": True}
    beams = {"num_beams": 2, "length_penalty": 2.0}
    drawn = {"n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "logprobs": True, "top_logprobs": 2}
    return "/v1/chat/completions", {
        "model": "small",
        "messages": [
            {"role": "system", "content": "Be brief."},
            user(image(1, regions=[region]), text("What is <bbox>?")),
            {"role": "assistant", "content": "A dog."},
            user("Why?"),
        ],
        "max_tokens": 2,
        "min_tokens": 1,
        "repetition_penalty": 1.5,
        "stop": ["x"],
        "seed": 1,
        "stream": False,
        **(beams if way < 0.6 else drawn),
    }


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def spoil(tree: Any, rng: random.Random) -> None:
    """Change, remove or add something somewhere."""
    *path, key = rng.choice(list(places(tree)))
    for step in path:
        tree = tree[step]
    if (how := rng.random()) < 0.75:
        tree[key] = rng.choice(ODD)
    elif how < 0.9:
        del tree[key]
    elif isinstance(tree, dict):
        tree[rng.choice(["x", "__class__", "url", "regions", "", "\ud800"])] = rng.choice(ODD)


@pytest.mark.parametrize("seed", range(8))
def test_spoilt_fields(server: Live, seed: int) -> None:
    rng = random.Random(seed)
    statuses = []
    for _ in range(40):
        path, request = whole_request(rng)
        for _ in range(rng.randint(1, 2)):
            spoil(request, rng)
        statuses.append(send(server, path, json.dumps(request).encode()).status_code)
    assert set(statuses) <= {200, 400, 404, 413, 422} and len(set(statuses)) > 1


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((60, 40), 90).convert("RGB").save(file, format, **options)
    return file.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "wide header": lambda: png_of(60_000, 60_000, zlib.compress(b"\0" * 1000)),
    "largest header": lambda: png_of(2**31 - 1, 2**31 - 1, b""),
    "no pixels": lambda: png_of(0, 0, b""),
    "zlib bomb": lambda: png_of(900, 900, zlib.compress(b"\0" * 200_000_000, 9)),
    "text bomb": lambda: png_of(9, 9, b"", chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 200_000_000, 9))),
    "icc bomb": lambda: png_of(9, 9, b"", chunk(b"iCCP", b"a\0\0" + zlib.compress(b"a" * 100_000_000, 9))),
    "thin": lambda: png_of(1_000_000, 1, zlib.compress(b"\0" * 3_000_001)),
    "many frames": lambda: saved(
        "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40), (n, 0, 0)) for n in range(99)]
    ),
    "tiff of a huge offset": lambda: b"II*\0\xff\xff\xff\xff",
    "ppm of a huge size": lambda: b"P6 100000 100000 255\n",
    "bmp of a negative size": lambda: b"BM" + struct.pack("<IHHIIiiHH", 99, 0, 0, 54, 40, -5, -5, 1, 24) + b"\0" * 30,
    "svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "zeros": lambda: b"\0" * 1000,
}


HARMLESS = ("many frames", "zlib bomb")
"""The first frame alone is looked at, and no more is unpacked than a picture has room for."""


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(server: Live, name: str) -> None:
    bomb = BOMBS[name]()
    request = {"messages": [user(image(bomb), text("What is it?"))]}
    status = send(server, "/v1/chat/completions", json.dumps(request).encode()).status_code
    assert status == (200 if name in HARMLESS else 400)
    if name != "thin":  # which opens, but is no shape that a model can see
        assert server.http.post("/v1/files", files={"file": ("x.png", io.BytesIO(bomb))}).status_code == status


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_pictures(server: Live, format: str) -> None:
    """Cut off anywhere, or with some bytes changed: either it opens or it is refused."""
    rng, whole = random.Random(format), saved(format)
    for _ in range(12):
        cut = whole[: rng.randrange(len(whole))]
        flipped = bytearray(whole)
        for _ in range(rng.randint(1, 20)):
            flipped[rng.randrange(len(whole))] = rng.randrange(256)
        for damaged in (cut, bytes(flipped)):
            request = {"messages": [user(image(damaged), text("What is it?"))]}
            assert send(server, "/v1/chat/completions", json.dumps(request).encode()).status_code in (200, 400)


BODIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 422),
    "no json": (b"{", 400),
    "a list": (b"[]", 422),
    "null": (b"null", 422),
    "a text": (b'"x"', 422),
    "not utf-8": (b'{"messages": "\xff\xfe"}', 400),
    "deep": (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
    "a number of many digits": (b'{"n": ' + b"9" * 10_000 + b"}", 400),
    "not a number": (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 422),
    "infinite": (b'{"messages": [{"role": "user", "content": "a"}], "temperature": Infinity}', 422),
    "many keys": (json.dumps({f"k{n}": 1 for n in range(50_000)}).encode(), 422),
    "many messages": (json.dumps({"messages": [user("a")] * 5000}).encode(), 422),
    "many parts": (json.dumps({"messages": [user(*[text("a")] * 30_000)]}).encode(), 413),
    "a long prompt": (json.dumps({"messages": [user("word " * 100_000)]}).encode(), 413),
    "a long word": (json.dumps({"messages": [user("a" * 19_000)]}).encode(), 400),
    "many pictures": (json.dumps({"messages": [user(*[image(1)] * 500)]}).encode(), 413),
    "many regions": (json.dumps({"messages": [user(image(1, regions=[{"bbox": [1, 1, 2, 2]}] * 1000))]}).encode(), 413),
    "a long polygon": (
        json.dumps({"messages": [user(image(1, regions=[{"polygon": [1.0] * 100_000}]))]}).encode(),
        422,
    ),
    "far polygon": (json.dumps({"messages": [user(image(1, regions=[{"polygon": [1e300] * 8}]))]}).encode(), 400),
    "a wide mark": (
        json.dumps({"messages": [user(image(1, regions=[{"bbox": [1, 1, 9, 9], "width": 1e9}]))]}).encode(),
        400,
    ),
    "base64 of another alphabet": (json.dumps({"messages": [user(image("data:image/png;base64,a-_b"))]}).encode(), 400),
    "base64 cut off": (json.dumps({"messages": [user(image(data_url(1)[:-3]))]}).encode(), 400),
    "no base64": (json.dumps({"messages": [user(image("data:image/png,abc"))]}).encode(), 400),
    "a name of a model": (json.dumps({"model": "../" * 1000, "messages": [user("a")]}).encode(), 404),
    "many stops": (json.dumps({"messages": [user("a")], "stop": ["x"] * 100}).encode(), 422),
    "a long stop": (json.dumps({"messages": [user("a")], "stop": ["x" * 100_000]}).encode(), 422),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(server: Live, name: str) -> None:
    body, status = BODIES[name]
    response = send(server, "/v1/chat/completions", body)
    assert response.status_code == status, response.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/score", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/files/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/files/" + "a" * 5000, 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/%ff%fe", 404),
        ("GET", "/docs", 404),
        ("GET", "/" + "a/" * 2000, 404),
        ("BREW", "/score", 405),
    ],
)
def test_paths(server: Live, method: str, path: str, status: int) -> None:
    response = server.http.request(method, path)
    assert error_of(response)["status"] == status


FORMS: list[tuple[bytes, str]] = [
    (b"", "multipart/form-data"),
    (b"", "multipart/form-data; boundary=x"),
    (b"--x\r\n", "multipart/form-data; boundary=x"),
    (b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\nabc\r\n--x--\r\n", "multipart/form-data; boundary=x"),
    (b"--x\r\n\r\n\r\n--x--\r\n", "multipart/form-data; boundary=x"),
    (b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n", "multipart/form-data; boundary=x"),
    (b"\xff" * 5000, "multipart/form-data; boundary=\xff"),
    (
        b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n" * 3000 + b"--x--\r\n",
        "multipart/form-data; boundary=x",
    ),
]


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_forms(server: Live, number: int) -> None:
    body, kind = FORMS[number]
    response = server.http.post("/v1/files", content=body, headers={b"Content-Type": kind.encode("latin-1")})
    assert error_of(response)["status"] in (400, 413, 422)


RAW: list[bytes] = [
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999999999999\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 900) for n in range(200)) + b"\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("number", range(len(RAW)))
def test_what_is_hardly_http(server: Live, number: int) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        try:
            peer.sendall(RAW[number])
            peer.shutdown(socket.SHUT_WR)
            answer = peer.recv(100)
        except TimeoutError:
            raise
        except OSError:  # the server had enough of it
            return
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_many_at_once(server: Live) -> None:
    """Good and bad ones from twelve sides: all are answered."""
    statuses: list[int] = []

    def bother(seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for _ in range(6):
                path, request = whole_request(rng)
                if rng.random() < 0.5:
                    spoil(request, rng)
                body = json.dumps(request).encode()
                statuses.append(client.post(path, content=body, headers=JSON).status_code)

    run: list[Callable[[], None]] = [lambda seed=seed: bother(seed) for seed in range(100, 112)]
    threads = [threading.Thread(target=one) for one in run]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(statuses) == 72 and set(statuses) <= {200, 400, 404, 413, 422, 429}


def test_png_helper_makes_pictures() -> None:
    """The bombs are refused for what they are, not for being no pictures."""
    image = Image.open(io.BytesIO(png_of(2, 1, zlib.compress(b"\0" + b"\1\2\3" * 2))))
    assert image.convert("RGB").getpixel((1, 0)) == (1, 2, 3) and png(1)[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("path", "body", "problems"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [0] * 5000}]}, 1),
        ("/v1/chat/completions", {"messages": [user(image(regions=[{"strokes": [[]] * 5000}]))]}, 1),
        ("/v1/chat/completions", {"messages": [user("x")], **{f"key{n}": 1 for n in range(5000)}}, 8),
        ("/score", {"images": [0] * 4000, "texts": ["x"]}, 1),
    ],
)
def test_of_many_problems_few_are_told(path: str, body: dict[str, Any], problems: int) -> None:
    """Each would take kilobytes, and a body has room for millions."""
    kind = ScoreBody if path == "/score" else ChatBody
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() == problems


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/score", "/worker_generate_stream"])
def test_a_body_of_too_many_values_is_not_even_read(server: Live, path: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "x"}], "metadata": [' + b"[]," * 500_000 + b"[]]}"
    refused = error_of(server.http.post(path, content=body, headers=JSON))
    assert (refused["status"], refused["code"]) == (413, "too_many_values")


def test_text_is_bounded_however_it_is_written(server: Live) -> None:
    most = server.state.settings.max_characters
    parts = error_of(server.ask(user(*[text("")] * (most + 2))))
    assert (parts["status"], parts["code"]) == (413, "too_many_characters")
    for fields in (
        {"question_template": "{}" + "x" * most},
        {"answer_template": "{}" * (most // 100), "texts": ["x" * 200]},
        {"other_answer": "x" * (most + 1)},
    ):
        asked = {"images": [data_url()], "texts": ["x"], **fields}
        assert error_of(server.http.post("/score", json=asked))["code"] == "too_much"


@pytest.mark.parametrize("fields", [{"texts": ["x " * 9000]}, {"question_template": "{}" + " x" * 9000}])
def test_a_row_of_scores_is_bounded(server: Live, fields: dict[str, Any]) -> None:
    """Its attention would take the square of its length, for every row of a batch."""
    refused = error_of(server.http.post("/score", json={"images": [data_url()], "texts": ["x"], **fields}))
    assert refused["status"] == 400 and "1,024 are scored" in refused["message"]
