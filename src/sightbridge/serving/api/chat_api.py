"""``POST /v1/chat/completions``: from a client's request to the engine's, and back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sightbridge.config.generation import GenerationSettings
from sightbridge.serving.api.access_log import internal_error, log_failure
from sightbridge.serving.api.answers import Whole, chat_chunk, chat_completion, to_line, usage
from sightbridge.serving.api.api_error import ApiError, to_api_error
from sightbridge.serving.api.body import ChatBody, Message, TextPart
from sightbridge.serving.api.messages import read_conversation
from sightbridge.serving.api.served import ServedModel
from sightbridge.serving.api.state import State
from sightbridge.serving.engines.any_engine import AnyEngine
from sightbridge.serving.engines.request import Finished, Piece, Request
from sightbridge.serving.engines.ticket import Ticket

LOOK_FOR_CLIENT = 0.25
"""Seconds between two looks whether the client is still there."""
KEEP_ALIVE = 15.0
"""Seconds without a piece after which a stream says that it goes on, or a proxy in between would end it."""


@dataclass(frozen=True)
class Asked:
    """A chat request that the engine has taken."""

    id: str
    created: int
    model: str
    tickets: list[Ticket]
    deadline: float
    """In the event loop's time."""


def chat_routes(state: State) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", responses={200: {"content": {"text/event-stream": {}}}})
    async def chat_completions(body: ChatBody, http: HttpRequest) -> Response:
        """Answer the last message of a conversation about pictures."""
        deadline = asyncio.get_running_loop().time() + state.settings.request_seconds
        served, engine = state.models.find_answering(body.model)
        noted = http.scope["state"]["noted"]
        noted["model"] = served.name
        try:
            async with asyncio.timeout_at(deadline):
                requests = await read_requests(body, served, engine, state)
        except TimeoutError:
            raise too_late(state) from None
        noted["images"] = len(requests[0].images)
        tickets = await _submit(engine, requests, http)
        asked = Asked(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), served.name, tickets, deadline)
        if body.stream:
            lines = _stream(asked, state, http, bool(body.stream_options and body.stream_options.include_usage))
            return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        wholes = await _finish(asked, state, http)
        _count(asked, [whole.finished for whole in wholes], state, http)
        return JSONResponse(chat_completion(asked.id, asked.created, asked.model, wholes))

    return router


async def read_requests(body: ChatBody, served: ServedModel, engine: AnyEngine, state: State) -> list[Request]:
    """The engine's requests, one for each answer: the same but for their seeds. Raises ``ApiError``."""
    check_length(body.messages, state.settings.max_characters)
    conversation = read_conversation(body.messages, takes_system=served.takes_system, remembers=served.remembers)
    settings = read_settings(body, engine, state)
    pictures = await state.pictures.read(conversation.sources, conversation.marks)
    return [
        Request(
            conversation.turns,
            tuple(pictures),
            conversation.marks,
            settings if body.seed is None else settings.model_copy(update={"seed": (body.seed + i) % 2**63}),
            (body.top_logprobs or 0) if body.logprobs else None,
        )
        for i in range(body.n or 1)
    ]


def check_length(messages: list[Message], most: int) -> None:
    """Raise ``ApiError`` for more text than is taken; a tokenizer would need long for it only to find it too long."""
    texts = [part.text for message in messages for part in message.parts if isinstance(part, TextPart)]
    written = sum(len(text) or 1 for text in texts)  # an empty one is a new line
    if written > most:
        raise ApiError(
            413, f"The messages have {written:,} characters; at most {most:,} are taken.", code="too_many_characters"
        )


def read_settings(body: ChatBody, engine: AnyEngine, state: State) -> GenerationSettings:
    """How to answer: greedily, unless the request names a temperature above 0, or a top_p. Raises ``ApiError``."""
    bounds = state.settings
    if (body.n or 1) > bounds.max_answers:
        raise ApiError(422, f"n is {body.n}; at most {bounds.max_answers} answers are given.", param="n")
    if (body.longest or 1) > bounds.max_tokens:
        raise ApiError(
            422, f"{body.longest} tokens; an answer has at most {bounds.max_tokens} here.", param="max_tokens"
        )
    if (body.num_beams or 1) > bounds.max_beams:
        raise ApiError(422, f"{body.num_beams} beams; at most {bounds.max_beams} are searched.", param="num_beams")
    longest = body.longest or max(1, min(bounds.default_tokens, bounds.max_tokens, engine.max_tokens // 2))
    if (body.min_tokens or 0) > longest:
        raise ApiError(
            422, f"min_tokens is {body.min_tokens}, but the answer has at most {longest}.", param="min_tokens"
        )
    sample = body.samples
    return GenerationSettings(
        max_new_tokens=longest,
        min_new_tokens=body.min_tokens or 0,
        num_beams=body.num_beams or 1,
        length_penalty=1.0 if body.length_penalty is None else body.length_penalty,
        sample=sample,
        temperature=(body.temperature or 1.0) if sample else 1.0,
        top_p=(body.top_p or 1.0) if sample else 1.0,
        top_k=body.top_k or 0,
        repetition_penalty=body.repetition_penalty or 1.0,
        stop=body.stops,
    )


async def _submit(engine: AnyEngine, requests: list[Request], http: HttpRequest) -> list[Ticket]:
    """Hand the requests to the engine; whatever becomes of this exchange, what it leaves unfinished is given up."""
    tickets: list[Ticket] = []
    for request in requests:
        ticket = await run_sync(engine.submit, request)
        http.scope["state"]["at_end"].append(ticket.cancel)
        tickets.append(ticket)
    return tickets


async def _finish(asked: Asked, state: State, http: HttpRequest) -> list[Whole]:
    """Wait for all answers, as long as the client does and there is time."""
    answers = asyncio.gather(*(_collect(ticket) for ticket in asked.tickets))
    client = asyncio.create_task(_until_gone(http))
    try:
        async with asyncio.timeout_at(asked.deadline):
            await asyncio.wait({answers, client}, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise ApiError(499, "The client left.")
        return answers.result()
    except TimeoutError:
        raise too_late(state) from None
    finally:
        client.cancel()
        answers.cancel()


async def _collect(ticket: Ticket) -> Whole:
    pieces: list[Piece] = []
    async for event in ticket.aevents():
        if isinstance(event, Finished):
            return Whole(pieces, _check_finished(event), ticket.request.logprobs is not None)
        pieces.append(event)
    raise AssertionError("the last event says that it is finished")


async def _until_gone(http: HttpRequest) -> None:
    while not await http.is_disconnected():
        await asyncio.sleep(LOOK_FOR_CLIENT)


async def _stream(asked: Asked, state: State, http: HttpRequest, include_usage: bool) -> AsyncIterator[str]:
    """The answers' pieces as server-sent events, of several answers as they come. An error is the last event."""
    events: asyncio.Queue[tuple[int, Piece | Finished | Exception]] = asyncio.Queue()
    readers = [asyncio.create_task(_forward(number, ticket, events)) for number, ticket in enumerate(asked.tickets)]
    finished: list[Finished] = []

    def chunk(**fields: Any) -> str:
        return to_line(chat_chunk(asked.id, asked.created, asked.model, include_usage, **fields))

    try:
        for number in range(len(asked.tickets)):
            yield chunk(index=number, delta={"role": "assistant", "content": ""})
        while len(finished) < len(asked.tickets):
            told = await _next(events, asked.deadline)
            if told is None:
                yield ": still waiting\n\n"  # a comment, which clients leave out
                continue
            number, event = told
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Piece):
                logprobs = event.logprobs if asked.tickets[number].request.logprobs is not None else None
                if event.text or logprobs:
                    yield chunk(index=number, delta={"content": event.text}, logprobs=logprobs)
            else:
                finished.append(_check_finished(event))
                yield chunk(index=number, delta={}, reason=event.reason)
        _count(asked, finished, state, http)
        if include_usage:
            yield chunk(used=usage(finished))
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield to_line(_describe_failure(error, state, http).body)
    finally:
        for reader in readers:
            reader.cancel()


async def _next(events: asyncio.Queue[Any], deadline: float) -> Any:
    """What comes next, or ``None`` if nothing does for a while. Raises ``TimeoutError`` at the deadline."""
    now = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(min(deadline, now + KEEP_ALIVE)):
            return await events.get()
    except TimeoutError:
        if now + KEEP_ALIVE >= deadline:
            raise
        return None


async def _forward(number: int, ticket: Ticket, events: asyncio.Queue) -> None:
    try:
        async for event in ticket.aevents():
            events.put_nowait((number, event))
    except Exception as error:
        events.put_nowait((number, error))


def _describe_failure(error: Exception, state: State, http: HttpRequest) -> ApiError:
    """Put what ends a stream, whose status is sent already, into a client's words."""
    known = too_late(state) if isinstance(error, TimeoutError) else to_api_error(error)
    if known is None:
        log_failure(http.scope["state"]["request_id"])
        known = internal_error(http.scope["state"]["request_id"])
    http.scope["state"]["noted"]["error"] = known.code or known.status
    return known


def _check_finished(finished: Finished) -> Finished:
    """An answer that was cancelled, and not by us who would not be here, ended with the engine."""
    if finished.reason == "cancelled":
        raise ApiError(503, "The server ended before the answer did.", retry_after=5)
    return finished


def _count(asked: Asked, finished: list[Finished], state: State, http: HttpRequest) -> None:
    used = usage(finished)
    state.metrics.count_tokens(asked.model, used["prompt_tokens"], used["completion_tokens"])
    http.scope["state"]["noted"].update(used)


def too_late(state: State) -> ApiError:
    """What a request is told that was not done in time."""
    return ApiError(504, f"No answer within {state.settings.request_seconds:g} s. Ask for a shorter one.")
