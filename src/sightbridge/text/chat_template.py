"""A tokenizer's own chat template, with the stretches the model must learn to write.

The template is a program and may do anything with a conversation. We therefore have it write the conversation twice,
once with the texts of the turns and once with sentinels in their place, and accept the result only if both fit
together without a remainder; otherwise we raise instead of guessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sightbridge.errors import DataError, SettingsError
from sightbridge.text.turns import Turn

Span = tuple[str, bool, Turn | None]
"""Text, whether it is a target, and the turn it is the text of (``None`` for markup)."""


def spans_of_chat_template(tokenizer: Any, turns: Sequence[Turn], where: str) -> list[Span]:
    """Write ``turns`` with ``tokenizer.apply_chat_template`` and cut the result at the texts of the turns.

    Targets are the texts of assistant turns and the end-of-turn token after them. A last assistant turn without text
    becomes the generation prompt. Concatenated, the spans are exactly what the chat template wrote.

    Raises ``DataError`` if the template refuses the conversation or does not repeat its texts in order, and
    ``SettingsError`` if the tokenizer has no chat template or its template writes no end-of-turn token.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise SettingsError("this tokenizer has no chat template; name one of sightbridge's templates instead of 'hf'")
    is_open = turns[-1].text is None
    closed = [turn for turn in turns if turn.text is not None]
    written = _write(tokenizer, closed, [turn.text or "" for turn in closed], is_open, where)
    markup = _markup_between(tokenizer, closed, is_open, where)
    end = _end_of_answer(tokenizer, where) if any(turn.role == "assistant" for turn in closed) else ""

    spans: list[Span] = [(markup[0], False, None)]
    position = len(markup[0])
    _require(written.startswith(markup[0]), where)
    for turn, after in zip(closed, markup[1:], strict=True):
        text = _find_text(written, position, turn.text or "", after, where)
        is_answer = turn.role == "assistant"
        spans.append((text, is_answer, turn))
        if is_answer:
            _require(after.startswith(end), where)
            spans += [(end, True, None), (after.removeprefix(end), False, None)]
        else:
            spans.append((after, False, None))
        position += len(text) + len(after)
    _require("".join(text for text, _, _ in spans) == written, where)
    return spans


def _write(tokenizer: Any, turns: Sequence[Turn], texts: list[str], is_open: bool, where: str) -> str:
    messages = [{"role": turn.role, "content": text} for turn, text in zip(turns, texts, strict=True)]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_open)
    except Exception as error:  # whatever the template's program raises, it is about this conversation
        raise DataError(f"{where}: the tokenizer's chat template refuses the conversation: {error}") from error


def _markup_between(tokenizer: Any, turns: Sequence[Turn], is_open: bool, where: str) -> list[str]:
    """What the template writes before, between and after the texts: one more string than there are turns."""
    sentinels = [f"sentinel{i}\u2063text" for i in range(len(turns))]
    rest = _write(tokenizer, turns, sentinels, is_open, where)
    markup = []
    for sentinel in sentinels:
        _require(rest.count(sentinel) == 1, where)
        before, rest = rest.split(sentinel)
        markup.append(before)
    return [*markup, rest]


def _end_of_answer(tokenizer: Any, where: str) -> str:
    """What the template writes after an answer, up to and including the first special token."""
    conversation = [Turn("user", ""), Turn("assistant", "")]
    tail = _markup_between(tokenizer, conversation, False, where)[-1]
    special = set(tokenizer.all_special_tokens)
    special |= {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    ends = [tail.index(token) + len(token) for token in special if token and token in tail]
    if not ends:
        raise SettingsError(
            f"the tokenizer's chat template ends an answer with {tail!r}, which holds no special token, so a model "
            "trained on it would never stop; name one of sightbridge's templates instead of 'hf'"
        )
    return tail[: min(ends)]


def _find_text(written: str, position: int, text: str, after: str, where: str) -> str:
    """The text of a turn as the template wrote it at ``position``: as it is, or with white space trimmed."""
    for candidate in (text, text.rstrip(), text.lstrip(), text.strip()):
        if written.startswith(candidate + after, position):
            return candidate
    raise _unclear(where)


def _require(condition: bool, where: str) -> None:
    if not condition:
        raise _unclear(where)


def _unclear(where: str) -> DataError:
    return DataError(
        f"{where}: the tokenizer's chat template changes the texts of the conversation, so what the model must learn "
        "to write cannot be found for certain; name one of sightbridge's templates instead of 'hf'"
    )
