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
    """A row about each thing of a picture: all questions in random order; training draws how it is marked."""
    if len(scene.objects) < FEWEST["train"]:
        return
    for number, (thing, box) in enumerate(zip(scene.objects, boxes, strict=True)):
        types = rng.sample(MARKED_TYPES, len(MARKED_TYPES))
        yield _row(scene, f"marked-{number}", file, thing, box, types)


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
        row = _row(scene, shape.replace(" ", "-"), file, thing, box, [type_])
        yield row | {"shape": shape, "color": rng.choice(list(COLOURS)), "type": type_}


def _answer(scene: Scene, thing: SceneObject, type_: str) -> str:
    return marked_question(scene, thing, type_, LANGUAGE).answer


def _row(scene: Scene, name: str, file: str, thing: SceneObject, box: Box, types: Sequence[str]) -> dict[str, Any]:
    turns = []
    for type_ in types:
        asked = marked_question(scene, thing, type_, LANGUAGE)
        turns.append({"from": "human", "value": asked.text if turns else f"<image>\n{asked.text}"})
        turns.append({"from": "gpt", "value": asked.answer})
    row = {
        "id": f"{Path(file).with_suffix('').as_posix()}-{name}",
        "image": file,
        "bbox": box,
        "conversations": turns,
        "language": LANGUAGE,
    }
    return row | {"segmentation": [polygon]} if (polygon := outline(thing, box)) else row
