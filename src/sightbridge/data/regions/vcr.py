"""Visual Commonsense Reasoning: a question, its answer, and why; the objects in all three are marked."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from sightbridge.data.record import Plan, Realised
from sightbridge.data.regions.plans import DATA_SETS, question_and_answer
from sightbridge.data.regions.sentences import Words, ask_for_letter, choose, name_objects, offer, sentences
from sightbridge.text.turns import IMAGE_MARKER, Turn
from sightbridge.visual_prompts import Mark, Region, Shape
from sightbridge.visual_prompts.looks import Wish, draw_apart, make_marks

TEST_ALPHA = 128
"""How opaque marks are in tests, where nothing is drawn at random that need not be."""


@dataclass(frozen=True)
class Choice:
    """Options, and the number of the right one."""

    options: tuple[Words, ...]
    label: int

    def offered(self, all_of_them: bool) -> Choice:
        """These options, or the right one alone."""
        return self if all_of_them else Choice((self.options[self.label],), 0)


@dataclass(frozen=True)
class Reasoning(Plan):
    """Two turns of training: the answer, and why; each of them by multiple choice as often as not."""

    question: Words
    answers: Choice
    rationales: Choice
    names: tuple[str, ...]
    regions: tuple[Region, ...]

    def realise(self, rng: random.Random) -> Realised:
        """Draw the kinds of question, the looks, the names of objects, and the sentences around them."""
        by_choice, why_by_choice = rng.random() < 0.5, rng.random() < 0.5
        answers, rationales = self.answers.offered(by_choice), self.rationales.offered(why_by_choice)
        texts = [self.question, *answers.options, *rationales.options]
        marks = mark_objects(rng, texts, self.regions, DATA_SETS["vcr"].shapes)
        question, *said = [name_objects(rng, text, marks, self.names) for text in texts]
        options, reasons = said[: len(answers.options)], said[len(answers.options) :]
        pools = sentences("vcr")
        asked = f"{IMAGE_MARKER}\n{rng.choice(pools['questions'])}{question}{offer(rng, options) if by_choice else ''}"
        answer = choose(rng, options, answers.label) if by_choice else options[0]
        why = rng.choice(pools["why"]) + (offer(rng, reasons) if why_by_choice else "")
        because = choose(rng, reasons, rationales.label) if why_by_choice else reasons[0]
        turns = (Turn("user", asked), Turn("assistant", answer), Turn("user", why), Turn("assistant", because))
        return Realised(turns, tuple(marks.values()))


@dataclass(frozen=True)
class ReasoningTest(Plan):
    """One turn of the tests: choose the answer (Q -> A), or, the answer given, choose the rationale (QA -> R).

    Objects are called by their names and marked with points in the constant style.
    """

    question: Words
    answers: Choice
    rationales: Choice
    names: tuple[str, ...]
    regions: tuple[Region, ...]
    asks_why: bool

    def realise(self, rng: random.Random) -> Realised:
        """Draw colours and articles; everything else is fixed."""
        asked = self.rationales if self.asks_why else self.answers
        given = self.answers.offered(False).options if self.asks_why else ()
        texts = [self.question, *given, *asked.options]
        marks = mark_objects(rng, texts, self.regions, ("point",), constant=True, alpha=TEST_ALPHA)
        question, *said = [name_objects(rng, text, marks, self.names, vague=False) for text in texts]
        if self.asks_why:
            question = sentences("vcr_qar")["question"].format(question, said[0])
        turns = question_and_answer(ask_for_letter(question, said[len(given) :]), ascii_uppercase[asked.label])
        return Realised(turns, tuple(marks.values()))


def mark_objects(
    rng: random.Random, texts: Iterable[Words], regions: Sequence[Region], shapes: Sequence[Shape], **style: Any
) -> dict[int, Mark]:
    """Mark the objects that the texts speak of, by their numbers."""
    numbers = sorted({number for text in texts for part in text if not isinstance(part, str) for number in part})
    looks = draw_apart(rng, shapes, [Wish()] * len(numbers))
    marks = make_marks([regions[number] for number in numbers], looks, **style)
    return dict(zip(numbers, marks, strict=True))
