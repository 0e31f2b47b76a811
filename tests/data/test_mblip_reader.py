"""mBLIP's rows: prompts with labels, rows to be answered, two pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sightbridge
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.text.turns import Turn

ROW = {"context": "Caption the image in German.", "label": "Ein roter Bus.", "image_id": "000001.jpg"}


def read(tmp_path: Path, *rows: Any) -> list[Record]:
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return list(sightbridge.records("mblip", path, "pictures"))


def test_training_rows(tmp_path: Path) -> None:
    plain, german = read(tmp_path, ROW, ROW | {"language": "de", "id": 7, "part": "captions"})
    assert plain.turns == (Turn("user", "<image>\nCaption the image in German."), Turn("assistant", "Ein roter Bus."))
    assert plain.images == (Path("pictures/000001.jpg"),)
    assert (plain.id, plain.language, plain.meta) == ("mix-1", "en", {"image_id": "000001.jpg"})
    assert (german.id, german.language, german.meta["part"]) == ("7", "de", "captions")


def test_rows_to_be_answered_keep_the_true_answers(tmp_path: Path) -> None:
    asked = {"context": "How many?", "label": "", "image_id": 42}
    one, several, unknown, statement = read(
        tmp_path,
        asked | {"text_label": "two", "pair_id": "p1"},
        asked | {"text_label": ["2", "two"]},
        asked,
        asked | {"text_label": False},
    )
    assert all(record.turns[-1] == Turn("assistant", None) for record in (one, several, unknown, statement))
    assert one.meta == {"image_id": 42, "text_label": "two", "pair_id": "p1", "answers": ["two"]}
    assert several.meta["answers"] == ["2", "two"]
    assert "answers" not in unknown.meta
    assert statement.meta["answers"] == ["no"]  # of NLVR2's true and false
    assert one.images == (Path("pictures/42.jpg"),)  # XM3600's and Flickr30k's rows leave the ending out


def test_two_pictures(tmp_path: Path) -> None:
    row = {"context": "Both are red.", "label": True, "left_image": "39/0.jpg", "right_image": "39/11.PNG"}
    (record,) = read(tmp_path, row)
    assert record.images == (Path("pictures/39/0.jpg"), Path("pictures/39/11.PNG"))
    assert record.turns == (Turn("user", "<image>\n<image>\nBoth are red."), Turn("assistant", "yes"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "a", "image_id": "1.jpg"}, r"row 1: key 'context' is missing"),
        (ROW | {"label": 3}, r"row 1, key 'label': expected a text, got 3"),
        (ROW | {"text_label": ["a", 3]}, r"key 'text_label', item 2: expected a text, got 3"),
        (ROW | {"image_id": ["a.jpg"]}, r"key 'image_id': expected the name of a picture, got a list"),
        (ROW | {"image_id": None}, r"row 1: expected 'image_id', or 'left_image' and 'right_image', got none of them"),
        (ROW | {"left_image": "a.jpg"}, r"row 1: expected 'image_id', or .* got image_id, left_image"),
        (ROW | {"context": "<image> Caption it."}, r"row 1, key 'context': holds '<image>'"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, row)
