"""What goes to a vLLM server and what comes back: its ``/v1/completions`` with prompts of embeddings.

The format is that of vLLM's OpenAI-compatible server (docs/features/prompt_embeds.md and
entrypoints/openai/completion/protocol.py of vllm-project/vllm): a prompt is a tensor (positions, width), as
``torch.save`` writes it, in base64; the answer is asked for as token ids (``return_token_ids``), so that its text is
made here, by the same rules as that of our own engine.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightbridge.serving.engines.engine import UpstreamError
from sightbridge.serving.engines.request import Request, TokenLogprob
from sightbridge.serving.engines.writing import Writing

LONGEST_LINE = 2**20
"""Bytes of one event of a stream."""
ID_PREFIX = "token_id:"
"""How tokens are written beside their log-probabilities (``return_tokens_as_token_ids``)."""


@dataclass(frozen=True)
class Step:
    """What one event of a stream tells: new tokens, their log-probabilities, and how the answer ended."""

    token_ids: list[int]
    logprobs: list[tuple[float, dict[int, float]] | None]
    reason: str | None


def write_embeddings(embeddings: Tensor) -> str:
    """Embeddings (L, D) as vLLM reads them. A view would bring along all that it is a view of, so it is copied."""
    file = io.BytesIO()
    torch.save(embeddings.detach().to("cpu", copy=True).contiguous(), file)
    return base64.b64encode(file.getvalue()).decode()


def write_request(model: str, embeddings: Tensor, request: Request, eos_ids: Sequence[int]) -> bytes:
    """The body of a request. Stop texts are looked for here, where the rules for them are."""
    settings = request.settings
    fields: dict[str, Any] = {
        "model": model,
        "prompt_embeds": write_embeddings(embeddings),
        "stream": True,
        "max_tokens": settings.max_new_tokens,
        "min_tokens": settings.min_new_tokens,
        "temperature": settings.temperature if settings.sample else 0.0,
        "repetition_penalty": settings.repetition_penalty,
        "ignore_eos": True,  # what ends an answer is what ended those that the model learnt from
        "stop_token_ids": list(dict.fromkeys(eos_ids)),
        "return_token_ids": True,
    }
    if settings.sample:
        fields |= {"top_p": settings.top_p, "top_k": settings.top_k, "seed": settings.seed}
    if request.logprobs is not None:
        fields |= {"logprobs": request.logprobs, "return_tokens_as_token_ids": True}
    return json.dumps(fields).encode()


async def read_steps(chunks: AsyncIterator[bytes]) -> AsyncIterator[Step]:
    """The events of a streamed answer, which is read to its last byte: the connection can then be used again.

    Raises ``UpstreamError`` for an event that is an error or none of an answer.
    """
    is_whole = False
    async for line in _lines(chunks):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            is_whole = True
            continue
        try:
            event = json.loads(data)
            if "error" in event:
                raise UpstreamError(f"The vLLM server ended the answer: {told_by(event)}.")
            if event["choices"]:
                yield _read_step(event["choices"][0])
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            raise UpstreamError(f"The vLLM server sent what is no answer ({type(error).__name__}: {error}).") from error
    if not is_whole:
        raise UpstreamError("The vLLM server ended the answer in the middle of it.")


def told_by(answer: Any) -> str:
    """The message of an error in OpenAI's form, or in FastAPI's; bounded."""
    found = answer
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return " ".join(str(found).split())[:300].rstrip(".")


def write_step(row: Writing, step: Step, vocabulary: int) -> str | None:
    """Write the tokens of a step; returns why the answer ends, if it does.

    Raises ``UpstreamError`` for tokens that a model with ``vocabulary`` tokens does not have.
    """
    told = [token for found in step.logprobs if found for token in found[1]]
    if not all(0 <= token < vocabulary for token in (*step.token_ids, *told)):
        raise UpstreamError("The vLLM server sends tokens that the language model does not have: it holds another one.")
    for token, told in zip(step.token_ids, step.logprobs, strict=True):
        if reason := row.write(token, _as_logprob(row, token, told)):
            return reason
    return step.reason


def _as_logprob(row: Writing, token: int, told: tuple[float, dict[int, float]] | None) -> TokenLogprob | None:
    """As our own engine tells it; vLLM adds the token itself to the likeliest ones if it is none of them."""
    wanted = row.prompt.request.logprobs
    if wanted is None:
        return None
    if told is None:
        raise UpstreamError("The vLLM server sends no log-probabilities.")
    value, likeliest = told
    best = sorted(likeliest.items(), key=lambda item: -item[1])[:wanted]
    return TokenLogprob(token, row.read(token), value, tuple(TokenLogprob(one, row.read(one), v) for one, v in best))


def _read_step(choice: dict[str, Any]) -> Step:
    ids, found = choice.get("token_ids"), choice.get("logprobs")
    if ids is None and not choice.get("text"):
        ids = []
    if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
        raise UpstreamError(
            "The server sends no token ids ('return_token_ids'): it is no vLLM server, or one of before 0.11."
        )
    logprobs: list[tuple[float, dict[int, float]] | None] = [None] * len(ids)
    if found:
        tops = found.get("top_logprobs") or [None] * len(ids)
        logprobs = [
            None if value is None else (_number(value), {_token_id(key): _number(v) for key, v in (top or {}).items()})
            for value, top in zip(found["token_logprobs"], tops, strict=True)
        ]
    reason = choice.get("finish_reason")
    if len(logprobs) != len(ids) or not isinstance(reason, str | None):
        raise UpstreamError("The vLLM server sent what is no answer: log-probabilities of other tokens, or no reason.")
    return Step(ids, logprobs, reason)


def _number(value: Any) -> float:
    """A log-probability; minus infinity is one."""
    if math.isnan(number := float(value)) or number == math.inf:
        raise ValueError(f"a log-probability of {number}")
    return number


def _token_id(name: str) -> int:
    return int(name.removeprefix(ID_PREFIX))


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    kept = b""
    async for chunk in chunks:
        *lines, kept = (kept + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
        if len(kept) > LONGEST_LINE:
            raise UpstreamError(f"The vLLM server sent an event of more than {LONGEST_LINE:,} bytes.")
