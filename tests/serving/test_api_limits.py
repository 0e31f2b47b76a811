"""Who may ask, how much and how large; and what is told of what goes wrong."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from api_server import (
    Live,
    SteeredEngine,
    answer_yes,
    data_url,
    error_of,
    image,
    live,
    png,
    served,
    text,
    user,
    wait_until,
)
from PIL import Image

from sightbridge.serving.api.access_log import log_to_stderr
from sightbridge.serving.engines.engine import QueueFull, StepError
from sightbridge.serving.engines.request import Finished, Piece
from sightbridge.serving.engines.ticket import Ticket


def steered(then: Callable[[Ticket], None] | None = None) -> tuple[SteeredEngine, Any]:
    engine = SteeredEngine(then)
    return engine, served(engine)


def test_only_the_key_opens() -> None:
    with live(api_key="s3cret-é") as server:
        for header in ("", "Bearer", "Bearer wrong", "Bearer s3cret", "Basic s3cret", "Bearer s3cret-é more"):
            response = httpx.get(f"{server.url}/v1/models", headers={"Authorization": header.encode()})
            assert error_of(response)["code"] == "invalid_api_key" and response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/openapi.json", "/v1/files/file-1"):
            assert server.http.get(path).status_code == 401
        assert server.http.post("/score", content=b"x" * 10_000_000).status_code == 401
        assert server.http.get("/healthz").status_code == 200
    with live(api_key="s3cret") as server:
        assert [model.id for model in server.openai.models.list().data] == ["small"]
        with pytest.raises(openai.AuthenticationError):
            server.openai.with_options(api_key="other").models.list()


def test_another_hosts_name_is_refused() -> None:
    """A page whose name was made to point at this machine cannot ask."""
    with live(allowed_hosts=["localhost", "127.0.0.1", "[::1]"]) as server:
        assert server.http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400
        assert server.http.get("/v1/models", headers={"Host": "localhost:8000"}).status_code == 200
        assert server.http.get("/v1/models", headers={"Host": "[::1]:8000"}).status_code == 200
        assert server.http.get("/v1/models").status_code == 200


def test_a_page_elsewhere_cannot_send_or_read() -> None:
    """What browsers send without asking first is not taken, and to their asking nothing is allowed."""
    with live() as server:
        body = json.dumps({"messages": [user("Hello")]})
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
            response = server.http.post("/v1/chat/completions", content=body, headers={"Content-Type": kind})
            assert error_of(response)["status"] == 415
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        response = server.http.options("/v1/chat/completions", headers=asked)
        assert response.status_code == 405
        response = server.ask(user("Hello"))
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("settings", "messages", "status", "says"),
    [
        ({"max_body_bytes": 1000}, [user("a" * 2000)], 413, "larger than 1,000 bytes"),
        ({"max_characters": 100}, [user("a" * 60), {"role": "assistant", "content": "b" * 60}, user("c")], 413, "121"),
        ({"max_images": 2}, [user(image(1), image(2), image(3))], 413, "3 pictures; at most 2"),
        ({"max_pixels": 599}, [user(image(png(0, 20, 30)))], 400, "20 x 30"),
        ({"max_image_bytes": 500}, [user(image(1))], 400, "500 bytes"),
        ({"max_regions": 1}, [user(image(1, regions=[{"bbox": [1, 1, 5, 5]}] * 2))], 413, "2 regions"),
    ],
)
def test_bounds(settings: dict, messages: list, status: int, says: str) -> None:
    with live(**settings) as server:
        error = error_of(server.ask(*messages))
        assert error["status"] == status and says in error["message"], error


def test_bounds_on_answers() -> None:
    with live(max_answers=2, max_tokens=50, default_tokens=40) as server:
        assert error_of(server.ask(user("Hello"), n=3))["param"] == "n"
        assert error_of(server.ask(user("Hello"), max_tokens=51))["param"] == "max_tokens"
        assert server.ask(user("Hello"), n=2, max_tokens=50).status_code == 200


def test_an_answers_usual_length() -> None:
    engine, model = steered()
    with live(model, default_tokens=40) as server:
        server.ask(user("Hello"))
        server.ask(user("Hello"), max_tokens=3)
    assert [ticket.request.settings.max_new_tokens for ticket in engine.tickets] == [40, 3]
    assert engine.tickets[0].request.logprobs is None and not engine.tickets[0].request.settings.sample


def test_a_body_without_its_length_is_bounded_too() -> None:
    def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 1000

    with live(max_body_bytes=5000) as server:
        response = server.http.post("/score", content=chunks(), headers={"Content-Type": "application/json"})
        assert error_of(response)["status"] == 413


def test_a_body_that_does_not_arrive() -> None:
    with (
        live(body_seconds=0.2) as server,
        socket.create_connection(("127.0.0.1", int(server.url[-5:].strip(":")))) as peer,
    ):
        peer.sendall(
            b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        assert b" 408 " in peer.recv(1000)


def test_a_full_queue_says_when_to_come_again() -> None:
    def refuse(ticket: Ticket) -> None:
        raise QueueFull("64 requests wait already.", 7.4)

    _, model = steered(refuse)
    with live(model) as server:
        for stream in (False, True):
            response = server.ask(user("Hello"), stream=stream)
            assert error_of(response) == {
                "status": 429,
                "message": "64 requests wait already.",
                "type": "rate_limit_error",
                "param": None,
                "code": "queue_full",
            }
            assert response.headers["retry-after"] == "7"
        with pytest.raises(openai.RateLimitError):
            server.chat(user("Hello"))


def test_of_several_answers_all_or_none_are_asked_for() -> None:
    engine = SteeredEngine()

    def refuse_third(ticket: Ticket) -> None:
        if len(engine.tickets) == 3:
            raise QueueFull("full", 1)

    engine.then = refuse_third
    with live(served(engine)) as server:
        assert server.ask(user("Hello"), n=3).status_code == 429
        wait_until(lambda: [ticket.is_cancelled for ticket in engine.tickets[:2]] == [True, True])


def test_more_requests_than_are_handled_at_once() -> None:
    engine, model = steered(lambda ticket: None)
    with live(model, max_in_flight=2) as server:
        threads = [threading.Thread(target=server.ask, args=(user("Hello"),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(engine.tickets) == 2)
        response = server.ask(user("Hello"))
        assert error_of(response)["status"] == 429 and response.headers["retry-after"] == "1"
        assert server.http.get("/healthz").json()["in_flight"] == 2
        for ticket in engine.tickets:
            answer_yes(ticket)
        for thread in threads:
            thread.join()
        wait_until(lambda: server.state.in_flight == 0)


def test_time_is_bounded() -> None:
    engine, model = steered(lambda ticket: None)
    with live(model, request_seconds=0.2) as server:
        response = server.ask(user("Hello"))
        assert error_of(response)["status"] == 504
        stream = server.ask(user("Hello"), stream=True).text
        assert '"code":"timeout"' in stream and "[DONE]" not in stream
        wait_until(lambda: all(ticket.is_cancelled for ticket in engine.tickets))


def test_who_leaves_frees_the_place() -> None:
    def begin(ticket: Ticket) -> None:
        ticket.tell(Piece("Yes", (1,)))

    engine, model = steered(begin)
    with live(model) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/v1/chat/completions", json={"messages": [user("Hello")]}, timeout=0.3)
        wait_until(lambda: engine.tickets[0].is_cancelled)
        stream = server.chat(user("Hello"), stream=True)
        assert next(iter(stream)).choices[0].delta.role == "assistant"
        stream.close()
        wait_until(lambda: engine.tickets[1].is_cancelled)


def test_a_failure_is_told_to_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    secret = "the secret of the model"

    def fail(ticket: Ticket) -> None:
        ticket.tell(StepError(secret))

    def break_down(ticket: Ticket) -> None:
        raise RuntimeError(secret)

    for then in (fail, break_down):
        _, model = steered(then)
        with live(model) as server:
            caplog.clear()
            response = server.http.post(
                "/v1/chat/completions", json={"messages": [user("Hello")]}, headers={"X-Request-Id": "mine-1"}
            )
            error = error_of(response)
            assert error["status"] == 500 and secret not in response.text and "mine-1" in error["message"]
            assert response.headers["x-request-id"] == "mine-1"
            wait_until(lambda: "sightbridge.access" in [record.name for record in caplog.records])
            (line,) = [json.loads(r.message) for r in caplog.records if r.name == "sightbridge.serving"]
            assert line["request_id"] == "mine-1" and secret in line["error"] and "Traceback" in line["error"]


def test_an_error_within_a_stream() -> None:
    def fail(ticket: Ticket) -> None:
        ticket.tell(Piece("Yes", (1,)))
        ticket.tell(StepError("a secret"))

    _, model = steered(fail)
    with live(model) as server:
        stream = server.chat(user("Hello"), stream=True)
        with pytest.raises(openai.APIError, match="Something failed here") as caught:
            list(stream)
        assert "secret" not in str(caught.value)


def test_an_engine_that_ends_before_the_answer() -> None:
    _, model = steered(lambda ticket: ticket.tell(Finished("cancelled", 3, 0, 0.1)))
    with live(model) as server:
        response = server.ask(user("Hello"))
        assert error_of(response)["status"] == 503 and response.headers["retry-after"]


def test_every_request_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with live(default_tokens=5) as server, caplog.at_level("INFO", "sightbridge.access"):
        caplog.clear()
        server.http.post(
            "/v1/chat/completions",
            json={"messages": [user(image(), text("My secret?"))]},
            headers={"X-Request-Id": "a b"},
        )
        server.http.get("/nothing/here")
        wait_until(lambda: len(caplog.records) >= 2)
        first, second = [json.loads(r.message) for r in caplog.records if r.name == "sightbridge.access"]
    assert (
        first.items()
        >= {
            "method": "POST",
            "path": "/v1/chat/completions",
            "status": 200,
            "model": "small",
            "images": 1,
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "client": "127.0.0.1",
        }.items()
    )
    assert first["seconds"] > 0 and first["bytes"] > 100 and len(first["request_id"]) == 32
    assert "secret" not in json.dumps(first)
    assert (second["status"], second["error"]) == (404, "not_found")


def test_every_line_of_the_log_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    access, errors = logging.getLogger("sightbridge.access"), logging.getLogger("sightbridge.serving")
    before = [(logger.handlers, logger.propagate, logger.level) for logger in (access, errors)]
    try:
        log_to_stderr()
        access.info('{"path": "/score"}')
        try:
            raise StepError("it broke")
        except StepError:
            logging.getLogger("sightbridge.serving.engines.engine").exception("a step of '%s' failed", "small")
    finally:
        for logger, (handlers, propagate, level) in zip((access, errors), before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first == {"path": "/score"}
    assert second["message"] == "a step of 'small' failed" and "it broke" in second["error"]


def test_metrics_count() -> None:
    with live() as server:
        for _ in range(3):
            server.ask(user("Hello"))
        server.http.get("/nothing/1")
        server.http.get("/nothing/2")
        response = server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    chat = 'path="/v1/chat/completions"'
    assert lines[f'sightbridge_requests_total{{method="POST",{chat},status="200"}}'] == "3.0"
    assert lines['sightbridge_requests_total{method="GET",path="other",status="404"}'] == "2.0"
    assert lines[f"sightbridge_request_seconds_count{{{chat}}}"] == "3.0"
    assert lines['sightbridge_tokens_total{kind="completion",model="small"}'] == "9.0"
    assert lines['sightbridge_engine_waiting{model="small"}'] == "0.0"
    assert lines["sightbridge_requests_in_flight"] == "1.0"  # that for the metrics


def test_uploads_are_bounded_and_make_room() -> None:
    with live(max_files_bytes=2 * len(png(1)) + 50) as server:
        ids = [server.openai.files.create(file=(f"{n}.png", png(n)), purpose="vision").id for n in range(3)]
        assert [server.http.get(f"/v1/files/{name}").status_code for name in ids] == [404, 200, 200]
        assert server.state.files.bytes <= 2 * len(png(1)) + 50
        large = io.BytesIO()
        Image.effect_noise((99, 99), 90).save(large, "PNG")
        assert server.http.post("/v1/files", files={"file": ("x.png", large.getvalue())}).status_code == 413
        broken = server.http.post("/v1/files", files={"file": ("x.png", b"no picture")})
        assert error_of(broken)["code"] == "invalid_image"
        assert server.http.post("/v1/files", data={"purpose": "vision"}).status_code in (415, 422)
        assert server.http.post("/v1/files", json={"file": data_url()}).status_code == 415


def test_draining_refuses_what_is_new() -> None:
    engine, model = steered(lambda ticket: None)
    with live(model) as server:
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(server.ask(user("Hello"))))
        thread.start()
        wait_until(lambda: engine.tickets)
        server.state.draining = True
        refused = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": [user("Hello")]})
        assert error_of(refused)["status"] == 503 and refused.headers["retry-after"]
        assert httpx.get(f"{server.url}/healthz").status_code == 503
        answer_yes(engine.tickets[0])
        thread.join()
        assert answers[0].json()["choices"][0]["message"]["content"] == "Yes."


def test_slow_pictures_do_not_stop_the_others() -> None:
    """While large pictures are decoded, the server goes on answering."""
    large = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).convert("RGB").save(large, "PNG", compress_level=1)
    url = data_url(large.getvalue())
    with live(max_body_bytes=200 * 2**20, max_image_bytes=2**26) as server:
        running: Live = server
        threads = [threading.Thread(target=running.ask, args=(user(image(url)),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        slowest = 0.0
        while any(thread.is_alive() for thread in threads):
            start = time.monotonic()
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            slowest = max(slowest, time.monotonic() - start)
        assert slowest < 5
