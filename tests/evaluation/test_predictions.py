"""Lines of answers: what the page shows is what the model saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightbridge.data import marks as of_data
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.evaluation.predictions import line_of, marked_pictures, read_lines, settle
from sightbridge.text.turns import Turn
from sightbridge.visual_prompts import Mark, Region


def test_marks_are_drawn_again_as_the_model_saw_them(tmp_path: Path) -> None:
    Image.new("RGB", (120, 90), "white").save(tmp_path / "a.png")
    marks = (
        Mark(Region((10, 10, 60, 50)), "arrow", (0, 0, 255), "blue"),
        Mark(Region((40, 20, 100, 80), polygons=((40.0, 20.0, 100.0, 20.0, 70.0, 80.0),)), "mask"),
    )
    turns = (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "a bus"))
    record = Record("7", (tmp_path / "a.png", tmp_path / "gone.png"), turns, marks=marks)
    line = json.loads(json.dumps(line_of(record, "en", "a car")))
    shown, _ = marked_pictures(line, anchor=224)  # what is not marked stays as it is, there or not
    seen = of_data.drawing(record, 0).on(record.images[0], 224)
    assert np.array_equal(np.asarray(shown), np.asarray(seen))
    assert not np.array_equal(np.asarray(shown), np.asarray(Image.open(tmp_path / "a.png")))
    with pytest.raises(DataError, match="marks of the record '7' were damaged"):
        list(marked_pictures(line | {"marks": [{"shape": "arrow"}]}))


def test_one_line_of_every_record_is_left_in_the_place_of_its_first(tmp_path: Path) -> None:
    def line(id: str, **more: str) -> str:
        return json.dumps({"id": id, "truths": ["a"]} | more) + "\n"

    mine, other = tmp_path / "de.jsonl", tmp_path / "de.1.jsonl"
    mine.write_text(line("0", error="gone") + line("1", answer="a") + line("0", error="still gone"), "utf-8")
    other.write_text(line("2", error="gone") + line("3", answer="b"), "utf-8")
    with mine.open("a", encoding="utf-8") as file:
        file.write(line("2", answer="c") + line("1", error="nothing that matters") + '{"id": "4", "ans')
    before = read_lines([mine, other])
    settle([mine, other])
    assert mine.read_text("utf-8") == line("0", error="still gone") + line("1", answer="a") + line("2", answer="c")
    assert other.read_text("utf-8") == line("3", answer="b")
    assert read_lines([mine, other]) == before
    stamp = mine.stat().st_mtime_ns
    settle([mine, other])
    assert mine.stat().st_mtime_ns == stamp, "nothing to be left out, nothing written"
