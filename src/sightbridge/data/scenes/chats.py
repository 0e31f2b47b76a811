"""Scenes as MiniGPT4Qwen's rows: chats about pictures, and short videos in which everything moves one way."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from sightbridge.data.scenes.language import direction_word

TAG = "<Img><ImageHere></Img>"
FRAMES = 4
"""Frames of a video."""
PICTURES_PER_VIDEO = 20
"""Every so many pictures there is a video."""


def chat_row(row: dict[str, Any]) -> dict[str, Any]:
    """Write a row of LLaVA's as MiniGPT4Qwen writes it: one turn as texts, several as lists."""
    said = [turn["value"].replace("<image>\n", f"{TAG} ") for turn in row["conversations"] if turn["from"] == "human"]
    answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
    one = len(said) == 1
    kept = {key: value for key, value in row.items() if key != "conversations"}
    return kept | {"instruction": said[0] if one else said, "output": answers[0] if one else answers}


def write_video(folder: Path, picture: str, number: int, language: str, rng: random.Random) -> dict[str, Any]:
    """Write a folder of frames, in which a picture of ``folder`` moves left or right, and return its row."""
    way = rng.choice(["left", "right"])
    name = f"videos/{Path(picture).parent.name}/{number:04d}"
    (folder / name).mkdir(parents=True, exist_ok=True)
    with Image.open(folder / picture) as image:
        step = image.width // 10 * (1 if way == "right" else -1)
        for frame in range(FRAMES):
            ImageChops.offset(image, step * frame, 0).save(folder / name / f"{frame}.png")
    question = f"{direction_word('left', language)} / {direction_word('right', language)}?"
    return {
        "id": name,
        "video": name,
        "instruction": f"{TAG} {question}",
        "output": direction_word(way, language),
        "language": language,
        "type": "video",
    }
