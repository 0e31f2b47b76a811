"""Questions about one of several things, which only a mark on the picture tells: rows in ViP-LLaVA's custom format."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightbridge.data.scenes.draw import Box, outline
from sightbridge.data.scenes.language import MARKED_TYPES, Question, marked_question
from sightbridge.data.scenes.world import Scene, SceneObject
from sightbridge.visual_prompts import COLOURS, SHAPES

LANGUAGE = "en"
"""The phrases that name a mark are English."""
FEWEST = 3
"""A picture with fewer things is not asked about: whoever cannot see the mark guesses one of them."""


def training_rows(scene: Scene, file: str, boxes: Sequence[Box], rng: random.Random) -> Iterator[dict[str, Any]]:
    """A row for each question that only a mark answers, in random order; training draws how a thing is marked.

    Two questions about one mark do not share a row: the first answer would tell a part of the second one.
    """
    rows = [
        _row(scene, f"marked-{number}-{type_}", file, boxes[number], number, type_) for number, type_ in _askable(scene)
    ]
    yield from rng.sample(rows, len(rows))


def test_rows(scene: Scene, file: str, boxes: Sequence[Box], rng: random.Random) -> Iterator[dict[str, Any]]:
    """A row for each of the eight shapes, with one question that only the mark answers."""
    askable = _askable(scene)
    for shape in SHAPES if askable else ():
        number, type_ = rng.choice(askable)
        row = _row(scene, shape.replace(" ", "-"), file, boxes[number], number, type_)
        yield row | {"shape": shape, "color": rng.choice(list(COLOURS))}


def _askable(scene: Scene) -> list[tuple[int, str]]:
    """Things by number, and the questions about each whose answer is true of no other thing."""
    if len(scene.objects) < FEWEST:
        return []
    said = {type_: [_ask(scene, thing, type_).answer for thing in scene.objects] for type_ in MARKED_TYPES}
    things = range(len(scene.objects))
    return [(n, type_) for n in things for type_ in MARKED_TYPES if said[type_].count(said[type_][n]) == 1]


def _ask(scene: Scene, thing: SceneObject, type_: str) -> Question:
    return marked_question(scene, thing, type_, LANGUAGE)


def _row(scene: Scene, name: str, file: str, box: Box, number: int, type_: str) -> dict[str, Any]:
    thing = scene.objects[number]
    asked = _ask(scene, thing, type_)
    row = {
        "id": f"{Path(file).with_suffix('').as_posix()}-{name}",
        "image": file,
        "bbox": box,
        "conversations": [
            {"from": "human", "value": f"<image>\n{asked.text}"},
            {"from": "gpt", "value": asked.answer},
        ],
        "language": LANGUAGE,
        "type": type_,
    }
    return row | {"segmentation": [polygon]} if (polygon := outline(thing, box)) else row
