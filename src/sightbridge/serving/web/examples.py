"""Pictures to try the page with: drawn scenes as the quickstart's, with a question each."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from functools import cache

from sightbridge.data.scenes.draw import draw_scene
from sightbridge.data.scenes.language import language_codes, language_name, questions
from sightbridge.data.scenes.world import sample_scene
from sightbridge.serving.web.thumbnails import to_url

SEEDS = (12, 38, 8, 11)
"""One scene each."""
SIDE = 384


@dataclass(frozen=True)
class Example:
    """A picture, a small copy of it, and for each language (by name) a question about it and its answer."""

    name: str
    data: bytes
    thumbnail: str
    asked: dict[str, tuple[str, str]]


@cache
def examples() -> list[Example]:
    """The same ones each time."""
    return [_draw(number, seed) for number, seed in enumerate(SEEDS, start=1)]


def _draw(number: int, seed: int) -> Example:
    scene = sample_scene(random.Random(seed))
    picture, _ = draw_scene(scene, SIDE)
    file = io.BytesIO()
    picture.save(file, "PNG")
    asked = {}
    for code in language_codes():
        question = questions(scene, code, random.Random(seed), 1)[0]
        asked[language_name(code)] = (question.text, question.answer)
    return Example(f"scene-{number}.png", file.getvalue(), to_url(picture, 120), asked)
