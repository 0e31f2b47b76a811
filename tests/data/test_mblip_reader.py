"""mBLIP's rows: prompts with labels, rows to be answered, two pictures."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import sightbridge
from sightbridge.data.readers.row_index import HeldRecords, IndexedRecords
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


FORMS = {
    "listed": "[\n{}\n]\n",
    "listed without an end of line": "[\n{}\n]",
    "lines": "{}\n",
    "held": " [{}]",
    "held, broken over lines": "[\n{}\n]",
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_read_where_they_lie_or_held(tmp_path: Path, form: str) -> None:
    rows = [ROW | {"label": f"Bus {n}, [ü], }}"} for n in range(5)]
    indent = 1 if "broken" in form else None
    separator = "\n" if form == "lines" else ",\n"
    path = tmp_path / "mix.json"
    written = separator.join(json.dumps(row, indent=indent, ensure_ascii=False) for row in rows)
    path.write_text(FORMS[form].replace("{}", written), encoding="utf-8")
    records = sightbridge.records("mblip", path, "pictures")
    assert isinstance(records, HeldRecords if "held" in form else IndexedRecords)
    assert [record.turns[1].text for record in records] == [row["label"] for row in rows]
    assert records[3].id == "mix-4" and records[3].where == f"{path}, {'line' if form == 'lines' else 'row'} 4"
    again = pickle.loads(pickle.dumps(records))  # as it goes to the loader's workers
    assert again[4] == records[4]
    assert len(sightbridge.records("mblip", path, limit=2)) == 2
    if "held" not in form:
        path.write_text("[]" * 400)
        with pytest.raises(DataError, match=r"4: is not what it was when the file was opened"):
            records[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"context": "a", "image_id": 1}', r"line 2, column 32: broken JSON: Expecting ',' delimiter"),
        ('[\n{"context": "a", "image_id": 1}\n]\n[', r"line 4, column 1: broken JSON: Extra data"),
        ('{"context": "a", "image_id": 1}\n{"context": 3, "image_id": 1}\n', r"line 2, key 'context': expected a text"),
        ('{"context": "a", "image_id": 1}\n{"context\n', r"line 2, column 10: broken JSON"),
        ('[\n{"context": "a", "image_id": 1},\n{"image_id": 1}\n]', r"row 2: key 'context' is missing"),
        ('[\n{"context": "a", "image_id": 1}\n{"context": "a", "image_id": 1}\n]', r"line 3, column 1: broken JSON"),
        ('[\n{"context": "a", "image_id": 1},\n]', r"broken JSON"),
        ("[\n]\n", r"holds no rows"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mix.json").write_text(text)
    with pytest.raises(DataError, match=message):
        sightbridge.records("mblip", tmp_path / "mix.json")
    with pytest.raises(DataError, match="cannot read"):
        sightbridge.records("mblip", tmp_path / "none.json")
