"""Questions and answers to token ids, each text once, and which of the ids are scored."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.scoring.kinds import Ask, TokenScore
from sightbridge.text.encode import IGNORE_INDEX, Encoded
from sightbridge.text.template import PromptTemplate, RoleFormat
from sightbridge.text.turns import IMAGE_MARKER, Turn, as_text

ANSWER_ALONE = ("learn_markup", "bos_target", "split_answer", "split_answer_tokens", "drop_user_text")
"""Switches of training that are off here: the answer, all of it and nothing else is scored."""


@dataclass(frozen=True)
class Line:
    """One question and answer, ready for any picture.

    - ``encoded``: the row; its labels are the answer's ids and the end of it, whatever is scored of them.
    - ``targets``: ids that are scored, and ``places``: where each stands among the labels.
    - ``asked``: ids of the question, for a connector that reads it.
    """

    encoded: Encoded
    targets: tuple[int, ...]
    places: tuple[int, ...]
    asked: tuple[int, ...] = ()


class AnswerReader:
    """Makes lines of questions and answers, as the model's prompt template writes them.

    Args:
        processor: of the model.
        answer_eos: whether the end of the answer is scored.
    """

    def __init__(self, processor: Processor, answer_eos: bool) -> None:
        self.answer_eos = answer_eos
        self.processor = copy.copy(processor)
        off = {name: False for name in ANSWER_ALONE if processor.template.resolve()[name]}
        switches = {name: on for name, on in processor.prompt_settings.switches.items() if name not in ANSWER_ALONE}
        self.limits = processor.prompt_settings
        uncut = {"switches": switches | off, "max_length": None, "max_answer_length": None}
        self.processor.prompt_settings = processor.prompt_settings.model_copy(update=uncut)

    def __call__(self, ask: Ask) -> Line:
        """Read one; raises ``DataError`` for an answer without a token, or a row that is too long."""
        processor, where = self.processor, f"the text {shorten(ask)}"
        turns = (Turn("user", user_text(processor.template, ask.question)), Turn("assistant", as_text(ask.answer)))
        encoded = processor.encode(Record("score", ("",), turns, where=where))
        self._check_length(encoded, where)
        start = 0 if processor.encoder_decoder else 1  # nothing predicts the first position of a decoder-only row
        places = [i for i in range(start, len(encoded.labels)) if encoded.labels[i] != IGNORE_INDEX]
        places = self._scored(places, encoded.labels, where)
        asked = processor.connector_text.ids(turns)[0] if processor.connector_text else []
        return Line(encoded, tuple(encoded.labels[i] for i in places), tuple(places), tuple(asked))

    def _check_length(self, encoded: Encoded, where: str) -> None:
        """A row that would be cut has no score: its answer would be another."""
        longest = self.limits.max_length
        answer = self.limits.max_answer_length or longest
        if longest and len(encoded.input_ids) > longest:
            raise DataError(
                f"{where}: its row has {len(encoded.input_ids)} positions, more than the {longest} that the model "
                "takes (prompt.max_length); shorten it"
            )
        if self.processor.encoder_decoder and answer and len(encoded.labels) > answer:
            raise DataError(f"{where}: its answer has {len(encoded.labels)} tokens, more than the {answer} that it may")

    def _scored(self, places: list[int], labels: list[int], where: str) -> list[int]:
        """Leave out a start token that a tokenizer writes by itself, and the answer's end if it does not count."""
        special = set(self.processor.tokenizer.all_special_ids)
        while len(places) > 1 and labels[places[0]] in special:
            places = places[1:]
        if self.answer_eos:
            return places
        answer = places[: len(places) - self._end_length([labels[i] for i in places], special)]
        if not answer:
            raise DataError(f"{where}: the answer has no token besides its end; score it with answer_eos=True")
        return answer

    def _end_length(self, ids: list[int], special: set[int]) -> int:
        """How many of the last ids are the end of the answer: EOS, or what the template writes there."""
        length = next((n for n, i in enumerate(reversed(ids)) if i not in special), len(ids))
        end = self.processor.template.assistant.end
        if length or not end:
            return length
        decode = self.processor.tokenizer.decode  # ordinary tokens: the fewest last ones that spell it
        return next((n for n in range(1, len(ids) + 1) if end in decode(ids[-n:])), 0)

    def tokens(self, line: Line, logprobs: Sequence[float]) -> tuple[TokenScore, ...]:
        """Pair the text of every scored token with its log-probability."""
        decode = self.processor.tokenizer.decode
        return tuple(TokenScore(decode([i]), logprob) for i, logprob in zip(line.targets, logprobs, strict=True))


def user_text(template: PromptTemplate, question: str) -> str:
    """The user's turn: the picture, a line break and the question, as LLaVA and t2v_metrics write it.

    Templates of caption pre-training put nothing between the two; those that put pictures in front take the line break
    away themselves.
    """
    bare = template.user == RoleFormat() and template.image_place == "marker" and not template.from_tokenizer
    return f"{IMAGE_MARKER}{'' if bare else chr(10)}{as_text(question)}"


def shorten(ask: Ask) -> str:
    """Name a question and its answer in a message."""
    text = f"'{ask.question}' - '{ask.answer}'" if ask.question else f"'{ask.answer}'"
    return text if len(text) <= 120 else f"{text[:117]}..."
