"""METEOR is the toolkit's own, and told when it cannot be run."""

from __future__ import annotations

import shutil

import pytest

from sightbridge.errors import SettingsError
from sightbridge.evaluation import meteor as room
from sightbridge.evaluation.metrics import Row, measure
from sightbridge.evaluation.task import load_task

ROWS = [
    Row("0", "a red bus on the road", ("a bus is driving down the street", "a red bus on a road")),
    Row("1", "two cats sleep", ("a dog", "one dog runs in the grass")),
]


@pytest.mark.skipif(shutil.which("java") is None, reason="needs java")
def test_parity_meteor_by_its_own_program() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    theirs, _ = Meteor().compute_score(
        {0: ["a bus is driving down the street", "a red bus on a road"], 1: ["a dog", "one dog runs in the grass"]},
        {0: ["a red bus on the road"], 1: ["two cats sleep"]},
    )
    ours = measure("meteor", ROWS)["meteor"].value
    print(f"parity METEOR: {ours:.4f}, {abs(ours - theirs):.1e} off")
    assert ours == pytest.approx(theirs) and 0.1 < ours < 1


def test_without_java_it_is_told_before_anything_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.shutil, "which", lambda name: None)
    with pytest.raises(SettingsError, match="there is no 'java' here"):
        load_task("coco_caption", ["metrics=[cider,meteor]"])
