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
from sightbridge.evaluation.predictions import line_of, marked_pictures
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
