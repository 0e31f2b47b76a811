"""One address for models that are elsewhere, without Ray: what goes on to them, what does not, and what comes back."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from api_server import SteeredEngine, answer_yes, error_of, image, png, served, text, user, wait_until

from sightbridge.config.serving import ServingSettings
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.app import make_app, make_state
from sightbridge.serving.engines.request import Piece
from sightbridge.serving.front import Ask, ModelElsewhere, call, make_front


def elsewhere(name: str, engine: SteeredEngine) -> ModelElsewhere:
    """A model in an application of its own, which is called as a replica's is."""
    app = make_app(make_state([served(engine, name=name)]))
    return ModelElsewhere(name, lambda scope, body: call(app, scope, body))


@contextmanager
def front(*models: ModelElsewhere, key: str | None = None, **settings: Any) -> Iterator[httpx.Client]:
    app = make_front(models, ServingSettings(**settings), key)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(10)


def ask(http: httpx.Client, model: str | None = None, **fields: Any) -> httpx.Response:
    body = {"messages": [user(image(1), text("What is it?"))], **({"model": model} if model else {}), **fields}
    return http.post("/v1/chat/completions", json=body)


def test_requests_go_to_the_model_that_they_name() -> None:
    engines = {"one": SteeredEngine(), "two": SteeredEngine()}
    with front(*(elsewhere(name, engine) for name, engine in engines.items())) as http:
        client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list().data] == ["one", "two"]
        assert client.models.retrieve("two").model_dump()["answers"] is True
        messages: Any = [user(image(1), text("What is it?"))]
        chunks = list(client.chat.completions.create(model="two", messages=messages, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Yes."
        assert ask(http, "two").json()["choices"][0]["message"]["content"] == "Yes."
        assert [len(engine.tickets) for engine in engines.values()] == [0, 2]
        missing = error_of(ask(http, "three"))
        assert missing["status"] == 404 and "one, two" in missing["message"]
        assert error_of(ask(http))["message"].startswith("Which model?")
        assert "no JSON" in error_of(json_post(http, b"{"))["message"]
        assert error_of(json_post(http, b'{"model": 5}'))["status"] == 422
        assert error_of(json_post(http, b"[]"))["status"] == 422
        assert http.get("/healthz").json()["models"] == ["one", "two"]


def json_post(http: httpx.Client, body: bytes) -> httpx.Response:
    return http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})


def test_the_front_is_a_gate_as_any_server_is() -> None:
    with front(
        elsewhere("small", SteeredEngine()), key="s3cret", allowed_hosts=["127.0.0.1"], max_body_bytes=500
    ) as http:
        assert error_of(ask(http))["status"] == 401
        assert error_of(http.get("/v1/models"))["status"] == 401
        assert http.get("/healthz").status_code == 200
        http.headers["Authorization"] = "Bearer s3cret"
        assert error_of(http.get("/v1/models", headers={"Host": "evil.example"}))["code"] == "host"
        assert error_of(json_post(http, b"x" * 600))["status"] == 413
        assert error_of(http.post("/score", content=b"{}", headers={"Content-Type": "text/plain"}))["status"] == 415
        assert "data: URLs" in error_of(http.post("/v1/files", files={"file": ("a.png", png(1)[:50])}))["message"]
        for method, path, status in (("GET", "/score", 405), ("GET", "/metrics", 404), ("GET", "/", 404)):
            assert error_of(http.request(method, path))["status"] == status


def test_an_answer_has_one_id_and_it_is_the_clients() -> None:
    with front(elsewhere("small", SteeredEngine())) as http:
        body = {"messages": [user("Hello")]}
        response = http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "mine-1"})
        assert response.headers.get_list("x-request-id") == ["mine-1"]


def test_who_leaves_frees_the_place_elsewhere() -> None:
    engine = SteeredEngine(lambda ticket: ticket.tell(Piece("Yes", (1,))))
    with front(elsewhere("small", engine)) as http:
        for stream in (False, True):
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json={"messages": [user("Hello")], "stream": stream}, timeout=0.3)
            wait_until(lambda: engine.tickets[-1].is_cancelled)
        assert len(engine.tickets) == 2


def breaking(after: int) -> Ask:
    """A replica that ends after so many messages of its answer."""
    app = make_app(make_state([served(SteeredEngine(answer_yes))]))

    async def answer(scope: Any, body: bytes) -> AsyncIterator[Any]:
        sent = 0
        async for message in call(app, scope, body):
            if sent == after:
                raise ApiError(502, "The replica has ended.", code="bad_gateway")
            yield message
            sent += 1

    return answer


def test_a_replica_that_ends_is_told_or_breaks_the_answer_off() -> None:
    with front(ModelElsewhere("small", breaking(0))) as http:
        assert error_of(ask(http))["code"] == "bad_gateway"
    with front(ModelElsewhere("small", breaking(2))) as http, pytest.raises(httpx.RemoteProtocolError):
        ask(http, stream=True)
