"""Writing scenes as ordinary files, in the formats that people's own data come in."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sightbridge.data.scenes import marks
from sightbridge.data.scenes.chats import PICTURES_PER_VIDEO, chat_row, write_video
from sightbridge.data.scenes.draw import Box, draw_scene
from sightbridge.data.scenes.language import (
    caption,
    caption_prompt,
    direction_word,
    figure_question,
    language_name,
    phrase,
    questions,
    statement,
)
from sightbridge.data.scenes.world import NEW_COMBINATIONS, ObjectSet, Pair, Scene, sample_scene
from sightbridge.errors import DataError

MARK = "scenes.json"
"""File that tells a folder of scenes from any other: what is in it."""
ANNOTATIONS = (
    "train",
    "test",
    "test_new",
    "captions_train",
    "statements_train",
    "captions_test",
    "statements_test",
    "regions_test",
    "vqa_train",
    "vqa_test",
    "descriptions_train",
    "descriptions_test",
    "figures_train",
    "figures_test",
    "pairs_train",
    "pairs_test",
    "two_by_two_test",
    "chats_train",
    "chats_test",
    "videos_train",
    "videos_test",
    "marks_train",
    "marks_test",
)
"""Names of the annotation files."""

MARKED_ROWS = {"train": marks.training_rows, "test": marks.test_rows}


@dataclass(frozen=True)
class ScenesSettings:
    """What to write. ``size`` is the side of a picture in pixels; ``questions`` is per training picture."""

    object_set: ObjectSet = "shapes"
    train: int = 2000
    test: int = 500
    languages: tuple[str, ...] = ("en", "de", "es", "zh")
    size: int = 96
    questions: int = 4
    one_question_per_row: bool = False
    seed: int = 0


@dataclass(frozen=True)
class _Picture:
    scene: Scene
    file: str
    boxes: list[Box]
    language: str


def write_scenes(
    folder: Path, settings: ScenesSettings, on_picture: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Draw pictures and write annotation files; returns the number of rows of each file.

    - ``train.json``, ``test.json``: LLaVA conversations; the test has one question a row, with its type and language.
    - ``test_new.json``: the same about pairs of kind and colour that no training picture shows.
    - ``vqa_train.json``, ``vqa_test.json``: LAVIS' VQA rows, one question each.
    - ``captions_train.json``, ``captions_test.json``: COCO-Karpathy rows.
    - ``statements_train.json``, ``statements_test.json``: true or false, as conversations.
    - ``descriptions_train.json``, ``descriptions_test.json``: the captions again, each asked for in its language.
    - ``figures_train.json``, ``figures_test.json``: VQAScore's question, yes and no equally often, as conversations.
    - ``pairs_train.json``, ``pairs_test.json``: mBLIP's rows with two pictures, a statement about one of them.
    - ``chats_*.json``, ``videos_*.json``: MiniGPT4Qwen's rows, of the same conversations and of folders of frames.
    - ``marks_*.json``: ViP-LLaVA's rows, about one of several things that a mark points at; English pictures only.
    - ``regions_test.json``: boxes with the phrase of what is in them.
    - ``scenes.json``: the settings, and the pairs kept for ``test_new``.

    ``on_picture`` is called after each picture. The same settings give the same files. Raises ``DataError`` if the
    folder already holds something else, ``SettingsError`` for an unknown language.
    """
    for code in settings.languages:
        language_name(code)  # an unknown one is told before pictures are drawn
    _clear(folder)
    rng = random.Random(settings.seed)
    new = NEW_COMBINATIONS[settings.object_set]
    # before anything else, so that an interrupted run can be repeated in place
    _write_json(folder / MARK, {"settings": vars(settings), "new_combinations": sorted(new)})

    def pictures(part: str, count: int, **constraints: Any) -> list[_Picture]:
        made = []
        for index in range(count):
            scene = sample_scene(rng, settings.object_set, **constraints)
            image, boxes = draw_scene(scene, settings.size)
            file = f"images/{part}/{index:05d}.png"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / file)
            made.append(_Picture(scene, file, boxes, settings.languages[index % len(settings.languages)]))
            on_picture()
        return made

    train = pictures("train", settings.train, exclude=new)
    test = pictures("test", settings.test, exclude=new, held_out=True)
    test_new = pictures("test_new", settings.test // 4, require=new, held_out=True)

    per_row = 1 if settings.one_question_per_row else settings.questions
    rows = {
        "train": [row for p in train for row in _conversations(p, rng, settings.questions, per_row, avoid=new)],
        "test": [row for p in test for row in _conversations(p, rng, 2, 1, avoid=new)],
        "test_new": [row for p in test_new for row in _conversations(p, rng, 2, 1, about=new)],
    }
    for part, chosen in (("train", train), ("test", test)):
        rows[f"captions_{part}"] = [_caption_row(p, part) for p in chosen]
        rows[f"descriptions_{part}"] = [_description_row(p) for p in chosen]
        rows[f"statements_{part}"] = [_statement_row(p, rng, avoid=new) for p in chosen]
    rows["regions_test"] = [_region_row(p) for p in test]
    rows |= _rows_of_other_systems(folder, settings, {"train": train, "test": test}, rows, new)
    for name in ANNOTATIONS:
        _write_json(folder / f"{name}.json", rows[name])
    return {name: len(content) for name, content in rows.items()}


def _rows_of_other_systems(
    folder: Path,
    settings: ScenesSettings,
    pictures: dict[str, list[_Picture]],
    conversations: dict[str, list[dict[str, Any]]],
    new: frozenset[Pair],
) -> dict[str, list[dict[str, Any]]]:
    """Rows as LAVIS, VQAScore, mBLIP and MiniGPT4Qwen have them."""
    # of their own: without one of these files the others stay what they are
    rngs = {kind: random.Random(f"{settings.seed}/{kind}") for kind in ("vqa", "figures", "pairs", "videos", "marks")}
    rows: dict[str, list[dict[str, Any]]] = {}
    for part, chosen in pictures.items():
        asked = settings.questions if part == "train" else 2
        rows[f"vqa_{part}"] = [row for p in chosen for row in _vqa_rows(p, rngs["vqa"], asked, avoid=new)]
        rows[f"figures_{part}"] = list(_figure_rows(chosen, rngs["figures"], asked, avoid=new))
        rows[f"pairs_{part}"] = list(_pair_rows(chosen, len(settings.languages), rngs["pairs"], avoid=new))
        rows[f"chats_{part}"] = [chat_row(row) for row in conversations[part]]
        rows[f"videos_{part}"] = list(_video_rows(folder, chosen, rngs["videos"]))
        rows[f"marks_{part}"] = [
            row
            for p in chosen
            if p.language == marks.LANGUAGE
            for row in MARKED_ROWS[part](p.scene, p.file, p.boxes, rngs["marks"])
        ]
    rows["two_by_two_test"] = list(_two_by_two_rows(pictures["test"], len(settings.languages)))
    return rows


def _clear(folder: Path) -> None:
    """Refuse a folder that is not ours; take away annotations that would no longer fit the pictures."""
    ours = (folder / MARK).exists()
    if folder.exists() and not ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder} exists and holds other files; choose an empty folder or one written by data scenes")
    for name in ANNOTATIONS:
        (folder / f"{name}.json").unlink(missing_ok=True)


def _conversations(
    picture: _Picture, rng: random.Random, n: int, per_row: int, **limits: frozenset[Pair]
) -> Iterable[dict[str, Any]]:
    asked = questions(picture.scene, picture.language, rng, n, **limits)  # type: ignore[arg-type]
    for start in range(0, len(asked), per_row):
        turns = []
        for index, question in enumerate(asked[start : start + per_row]):
            marker = "<image>\n" if index == 0 else ""
            turns.append({"from": "human", "value": marker + question.text})
            turns.append({"from": "gpt", "value": question.answer})
        row = {"id": f"{Path(picture.file).with_suffix('').as_posix()}-{start}", "image": picture.file}
        yield row | {"conversations": turns, "language": picture.language, "type": asked[start].type}


def _vqa_rows(picture: _Picture, rng: random.Random, n: int, avoid: frozenset[Pair]) -> Iterable[dict[str, Any]]:
    name = Path(picture.file).with_suffix("").as_posix()
    for index, asked in enumerate(questions(picture.scene, picture.language, rng, n, avoid=avoid)):
        yield {
            "image": picture.file,
            "question": asked.text,
            "answer": [asked.answer],
            "question_id": f"{name}-vqa-{index}",
            "dataset": "scenes",
            "language": picture.language,
            "type": asked.type,
        }


def _caption_row(picture: _Picture, part: str) -> dict[str, Any]:
    said = caption(picture.scene, picture.language)
    # Karpathy's training rows hold one caption, his test rows the list of references
    return {
        "image": picture.file,
        "caption": said if part == "train" else [said],
        "image_id": Path(picture.file).stem,
        "language": picture.language,
        "prompt": caption_prompt(random.Random(picture.scene.seed), picture.language),
    }


def _description_row(picture: _Picture) -> dict[str, Any]:
    prompt = caption_prompt(random.Random(picture.scene.seed), picture.language)
    said = caption(picture.scene, picture.language)
    turns = [{"from": "human", "value": f"<image>\n{prompt}"}, {"from": "gpt", "value": said}]
    row = {"id": f"{Path(picture.file).with_suffix('').as_posix()}-description", "image": picture.file}
    return row | {"conversations": turns, "language": picture.language, "type": "description"}


def _statement_row(picture: _Picture, rng: random.Random, avoid: frozenset[Pair]) -> dict[str, Any]:
    said = statement(picture.scene, picture.language, rng, avoid=avoid)
    turns = [{"from": "human", "value": f"<image>\n{said.text}"}, {"from": "gpt", "value": said.answer}]
    row = {"id": f"{Path(picture.file).with_suffix('').as_posix()}-statement", "image": picture.file}
    return row | {"conversations": turns, "language": picture.language, "type": said.type}


def _figure_rows(
    pictures: Sequence[_Picture], rng: random.Random, n: int, avoid: frozenset[Pair]
) -> Iterator[dict[str, Any]]:
    """``n`` rows a picture, in turn about what is there and what is not."""
    for number, (picture, index) in enumerate(product(pictures, range(n))):
        asked = figure_question(picture.scene, picture.language, rng, true=number % 2 == 0, avoid=avoid)
        turns = [{"from": "human", "value": f"<image>\n{asked.text}"}, {"from": "gpt", "value": asked.answer}]
        row = {"id": f"{Path(picture.file).with_suffix('').as_posix()}-figure-{index}", "image": picture.file}
        yield row | {"conversations": turns, "language": picture.language, "type": asked.type}


def _pair_rows(
    pictures: Sequence[_Picture], languages: int, rng: random.Random, avoid: frozenset[Pair]
) -> Iterator[dict[str, Any]]:
    """Each picture beside the next one in its language, with a statement that is about one of the two."""
    step = languages if len(pictures) > languages else 1
    for place, picture in enumerate(pictures):
        pair = {"left": picture, "right": pictures[(place + step) % len(pictures)]}
        side = rng.choice(list(pair))
        said = statement(pair[side].scene, picture.language, rng, avoid=avoid)
        yield {
            "id": f"{Path(picture.file).with_suffix('').as_posix()}-pair",
            "context": f"{direction_word(side, picture.language).capitalize()}: {said.text}",
            "label": said.answer,
            "left_image": pair["left"].file,
            "right_image": pair["right"].file,
            "language": picture.language,
            "type": "pair",
        }


def _two_by_two_rows(pictures: Sequence[_Picture], languages: int) -> Iterator[dict[str, Any]]:
    """Each picture and the next one in its language, with both captions: NaturalBench's and Winoground's rows."""
    step = languages if len(pictures) > languages else 1
    for number, picture in enumerate(pictures):
        both = (picture, pictures[(number + step) % len(pictures)])
        row: dict[str, Any] = {"index": number}
        for place, one in enumerate(both):
            row |= {f"image_{place}": one.file, f"caption_{place}": caption(one.scene, one.language)}
        yield row


def _video_rows(folder: Path, pictures: Sequence[_Picture], rng: random.Random) -> Iterator[dict[str, Any]]:
    for number, picture in enumerate(pictures[::PICTURES_PER_VIDEO]):
        yield write_video(folder, picture.file, number, picture.language, rng)


def _region_row(picture: _Picture) -> dict[str, Any]:
    phrases = [phrase(picture.scene, thing, picture.language) for thing in picture.scene.objects]
    return {
        "id": Path(picture.file).stem,
        "image": picture.file,
        "bboxes": picture.boxes,
        "phrases": phrases,
        "language": picture.language,
    }


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    temporary.replace(path)
