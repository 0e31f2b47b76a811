"""METEOR is the toolkit's own, and told when it cannot be run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from sightbridge.errors import SettingsError
from sightbridge.evaluation import meteor as room
from sightbridge.evaluation.metrics import Row, measure
from sightbridge.evaluation.task import load_task

ROWS = [
    Row("0", "a red bus on the road", ("a bus is driving down the street", "a red bus on a road")),
    Row("1", "two cats sleep", ("a dog", "one dog runs in the grass")),
    Row("2", "the red bus on a road", ("a bus is on the street", "the bus is red")),
]
TOOLKIT = [0.6322188449848024, 0.48192255244957183]


@pytest.mark.slow  # the program reads its tables for half a minute
@pytest.mark.skipif(shutil.which("java") is None, reason="needs java")
def test_parity_meteor_by_its_own_program() -> None:
    pytest.importorskip("pycocoevalcap")
    # what the toolkit's own Meteor().compute_score says of these two, and of the first, twice, and the third
    values = [measure("meteor", rows)["meteor"] for rows in (ROWS[:2], [ROWS[0], ROWS[0], ROWS[2]])]
    found = [value.value for value in values]
    print(f"parity METEOR: {found}, {max(abs(a - b) for a, b in zip(found, TOOLKIT, strict=True)):.1e} off")
    assert found == pytest.approx(TOOLKIT, abs=1e-9)
    assert values[0].low == pytest.approx(0) and 0.85 < values[0].high < 1  # type: ignore[operator]
    drawn = room.meteor([row.said for row in ROWS], [row.truths for row in ROWS])
    twice = drawn(np.array([[1.0, 1, 0], [2, 0, 1]]))[""]
    assert twice == pytest.approx(TOOLKIT), "a row that is drawn twice counts as two"


def test_without_java_it_is_told_before_anything_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.shutil, "which", lambda name: None)
    with pytest.raises(SettingsError, match="there is no 'java' here"):
        load_task("coco_caption", ["metrics=[cider,meteor]"])
