"""From a question on the page to answers, by the same checks and the same engines as ``/v1/chat/completions``."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any

from anyio.to_thread import run_sync
from pydantic import ValidationError

from sightbridge.generation.pointing import point_at
from sightbridge.serving.api.access_log import ACCESS, internal_error, log_failure
from sightbridge.serving.api.api_error import ApiError, to_api_error, wrong_fields
from sightbridge.serving.api.body import ChatBody
from sightbridge.serving.api.chat_api import read_requests, too_late
from sightbridge.serving.api.state import State
from sightbridge.serving.engines.request import Finished
from sightbridge.serving.engines.ticket import Ticket
from sightbridge.serving.web.talk import Answer, Talk

TOLD_EVERY = 0.05
"""Seconds between two updates of the page at least: more than 20 in a second nobody sees."""


async def write_answers(
    talk: Talk, models: Sequence[str], settings: dict[str, Any], system: str, state: State, client: str | None = None
) -> AsyncGenerator[None]:
    """Let ``models`` answer the last question of a talk, at the same time; yields whenever the page has news to show.

    Answers and errors go into the talk, which ``Talk.stop`` ends. Whoever stops to iterate ends them too. Settings
    are fields of the API's request.

    Raises:
        ApiError: the talk's last question is being answered already, or the server takes no more requests.
    """
    if talk.is_busy:
        raise ApiError(409, "An answer is being written; stop it first.", code="busy")
    check_room(state)
    exchange = talk.exchanges[-1]
    exchange.settings, exchange.answers = settings, [Answer(model) for model in models]
    talk.is_busy, talk.is_stopped, talk.tickets = True, False, []
    changed = asyncio.Event()
    with state.handling():
        sides = [
            asyncio.create_task(_write(talk, side, settings, system, state, client, changed))
            for side in range(len(models))
        ]
        try:
            yield
            while not all(side.done() for side in sides):
                await changed.wait()
                changed.clear()
                yield
                await asyncio.sleep(TOLD_EVERY)
            yield
        finally:
            talk.stop()
            for side in sides:
                side.cancel()
            talk.is_busy = False


def check_room(state: State) -> None:
    """Raise ``ApiError`` if the server takes no more requests, as for those of the API."""
    if state.draining:
        raise ApiError(503, "This server is about to end; ask another one, or later.", retry_after=5)
    if state.in_flight >= state.settings.max_in_flight:
        raise ApiError(429, f"{state.in_flight} requests are being handled already; try again soon.")


async def _write(
    talk: Talk,
    side: int,
    settings: dict[str, Any],
    system: str,
    state: State,
    client: str | None,
    changed: asyncio.Event,
) -> None:
    """Write one side's answer into the talk; an error becomes part of it. Logs the request."""
    exchange = talk.exchanges[-1]
    answer, begun, request_id = exchange.answers[side], time.monotonic(), uuid.uuid4().hex
    pictures = sum(len(asked.pictures) for asked in talk.exchanges)
    try:
        async with asyncio.timeout(state.settings.request_seconds):
            ticket = await _submit(talk, side, settings, system, state)
            async for event in ticket.aevents():
                if isinstance(event, Finished):
                    answer.finished = event
                else:
                    answer.text += event.text
                changed.set()
        if answer.finished and answer.finished.reason == "cancelled" and not talk.is_stopped:
            raise ApiError(503, "The server ended before the answer did.")
    except Exception as error:
        answer.error = _explain(error, state, request_id)
    finally:
        changed.set()
        _tell(answer, state, client, request_id, pictures, time.monotonic() - begun)


async def _submit(talk: Talk, side: int, settings: dict[str, Any], system: str, state: State) -> Ticket:
    """Hand the question to the side's engine. Raises ``ApiError`` and the engine's errors."""
    exchange = talk.exchanges[-1]
    answer = exchange.answers[side]
    try:
        body = ChatBody.model_validate({"model": answer.model, "messages": talk.messages(side, system), **settings})
    except ValidationError as error:
        raise wrong_fields(error.errors()) from None
    served, engine = state.models.find_answering(body.model)
    request = (await read_requests(body, served, engine, state))[0]
    exchange.words = point_at(exchange.question, request.marks)
    ticket = await run_sync(engine.submit, request)
    talk.tickets.append(ticket)
    if talk.is_stopped:
        ticket.cancel()
    return ticket


def _explain(error: Exception, state: State, request_id: str) -> str:
    """What the API would say."""
    known = too_late(state) if isinstance(error, TimeoutError) else to_api_error(error)
    if known is None:
        log_failure(request_id)
        known = internal_error(request_id)
    return known.message


def _tell(answer: Answer, state: State, client: str | None, request_id: str, pictures: int, seconds: float) -> None:
    """Log and count what was asked, as requests of the API are."""
    done = answer.finished
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": request_id,
        "client": client,
        "method": "PAGE",
        "path": "chat",
        "seconds": round(seconds, 4),
        "model": answer.model,
        "images": pictures,
    }
    if answer.error:
        line["error"] = answer.error[:500]
    if done:
        line |= {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens}
        state.metrics.count_tokens(answer.model, done.prompt_tokens, done.completion_tokens)
    ACCESS.info(json.dumps(line))
