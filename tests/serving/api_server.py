"""A server on loopback in a thread, with the real engine on a small model or with one that tests steer."""

from __future__ import annotations

import base64
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn
from engine_requests import model_of, processor_of
from PIL import Image

from sightbridge.config.serving import ServingSettings
from sightbridge.serving.api.app import make_app, make_state
from sightbridge.serving.api.one_at_a_time import OneAtATime
from sightbridge.serving.api.remote import Remote
from sightbridge.serving.api.served import ServedModel
from sightbridge.serving.api.state import State
from sightbridge.serving.engines.engine import Engine
from sightbridge.serving.engines.request import Finished, Piece, Request
from sightbridge.serving.engines.ticket import Ticket
from small_models import picture


def png(seed: int = 0, width: int = 20, height: int = 30) -> bytes:
    """A picture of noise."""
    file = io.BytesIO()
    Image.fromarray(picture(seed, width, height)).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes | int = 0) -> str:
    """A picture as a URL, by its bytes or the seed of its noise."""
    return "data:image/png;base64," + base64.b64encode(png(data) if isinstance(data, int) else data).decode()


def image(data: bytes | int | str = 0, **fields: Any) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "image_url", "image_url": {"url": data if isinstance(data, str) else data_url(data)}, **fields}


def text(words: str) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    """A message of parts, or of plain text."""
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)}


class SteeredEngine:
    """An engine that does with each ticket what a test says; by default it answers "Yes." at once."""

    max_tokens = 512

    def __init__(self, then: Callable[[Ticket], None] | None = None) -> None:
        self.then = then or answer_yes
        self.tickets: list[Ticket] = []

    def submit(self, request: Request) -> Ticket:
        ticket = Ticket(request)
        self.tickets.append(ticket)
        self.then(ticket)
        return ticket

    def run_beside(self, work: Callable[[], Any]) -> Any:
        return work()

    def stats(self) -> dict[str, float]:
        return {"waiting": 0}

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        pass


def answer_yes(ticket: Ticket) -> None:
    ticket.tell(Piece("Yes", (1,)))
    ticket.tell(Piece(".", (2,)))
    ticket.tell(Finished("stop", 7, 3, 0.1))


def served(engine: Any = None, family: str = "llama", name: str = "small", **options: Any) -> ServedModel:
    """The small model with its real engine, or another."""
    model, processor = model_of(family), processor_of(family)
    engine = engine or Engine(model, processor, name=name, **options)
    return ServedModel(name, model, processor, engine, OneAtATime(name, 4))


class Live:
    """A running server."""

    def __init__(self, state: State, port: int) -> None:
        self.state = state
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=state.api_key or "none", max_retries=0)

    def ask(self, *messages: Any, **fields: Any) -> httpx.Response:
        """A raw chat request."""
        return self.http.post("/v1/chat/completions", json={"messages": list(messages), **fields})

    def chat(self, *messages: Any, **fields: Any) -> Any:
        """A request by the official client."""
        return self.openai.chat.completions.create(model="small", messages=list(messages), **fields)


@contextmanager
def live(
    *models: ServedModel,
    api_key: str | None = None,
    remote: Remote | None = None,
    page: bool = False,
    votes: Path | None = None,
    llava: bool = False,
    **settings: Any,
) -> Iterator[Live]:
    """Run a server of ``models``, by default the small one with a steered engine."""
    state = make_state(models or [served(SteeredEngine())], ServingSettings(**settings), api_key, remote)
    state.shows_page, state.votes, state.speaks_llava = page, votes, llava
    app = make_app(state)
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=1 if page else None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    running = Live(state, server.servers[0].sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        running.http.close()
        running.openai.close()
        server.should_exit = True
        thread.join(10)
        for model in models:
            model.close(drain=False)


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, which must be in OpenAI's form and hold nothing of ours."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text and "site-packages" not in response.text and ".py" not in response.text
    assert response.headers["x-request-id"]
    return {"status": response.status_code, **body["error"]}


logging.getLogger("sightbridge.access").setLevel(logging.INFO)
