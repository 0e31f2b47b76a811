"""One address for models that are elsewhere: requests are checked here, and go on to the model that they name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightbridge.config.serving import ServingSettings
from sightbridge.serving.api.access_log import AccessLog
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.files import Files
from sightbridge.serving.api.limits import Gate
from sightbridge.serving.api.metrics import Metrics
from sightbridge.serving.api.pictures import Pictures
from sightbridge.serving.api.remote import Remote
from sightbridge.serving.api.served import ServedModels
from sightbridge.serving.api.state import State

PASSED_ON = ("/v1/chat/completions", "/score", "/features")
"""What is asked of a model."""
PLAIN = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "client", "server")
"""What a request consists of, beside its headers and its body."""

Ask = Callable[[Scope, bytes], AsyncIterator[Message]]
"""Has a request answered by some replica of a model: the ASGI messages of its answer.

Raises ``ApiError`` for what keeps a replica from answering.
"""


@dataclass(frozen=True)
class ModelElsewhere:
    """A model by its name, and how it is asked."""

    name: str
    ask: Ask


def make_front(models: Sequence[ModelElsewhere], settings: ServingSettings, api_key: str | None) -> ASGIApp:
    """The application in front of ``models``: gate, log and errors are those of a single server.

    Uploaded files and numbers for Prometheus are not here, as both belong to single replicas.
    """
    files = Files(0)
    pictures = Pictures(settings, files, Remote((), max_bytes=1, seconds=1))
    found = ServedModels(cast(Any, models))  # to be found by name is all that they must be good for here
    state = State(found, settings, files, pictures, Metrics(dict), api_key)
    return AccessLog(Gate(_Front(models, state), state), state)


class _Front:
    """What is behind the gate."""

    def __init__(self, models: Sequence[ModelElsewhere], state: State) -> None:
        self._models = models
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        method, path = scope["method"], scope["path"]
        if path == "/healthz":
            told: Any = {"status": "ok", "models": [model.name for model in self._models]}
            await JSONResponse(told | {"in_flight": self._state.in_flight})(scope, receive, send)
        elif method == "POST" and path in PASSED_ON:
            body = (await receive())["body"]
            model = await asyncio.to_thread(self._asked_for, body)
            await self._pass_on(model, scope, body, receive, send)
        elif method == "GET" and path == "/v1/models":
            listed = await asyncio.gather(*[_describe(model, scope) for model in self._models])
            await JSONResponse({"object": "list", "data": listed})(scope, receive, send)
        elif method == "GET" and path.startswith("/v1/models/"):
            model = self._find(path.removeprefix("/v1/models/"))
            await JSONResponse(await _describe(model, scope))(scope, receive, send)
        elif path.startswith("/v1/files"):
            raise ApiError(
                404, "Files are not kept here, where several servers answer. Send pictures as data: URLs.", code="files"
            )
        else:
            known = path in (*PASSED_ON, "/v1/models") or path.startswith("/v1/models/")
            raise ApiError(405, "Method Not Allowed.") if known else ApiError(404, "Not Found.")

    def _find(self, name: str | None) -> ModelElsewhere:
        return cast(ModelElsewhere, self._state.models.find(name))

    def _asked_for(self, body: bytes) -> ModelElsewhere:
        """The model that a request names. What is no such request any of them can tell."""
        try:
            name = json.loads(body).get("model")
        except (ValueError, AttributeError, RecursionError):
            return self._models[0]
        return self._find(name) if name is None or isinstance(name, str) else self._models[0]

    async def _pass_on(self, model: ModelElsewhere, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Let a model answer, until the client leaves."""
        scope["state"]["noted"]["model"] = model.name
        answering = asyncio.create_task(_relay(model, scope, body, send))
        leaving = asyncio.create_task(_wait_until_left(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()  # nothing, if it is done
            await asyncio.gather(answering, leaving, return_exceptions=True)
        if not answering.cancelled():
            answering.result()


async def _relay(model: ModelElsewhere, scope: Scope, body: bytes, send: Send) -> None:
    """Send a replica's answer on. What breaks after its beginning breaks the connection: it cannot be told any more."""
    begun = False
    try:
        async for message in model.ask(_plain(scope), body):
            begun = True
            await send(_without_id(message))
    except ApiError as error:
        if begun:
            raise RuntimeError(f"an answer of '{model.name}' broke off: {error.message}") from error
        raise


def _without_id(message: Message) -> Message:
    """The request's id is put into the answer's headers here, once."""
    if message["type"] != "http.response.start":
        return message
    return {**message, "headers": [pair for pair in message["headers"] if pair[0] != b"x-request-id"]}


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _describe(model: ModelElsewhere, scope: Scope) -> Any:
    """What a replica says of its model."""
    path = f"/v1/models/{model.name}"
    asked = {**_plain(scope), "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
    messages = [message async for message in model.ask(asked, b"")]
    if messages[0]["status"] != 200:
        raise ApiError(502, f"'{model.name}' does not tell about itself.")
    return json.loads(b"".join(message.get("body", b"") for message in messages[1:]))


def _plain(scope: Scope) -> Scope:
    """What can be sent to another machine of a request, which keeps its id."""
    kept = {key: scope[key] for key in PLAIN if key in scope}
    headers = [(name, value) for name, value in scope["headers"] if name not in (b"x-request-id", b"authorization")]
    return {**kept, "root_path": "", "headers": [*headers, (b"x-request-id", scope["state"]["request_id"].encode())]}


async def _live(receive: Receive, send: Send) -> None:
    """Nothing is to be done before the first request, or after the last."""
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


async def call(app: ASGIApp, scope: Scope, body: bytes) -> AsyncIterator[Message]:
    """Run an application on a request that came from elsewhere: the messages of its answer.

    Who stops listening has left; the application ends by itself then, as it does with any client.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    requests = [{"type": "http.request", "body": body, "more_body": False}]
    left = asyncio.Event()

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app({**scope, "asgi": {"version": "3.0"}}, receive, messages.put)
        finally:
            messages.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
    finally:
        left.set()
        await running
