"""Sentences about marks: what is asked, which object is meant, and how multiple choice is put and answered."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import ascii_uppercase
from typing import Any

import yaml

from sightbridge.visual_prompts import Mark

Words = Sequence[str | Sequence[int]]
"""A sentence in parts: words, and lists of the objects that are meant there, by number (VCR's notation)."""

NO_SPACE_BEFORE = frozenset(".,?!:;")


@cache
def sentences(name: str) -> dict[str, Any]:
    """The sentences of a data set, from the table beside this file."""
    return yaml.safe_load((files("sightbridge.data.regions") / "sentences.yaml").read_text("utf-8"))[name]


def draw_article(rng: random.Random) -> bool:
    """Whether a phrase has its ``the``: as often as not."""
    return rng.random() < 0.5


def name_objects(
    rng: random.Random, words: Words, marks: Mapping[int, Mark], names: Sequence[str] | None, *, vague: bool = True
) -> str:
    """Write a sentence, its objects as ``the person within the red rectangle and the dog pointed to by arrow``.

    ``names`` says what the objects are; without them, each is an "object". ``vague`` calls one an "object" or an
    "instance" instead of by its name, as often as not.
    """
    text = ""
    for place, part in enumerate(words):
        if isinstance(part, str):
            text += part
        else:
            said = [_name_object(rng, number, marks[number], names, vague) for number in part]
            text += ("The " if place == 0 else " the ") + " and the ".join(said)
        following = words[place + 1] if place + 1 < len(words) else None
        if isinstance(following, str) and following not in NO_SPACE_BEFORE:
            text += " "
    return text


def _name_object(rng: random.Random, number: int, mark: Mark, names: Sequence[str] | None, vague: bool) -> str:
    name = "object"
    if names is not None:
        is_vague = rng.random() < 0.5 and vague  # drawn even where it does not count, as the original does
        name = rng.choice(["object", "instance"]) if is_vague else names[number]
    return f"{name} {mark.in_words(article=draw_article(rng))}"


def ask_for_letter(question: str, options: Sequence[str]) -> str:
    """A question with an option on every line, to be answered with a letter."""
    listed = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question, *listed, sentences("options")["ending"]])


def offer(rng: random.Random, options: Sequence[str]) -> str:
    """Options in one line behind a question: `` Your choices include: (A) ... (B) ...``."""
    listed = [f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return f" {rng.choice(sentences('vcr')['options'])}{' '.join(listed)}"


def choose(rng: random.Random, options: Sequence[str], label: int) -> str:
    """Name one of the options, in one of seven ways that are equally likely."""
    letter, text = f"({ascii_uppercase[label]})", options[label]
    text = (text[:1].lower() + text[1:]).replace("—", "-")
    # Drawn in pairs, since the original draws the words of every way twice before it takes one.
    is_, sign = [_draw(rng, "judgements", 2), _draw(rng, "signs", 2)]
    is_that, is_because = _draw(rng, "judgements", 2), _draw(rng, "judgements", 2)
    ways = [
        (letter, letter),
        tuple(f"{judged} answer is {letter}" for judged in is_),
        tuple(f"{letter}{mark} {text}" for mark in sign),
        tuple(f"{judged} answer is {letter} - {text}" for judged in is_that),
        tuple(f"{letter} - {judged} because {text}" for judged in is_because),
        (f"Answer {letter}: {text}",) * 2,
        (f"Opt for {letter} if {text}",) * 2,
    ]
    return rng.choice([way for pair in ways for way in pair])


def _draw(rng: random.Random, pool: str, times: int) -> list[str]:
    return [rng.choice(sentences("vcr")[pool]) for _ in range(times)]
