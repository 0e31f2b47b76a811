"""The routes of LLaVA's controller and worker, for its web pages and scripts: prompts as text, pictures in base64.

What is asked is checked as a chat request is, and goes to the same engines. The protocol is that of llava/serve
(controller.py, model_worker.py): answers are objects of JSON, each ended by a NUL byte, with the whole text so far,
prompt included, and an ``error_code``. There, all failures have the same text; here it says what failed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sightbridge.config.generation import GenerationSettings
from sightbridge.serving.api.access_log import internal_error, log_failure
from sightbridge.serving.api.answers import usage
from sightbridge.serving.api.api_error import ApiError, to_api_error, wrong_fields
from sightbridge.serving.api.state import State
from sightbridge.serving.engines.request import Finished, Request
from sightbridge.text.turns import Turn

FAILED, NO_MODEL, UNREACHABLE = 1, 2, 3
"""Codes of errors: in the worker, no worker of that name, a worker that does not answer."""
LONGEST = 1024
"""Tokens of an answer, as in LLaVA's worker; the server's own bound holds too."""
EVERY = 0.05
"""Seconds between two lines of an answer, as each repeats all text before it. LLaVA's page shows one every 0.03 s."""


class Generate(BaseModel):
    """What ``/worker_generate_stream`` is asked. As there, numbers may be strings, and unknown fields are left out."""

    model_config = ConfigDict(allow_inf_nan=False)

    model: str | None = None
    prompt: str
    images: list[str] | None = Field(default=None, max_length=1024)
    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=50, ge=0, le=2**31)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)
    max_new_tokens: int = Field(default=256, ge=1)
    stop: str | None = Field(default=None, max_length=200)

    def settings(self, most: int) -> GenerationSettings:
        """How to answer, with at most ``most`` tokens. Like there, a temperature of up to 0.001 is none."""
        sample = self.temperature > 0.001
        return GenerationSettings(
            max_new_tokens=min(self.max_new_tokens, LONGEST, most),
            sample=sample,
            temperature=self.temperature if sample else 1.0,
            top_p=self.top_p if sample else 1.0,
            top_k=self.top_k if sample else 0,
            repetition_penalty=self.repetition_penalty,
            stop=[self.stop] if self.stop and self.stop.strip(" ") else [],
        )


def llava_routes(state: State) -> APIRouter:
    """Controller and worker; workers elsewhere cannot register."""
    router = APIRouter(include_in_schema=False)

    @router.post("/list_models")
    async def list_models() -> dict[str, Any]:
        return {"models": _names(state)}

    @router.post("/refresh_all_workers")
    async def refresh() -> None:
        """Nothing changes while the server runs."""

    @router.post("/get_worker_address")
    async def find_worker(http: HttpRequest) -> dict[str, Any]:
        try:
            name = json.loads(await http.body())["model"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ApiError(400, 'The body must be {"model": NAME}.', param="model") from None
        return {"address": str(http.base_url).rstrip("/") if name in _names(state) else ""}

    @router.post("/worker_get_status")
    async def tell_status() -> dict[str, Any]:
        engines = [model.engine.stats() for model in state.models.by_name.values() if model.engine]
        waiting = sum(stats.get("waiting", 0) + stats.get("running", 0) for stats in engines)
        return {"model_names": _names(state), "speed": 1, "queue_length": int(waiting)}

    @router.post("/register_worker")
    @router.post("/receive_heart_beat")
    async def refuse_worker() -> None:
        raise ApiError(400, "No workers register here: name all models to one 'sightbridge serve', or to several.")

    @router.post("/worker_generate_stream")
    async def generate(http: HttpRequest) -> StreamingResponse:
        return StreamingResponse(_generate(await http.body(), http, state), media_type="application/octet-stream")

    return router


async def _generate(content: bytes, http: HttpRequest, state: State) -> AsyncIterator[bytes]:
    """The lines of an answer; whatever goes wrong is the last one."""
    try:
        async with asyncio.timeout(state.settings.request_seconds):
            body = _read(content, state)
            ticket = await _submit(body, http, state)
            async for text in _texts(ticket, http, state):
                yield _line(body.prompt + text, 0)
    except TimeoutError:
        yield _line(f"No answer within {state.settings.request_seconds:g} s.", FAILED)
    except Exception as error:
        if (known := to_api_error(error)) is None:
            log_failure(http.scope["state"]["request_id"])
            known = internal_error(http.scope["state"]["request_id"])
        http.scope["state"]["noted"]["error"] = known.code or known.status
        codes = {404: NO_MODEL, 502: UNREACHABLE, 503: UNREACHABLE, 504: UNREACHABLE}
        yield _line(known.message, codes.get(known.status, FAILED))


def _read(content: bytes, state: State) -> Generate:
    """What is asked, within the bounds of the server. Raises ``ApiError``."""
    try:
        body = Generate.model_validate_json(content)
    except ValidationError as error:
        raise wrong_fields(error.errors()) from None
    if len(body.prompt) > (most := state.settings.max_characters):
        raise ApiError(413, f"The prompt has {len(body.prompt):,} characters; at most {most:,} are taken.")
    return body


async def _submit(body: Generate, http: HttpRequest, state: State) -> Any:
    """Hand the prompt as it is to the model's engine."""
    served, engine = state.models.find_answering(body.model)
    noted = http.scope["state"]["noted"]
    images = body.images or []
    noted.update(model=served.name, images=len(images))
    pictures = await state.pictures.read([f"data:image/any;base64,{image}" for image in images])
    request = Request(
        (Turn("user", body.prompt), Turn("assistant", None)),
        tuple(pictures),
        settings=body.settings(state.settings.max_tokens),
        is_written=True,
    )
    ticket = await run_sync(engine.submit, request)
    http.scope["state"]["at_end"].append(ticket.cancel)
    return ticket


async def _texts(ticket: Any, http: HttpRequest, state: State) -> AsyncIterator[str]:
    """The text so far, again and again, and at its end."""
    loop = asyncio.get_running_loop()
    text, told = "", 0.0
    async for event in ticket.aevents():
        if isinstance(event, Finished):
            if event.reason == "cancelled":
                raise ApiError(503, "The server ended before the answer did.")
            used = usage([event])
            noted = http.scope["state"]["noted"]
            noted.update(used)
            state.metrics.count_tokens(noted["model"], used["prompt_tokens"], used["completion_tokens"])
            yield text
        else:
            text += event.text
            if loop.time() - told > EVERY:
                told = loop.time()
                yield text


def _names(state: State) -> list[str]:
    return [model.name for model in state.models.by_name.values() if model.engine]


def _line(text: str, error_code: int) -> bytes:
    return json.dumps({"text": text, "error_code": error_code}).encode() + b"\0"
