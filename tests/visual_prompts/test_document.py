"""The example of docs/visual-prompts.md does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from sightbridge.visual_prompts import COLOURS, SHAPES, Mark, Region
from sightbridge.visual_prompts.shapes import WIDTHS

TEXT = (Path(__file__).parents[2] / "docs" / "visual-prompts.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)# (.*?)\n```", TEXT, re.DOTALL)
    assert example
    Image.new("RGB", (240, 180), "white").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(example[1], {})
    assert capsys.readouterr().out == f"{example[2]}\n"
    with Image.open("marked.png") as marked:
        assert marked.getpixel((20, 140)) != (255, 255, 255)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_table_says_what_is_drawn(shape: str) -> None:
    row = re.search(rf"^\| {shape} \| (.*?) \| (.*?) \| (.*?) \|", TEXT, re.MULTILINE)
    assert row
    mark = Mark(Region((0, 0, 1, 1)), shape, colour_name="...")  # type: ignore[arg-type]
    assert row[1] == mark.phrase
    if shape in WIDTHS:
        low, high, constant = WIDTHS[shape]  # type: ignore[index]
        assert f"{low} to {high}" in row[2]
        assert row[3] == str(constant)


def test_the_colours_are_named_in_their_order() -> None:
    assert f"{', '.join(COLOURS)}." in TEXT.replace("\n  ", " ")
