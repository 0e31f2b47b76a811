"""Questions about one of several things, which only a mark on the picture tells: rows in ViP-LLaVA's custom format."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightbridge.data.scenes.draw import Box, outline
from sightbridge.data.scenes.language import MARKED_TYPES, marked_question
from sightbridge.data.scenes.world import Scene, SceneObject
from sightbridge.visual_prompts import COLOURS, SHAPES

LANGUAGE = "en"
"""The phrases that name a mark are English."""
FEWEST = {"train": 2, "test": 3}
"""A picture with fewer things is not asked about: whoever cannot see the mark guesses one of them."""


def training_rows(scene: Scene, file: str, boxes: Sequence[Box], rng: random.Random) -> Iterator[dict[str, Any]]:
    """A row for each question about each thing of a picture, in random order; training draws how it is marked.

    Two questions about one mark do not share a row: the first answer would tell a part of the second one.
    """
    if len(scene.objects) < FEWEST["train"]:
        return
    rows = [
        _row(scene, f"marked-{number}-{type_}", file, thing, box, type_)
        for number, (thing, box) in enumerate(zip(scene.objects, boxes, strict=True))
        for type_ in MARKED_TYPES
    ]
    yield from rng.sample(rows, len(rows))


def test_rows(scene: Scene, file: str, boxes: Sequence[Box], rng: random.Random) -> Iterator[dict[str, Any]]:
    """A row for each of the eight shapes: one question about a thing whose answer is true of no other thing."""
    if len(scene.objects) < FEWEST["test"]:
        return
    alone = [
        (thing, box, type_)
        for thing, box in zip(scene.objects, boxes, strict=True)
        for type_ in MARKED_TYPES
        if sum(_answer(scene, other, type_) == _answer(scene, thing, type_) for other in scene.objects) == 1
    ]
    for shape in SHAPES if alone else ():
        thing, box, type_ = rng.choice(alone)
        row = _row(scene, shape.replace(" ", "-"), file, thing, box, type_)
        yield row | {"shape": shape, "color": rng.choice(list(COLOURS))}


def _answer(scene: Scene, thing: SceneObject, type_: str) -> str:
    return marked_question(scene, thing, type_, LANGUAGE).answer


def _row(scene: Scene, name: str, file: str, thing: SceneObject, box: Box, type_: str) -> dict[str, Any]:
    asked = marked_question(scene, thing, type_, LANGUAGE)
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
