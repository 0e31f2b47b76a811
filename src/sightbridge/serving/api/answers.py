"""Answers as OpenAI's API writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sightbridge.serving.engines.request import Finished, Piece, TokenLogprob


class Whole(NamedTuple):
    """A finished answer."""

    pieces: list[Piece]
    finished: Finished
    with_logprobs: bool

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(piece.text for piece in self.pieces)


def chat_completion(answer_id: str, created: int, model: str, wholes: Sequence[Whole]) -> dict[str, Any]:
    """Finished answers to one request."""
    return {
        "id": answer_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": whole.text, "refusal": None},
                "logprobs": _logprobs(
                    [one for piece in whole.pieces for one in piece.logprobs] if whole.with_logprobs else None
                ),
                "finish_reason": whole.finished.reason,
            }
            for index, whole in enumerate(wholes)
        ],
        "usage": usage([whole.finished for whole in wholes]),
    }


def chat_chunk(
    answer_id: str,
    created: int,
    model: str,
    include_usage: bool,
    *,
    index: int = 0,
    delta: dict[str, Any] | None = None,
    logprobs: Sequence[TokenLogprob] | None = None,
    reason: str | None = None,
    used: dict[str, int] | None = None,
) -> dict[str, Any]:
    """A piece of a streamed answer; without ``delta``, the one at the end that tells the usage."""
    choice = {"index": index, "delta": delta, "logprobs": _logprobs(logprobs), "finish_reason": reason}
    chunk: dict[str, Any] = {
        "id": answer_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [] if delta is None else [choice],
    }
    return chunk | {"usage": used} if include_usage else chunk


def usage(finished: Sequence[Finished]) -> dict[str, int]:
    """Tokens of one prompt, however many answers it has, and of all answers."""
    prompt, completion = finished[0].prompt_tokens, sum(one.completion_tokens for one in finished)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def to_line(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {
        "content": [
            _logprob(one) | {"top_logprobs": [_logprob(other) for other in one.alternatives]} for one in tokens
        ],
        "refusal": None,
    }


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    """Of a token that the model holds impossible, minus infinity is no JSON; OpenAI writes -9999."""
    return {"token": one.text, "logprob": max(one.logprob, -9999.0), "bytes": list(one.text.encode("utf-8", "replace"))}
