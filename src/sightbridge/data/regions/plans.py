"""Plans of the records of region data: one for every way that a data set speaks of its marks."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

from sightbridge.data.record import Plan, Realised
from sightbridge.data.regions.sentences import ask_for_letter, draw_article, name_objects, sentences
from sightbridge.text.turns import IMAGE_MARKER, Turn
from sightbridge.visual_prompts import SHAPES, Mark, Region, Shape
from sightbridge.visual_prompts.looks import Look, Wish, draw_apart, draw_pair, make_marks

PLACEHOLDER = re.compile(r"<bbox(\d*)>")
"""Stands for the phrase of a region, counted from 0; without a number, of the only one there is."""


def question_and_answer(question: str, answer: str) -> tuple[Turn, ...]:
    """A conversation about one picture."""
    return Turn("user", f"{IMAGE_MARKER}\n{question}"), Turn("assistant", answer)


@dataclass(frozen=True)
class Conversation(Plan):
    """A conversation with ``<bbox0>``, ``<bbox1>`` where phrases go.

    ``wishes`` are what the annotation asks of each mark. ``pair`` draws as for subjects and their objects (see
    ``draw_pair``; ``exact`` too). ``drops_article`` leaves out a phrase's ``the`` as often as not. ``constant``: marks
    in the constant style.
    """

    turns: tuple[Turn, ...]
    regions: tuple[Region, ...]
    wishes: tuple[Wish, ...]
    shapes: tuple[Shape, ...] = SHAPES
    constant: bool = False
    pair: bool = False
    exact: bool = False
    drops_article: bool = False

    def realise(self, rng: random.Random) -> Realised:
        """Draw the looks, then the articles."""
        if self.pair:
            looks = draw_pair(rng, self.shapes, len(self.regions), self.exact)
        else:
            looks = draw_apart(rng, self.shapes, self.wishes)
        marks = make_marks(self.regions, looks, wishes=self.wishes, constant=self.constant)
        phrases = [mark.in_words(article=not self.drops_article or draw_article(rng)) for mark in marks]
        turns = (replace(turn, text=fill_in(turn.text, phrases)) if turn.text else turn for turn in self.turns)
        return Realised(tuple(turns), marks)


def fill_in(text: str, phrases: Sequence[str]) -> str:
    """Put phrases where their placeholders are."""
    return PLACEHOLDER.sub(lambda found: phrases[int(found[1] or 0)], text)


@dataclass(frozen=True)
class Description(Plan):
    """RefCOCOg: describe an object.

    ``exact``: without the picture and without the phrase, both of which the original loses on the way.
    """

    region: Region
    answer: str
    exact: bool = False

    def realise(self, rng: random.Random) -> Realised:
        """Draw the look, then the question."""
        marks = make_marks([self.region], draw_pair(rng, SHAPES, 1, self.exact))
        texts = sentences("refcocog")
        if rng.random() < 0.25:
            question = rng.choice(texts["without_phrase"])
        else:
            question = texts["question"].format("" if self.exact else marks[0].phrase)
        return _with_picture(question + texts["ending"], self.answer, marks, self.exact)


@dataclass(frozen=True)
class Relation(Plan):
    """Visual Genome: how a subject relates to an object.

    ``exact``: without the picture, which the original loses, and with one colour for both where shapes differ.
    """

    regions: tuple[Region, Region]
    answer: str
    exact: bool = False

    def realise(self, rng: random.Random) -> Realised:
        """Draw the looks."""
        marks = make_marks(self.regions, draw_pair(rng, DATA_SETS["vg_rel"].shapes, 2, self.exact))
        question = sentences("vg_rel")["question"].format(*(mark.phrase for mark in marks))
        return _with_picture(question, self.answer, marks, self.exact)


def _with_picture(question: str, answer: str, marks: tuple[Mark, ...], exact: bool) -> Realised:
    """A question about a marked picture; ``exact``: without the picture, as far as the model can see."""
    if exact:
        return Realised((Turn("user", question), Turn("assistant", answer)), ())
    return Realised(question_and_answer(question, answer), marks)


@dataclass(frozen=True)
class GroundedCaption(Plan):
    """Flickr30k Entities: a caption with a tag behind every phrase, and the boxes of each; all of them are marked.

    ``exact``: name no mark in the caption whose colour has no name, as the original does by a slip.
    """

    caption: str
    regions: tuple[tuple[Region, ...], ...]
    exact: bool = False

    def realise(self, rng: random.Random) -> Realised:
        """Draw what is asked for, the looks, and whether the question lists them."""
        texts = sentences("flickr30k")
        kind = rng.choice(["semantic", "semantic_visual_prompt"])
        question = rng.choice(texts[kind])
        looks = draw_apart(rng, DATA_SETS["flickr30k"].shapes, [Wish()] * len(self.regions))
        first = make_marks([Region((0, 0, 0, 0))] * len(looks), looks)
        if rng.random() < 0.5:
            nouns = [mark.noun for mark in first]
            question += rng.choice(texts["hints"]) + ", and ".join(filter(None, (", ".join(nouns[:-1]), nouns[-1])))
            question += "."
        is_said = [kind != "semantic" and not (self.exact and mark.colour_name is None) for mark in first]
        phrases = [f" {mark.phrase}" if said else "" for mark, said in zip(first, is_said, strict=True)]
        caption = re.sub(rf" ?{PLACEHOLDER.pattern}", lambda found: phrases[int(found[1])], self.caption)
        everything: list[tuple[Region, Look]] = [
            (region, look) for group, look in zip(self.regions, looks, strict=True) for region in group
        ]
        marks = make_marks([region for region, _ in everything], [look for _, look in everything])
        return Realised(question_and_answer(question, as_sentence(caption)), marks)


def as_sentence(text: str) -> str:
    """A capital in front, a full stop at the end, and no space before a comma.

    >>> as_sentence("two men hold a kite , outside")
    'Two men hold a kite, outside.'
    """
    text = text.strip()
    text = text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
    return re.sub(r"\s*,\s*", ", ", text)


@dataclass(frozen=True)
class Pointing(Plan):
    """Visual7W: which of the marked objects is meant; rectangles in the constant style."""

    question: str
    regions: tuple[Region, ...]
    label: int
    alpha: int | None = None

    def realise(self, rng: random.Random) -> Realised:
        """Draw the colours, then the articles."""
        looks = draw_apart(rng, DATA_SETS["v7w"].shapes, [Wish()] * len(self.regions))
        marks = make_marks(self.regions, looks, constant=True, alpha=self.alpha)
        numbered = dict(enumerate(marks))
        options = [name_objects(rng, [[number]], numbered, None) for number in numbered]
        question = ask_for_letter(self.question, options)
        return Realised(question_and_answer(question, ascii_uppercase[self.label]), marks)


@dataclass(frozen=True)
class Counting(Plan):
    """PointQA-LookTwice: how many there are of what is marked; always a red rectangle in the constant style."""

    question: str
    answer: str
    region: Region
    alpha: int | None = None

    def realise(self, rng: random.Random) -> Realised:
        """Draw nothing: question and mark are fixed."""
        question = sentences("pointQA_twice")["question"].format(self.question)
        return Realised(
            question_and_answer(question, self.answer), (Mark(self.region, alpha=self.alpha, constant=True),)
        )


@dataclass(frozen=True)
class DataSet:
    """What its regions may look like; ``pair`` and ``drops_article``: see ``Conversation``."""

    shapes: tuple[Shape, ...]
    constant: bool = False
    pair: bool = False
    drops_article: bool = False


DATA_SETS: dict[str, DataSet] = {
    "refcocog": DataSet(SHAPES, pair=True),
    "vcr": DataSet(tuple(shape for shape in SHAPES if shape != "point"), drops_article=True),
    "vg_rel": DataSet(("rectangle", "ellipse"), pair=True, drops_article=True),
    "flickr30k": DataSet(("rectangle", "ellipse", "arrow")),
    "v7w": DataSet(("rectangle",), constant=True, drops_article=True),
    "pointQA_twice": DataSet(("rectangle",), constant=True),
}
"""ViP-LLaVA's, by the first part of the ids of their rows."""
