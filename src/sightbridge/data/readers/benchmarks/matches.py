"""Pictures and texts that fit one another more or less, and what people think of it.

Winoground:     id,image_0,image_1,caption_0,caption_1 in a CSV, or the same keys and "collapsed_tag" in JSON lines
EqBen:          [{"image0": "eqbensd/1.jpg", "image1": ..., "caption0": ..., "caption1": ...}, ...]
NaturalBench:   [{"index": 0, "image_0": ..., "image_1": ..., "caption_0": ..., "caption_1": ...}, ...]
TIFA160:        {"coco_1_mini_dalle": {"text_id": "coco_1", "image_path": "x.jpg", "text": "A tree"}, ...} and beside it
                the ratings, model_type,...,source_id,...,answer in a CSV
GenAI-Bench:    {"00001": {"prompt": "A tree", "models": {"DALLE_3": [5, 4, 5], ...}}, ...}, pictures MODEL/00001.jpeg
SeeTRUE:        image,text,label,...,dataset_source in a CSV
Pick-a-Pic:     [{"caption": ..., "image_0": ..., "image_1": ..., "label_0": 1}, ...]
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from sightbridge.data.readers.rows import Row, read_rows, take, take_id, take_texts
from sightbridge.errors import DataError

TIFA_MODELS = {
    "mini-dalle": "mini_dalle",
    "vq-diffusion": "vq_diffusion",
    "sd1dot1": "stable_diffusion_v1_1",
    "sd1dot5": "stable_diffusion_v1_5",
    "sd2dot1": "stable_diffusion_v2_1",
}
"""Models in the file of ratings, and the same ones in the names of pictures."""
DEGREES = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
QUOTED = re.compile('"(.+)"')
PICTURE_ENDING = ".png"
"""Of Winoground's pictures, whose JSON lines name them without."""


@dataclass(frozen=True)
class Comparison:
    """Every one of ``images`` is to be scored with every one of ``texts``; ``meta`` holds what people think of them."""

    id: str
    images: tuple[Path, ...]
    texts: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    where: str = ""


def read_two_by_two(path: Path, images_folder: Path) -> Iterator[Comparison]:
    """Yield two pictures and two captions a row: Winoground, EqBen, NaturalBench's retrieval.

    ``meta["type"]`` is Winoground's tag, or the folder of the first picture. Raises ``DataError`` for a wrong row.
    """
    for number, where, row in read_rows(path):
        apart = "_" if "image_0" in row else ""
        names = [take(row, f"image{apart}{n}", (str,), where, "a file name") for n in (0, 1)]
        texts = [take(row, f"caption{apart}{n}", (str,), where, "a text") for n in (0, 1)]
        id = take_id(row, "id", where) or take_id(row, "index", where) or str(number - 1)
        kind = row.get("collapsed_tag") or (Path(names[0]).parts[0] if len(Path(names[0]).parts) > 1 else None)
        images = [images_folder / (name if Path(name).suffix else name + PICTURE_ENDING) for name in names]
        yield Comparison(id, tuple(images), tuple(texts), {"type": kind} if kind else {}, where)


def read_tifa160(path: Path, images_folder: Path, ratings: str = "dsg_tifa160_anns.csv") -> Iterator[Comparison]:
    """Yield every generated picture with its prompt; ``meta["rating"]`` is the mean of the people's, 1 to 5.

    ``ratings`` is the file of these beside ``path``. Raises ``DataError`` for a wrong row or a picture without rating.
    """
    given: dict[str, list[float]] = defaultdict(list)
    for _, where, row in read_rows(path.parent / ratings):
        model = take(row, "model_type", (str,), where, "the name of a model")
        if model not in TIFA_MODELS:
            raise DataError(f"{where}, key 'model_type': expected one of {', '.join(TIFA_MODELS)}, got '{model}'.")
        given[f"{take(row, 'source_id', (str,), where, 'a text')}_{TIFA_MODELS[model]}"].append(
            _number(row, "answer", where)
        )
    for key, row, where in _objects(path):
        if key not in given:
            raise DataError(f"{where}: has no rating in {path.parent / ratings}.")
        image = images_folder / take(row, "image_path", (str,), where, "a file name")
        text = take(row, "text", (str,), where, "a text")
        model = key.removeprefix(f"{row.get('text_id', '')}_")
        yield Comparison(key, (image,), (text,), {"rating": mean(given[key]), "type": model}, where)


def read_genai_bench(path: Path, images_folder: Path, skills: str | None = None) -> Iterator[Comparison]:
    """Yield every generated picture with its prompt; ``meta["rating"]`` as above, ``type`` the model that drew it.

    ``skills`` is a file beside ``path`` with the prompts of each skill; they become ``meta["tags"]``.
    """
    tags: dict[str, list[str]] = defaultdict(list)
    if skills:
        for _, where, content in read_rows(path.parent / skills):
            for skill in content:
                for prompt in take(content, skill, (list,), where, "a list of prompts' numbers"):
                    tags[str(prompt)].append(skill)
    for key, row, where in _objects(path):
        text = take(row, "prompt", (str,), where, "a text")
        for model, ratings in take(row, "models", (dict,), where, "an object of ratings").items():
            if not isinstance(ratings, list) or not ratings or not all(isinstance(r, int | float) for r in ratings):
                raise DataError(f"{where}, model '{model}': expected a list of ratings, got {ratings!r}.")
            meta = {"rating": mean(ratings), "type": model, "tags": tags.get(key, [])}
            yield Comparison(f"{key}-{model}", (images_folder / model / f"{key}.jpeg",), (text,), meta, where)


def read_seetrue(path: Path, images_folder: Path) -> Iterator[Comparison]:
    """Yield every pair of picture and text; ``meta["label"]`` is 1 if they fit, ``type`` where they are from."""
    for number, where, row in read_rows(path):
        image = images_folder / take(row, "image", (str,), where, "a file name")
        label = DEGREES.get(str(row.get("label")))
        if label is None:
            raise DataError(f"{where}, key 'label': expected 0 or 1, got {row.get('label')!r}.")
        meta = {"label": label} | ({"type": row["dataset_source"]} if "dataset_source" in row else {})
        yield Comparison(str(number), (image,), (take(row, "text", (str,), where, "a text"),), meta, where)


def read_figures(path: Path, images_folder: Path) -> Iterator[Comparison]:
    """Yield a pair for every row of VQAScore's question, as ``data scenes`` writes it: ``meta["label"]`` as above.

    The text is what stands in quotation marks in the question.
    """
    for number, where, row in read_rows(path):
        image = images_folder / take(row, "image", (str,), where, "a file name")
        turns = take(row, "conversations", (list,), where, "a question and an answer")
        said = [take(turn, "value", (str,), where, "a text") for turn in turns if isinstance(turn, dict)]
        quoted = QUOTED.search(said[0]) if len(said) == 2 else None
        if quoted is None:
            raise DataError(f"{where}: expected a question with a text in quotation marks, and its answer.")
        meta = {"label": int(said[1].strip().casefold() == "yes"), "type": row.get("language", "en")}
        yield Comparison(take_id(row, "id", where) or str(number), (image,), (quoted[1],), meta, where)


def read_pick_a_pic(path: Path, images_folder: Path) -> Iterator[Comparison]:
    """Yield two pictures of one caption; ``meta["label"]`` is the one that was preferred, 0 or 1."""
    for number, where, row in read_rows(path):
        images = [images_folder / take(row, key, (str,), where, "a file name") for key in ("image_0", "image_1")]
        if row.get("label_0") not in (0, 1):
            raise DataError(f"{where}, key 'label_0': expected 0 or 1, got {row.get('label_0')!r}.")
        texts = take_texts(row, "caption", where, "a text")
        yield Comparison(str(number), tuple(images), tuple(texts[:1]), {"label": 1 - row["label_0"]}, where)


def _objects(path: Path) -> Iterator[tuple[str, Row, str]]:
    """The objects of a file that is one object of them."""
    for _, _, content in read_rows(path):
        for key, row in content.items():
            where = f"{path}, '{key}'"
            if not isinstance(row, dict):
                raise DataError(f"{where}: expected an object {{...}}, got {row!r}.")
            yield key, row, where


def _number(row: Row, key: str, where: str) -> float:
    try:
        return float(row[key])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{where}, key '{key}': expected a number, got {row.get(key)!r}.") from None
