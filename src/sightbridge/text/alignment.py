"""Which tokens of a text stand for which of its characters: exact, or an error.

Target masks follow from this in one pass. Nothing is tokenised twice to count, which is how masks get lost elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import and_
from typing import Any

from sightbridge.errors import DataError

Span = tuple[int, int]


def tokenise_with_mask(tokenizer: Any, parts: Sequence[tuple[str, bool]], where: str) -> tuple[list[int], list[bool]]:
    """Tokenise the concatenated texts of ``parts`` once, without special tokens; each part is (text, is_target).

    Returns the ids and, per id, whether it is a target: a token is one if it holds a target character other than
    white space, or, for a token of white space alone, any target character. So a word's token that took over the
    space in front of it counts with the word, whichever side of the border that space is on.

    Raises ``DataError`` naming ``where`` if the characters behind the tokens cannot be found for certain.
    """
    text = "".join(part for part, _ in parts)
    if not text:
        return [], []
    kinds = {is_target for part, is_target in parts if part}
    if len(kinds) < 2:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids, [True in kinds] * len(ids)
    targets = [is_target for part, is_target in parts for _ in part]
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        spans = [tuple(span) for span in encoded["offset_mapping"]]
        if any(start == end for start, end in spans):
            spans = _undo_trimming(spans, tokenizer.convert_ids_to_tokens(ids), text)
    else:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        spans = _spans_by_decoding(tokenizer, ids, text, targets, where)
    return ids, _targets_among(spans, text, targets)


def _targets_among(spans: Sequence[Span], text: str, targets: list[bool]) -> list[bool]:
    """Which tokens are targets; counts up to every character say what a span holds without looking at it again."""
    is_solid = [not character.isspace() for character in text]
    solid = [0, *accumulate(is_solid)]
    wanted = [0, *accumulate(targets)]
    wanted_solid = [0, *accumulate(map(and_, is_solid, targets))]
    return [
        wanted_solid[end] > wanted_solid[start] if solid[end] > solid[start] else wanted[end] > wanted[start]
        for start, end in spans
    ]


def _undo_trimming(spans: Sequence[Span], tokens: list[str], text: str) -> list[Span]:
    """Spans before a byte-level post-processor trimmed them.

    With ``trim_offsets`` (GPT-2, RoBERTa, many Llama-3 style files) a token's outer spaces, ``Ġ`` in its name, are cut
    off its span, and a token of spaces alone is left with an empty one. A token that has no character at all, such as
    a word boundary put in front by a normaliser, is counted with the character that follows it.
    """
    whole: list[Span] = []
    position = 0
    for (start, end), token in zip(spans, tokens, strict=True):
        trailing = len(token) - len(token.rstrip("Ġ"))
        if start < end:
            whole.append((start, end))
            after = end + trailing
            position = after if text[end:after] == " " * trailing else end
        elif token and set(token) == {"Ġ"} and text.startswith(" " * len(token), position):
            whole.append((position, position + len(token)))
            position += len(token)
        else:
            whole.append((position, min(position + 1, len(text))))
    return whole


def _spans_by_decoding(tokenizer: Any, ids: list[int], text: str, targets: list[bool], where: str) -> list[Span]:
    """Spans for a tokenizer without offsets: decode ever longer beginnings and see how far into the text they reach.

    Decoders are careless with white space, so only the other characters are followed; a token without any lies
    between two of them, which is exact as long as all white space there is of one kind, and an error otherwise.
    """

    def decode(count: int) -> str:
        return tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def refuse(why: str) -> DataError:
        return DataError(
            f"{where}: this tokenizer gives no character offsets and {why}, so the tokens to learn cannot be found for "
            f"certain in {text[:80]!r}; use a fast tokenizer"
        )

    solid = [i for i, character in enumerate(text) if not character.isspace()]
    if "".join(decode(len(ids)).split()) != "".join(text.split()):
        raise refuse("does not decode to the text it was given")
    spans: list[Span] = []
    done = 0
    for count in range(1, len(ids) + 1):
        decoded = "".join(decode(count).split())
        # The first bytes of a character that takes several tokens decode to replacement characters.
        whole = decoded.rstrip("\ufffd") if count < len(ids) else decoded
        reached = len(whole)
        if reached < done or whole != "".join(text[i] for i in solid[:reached]):
            raise refuse("decodes the beginning of a text in another way than the whole")
        gap = (solid[done - 1] + 1 if done else 0, solid[done] if done < len(solid) else len(text))
        if reached > done:
            spans.append((solid[done], solid[reached - 1] + 1))
        elif decoded != whole or gap[0] == gap[1]:
            spans.append((gap[1], min(gap[1] + 1, len(text))))
        elif len(set(targets[slice(*gap)])) == 1:
            spans.append(gap)
        else:
            raise refuse("a token of white space lies where the words to learn begin or end")
        done = reached
    return spans
