"""docs/checkpoints.md: its table of formats is that of the code, and every option it speaks of exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from sightbridge.checkpoints.export import TARGETS, projector
from sightbridge.checkpoints.formats import FORMATS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_formats_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("format_table", DOCS / "format_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.table() in page, "run python docs/format_table.py"
    assert module.renewed(page) == page


def test_what_is_written_is_read_back_by_a_format() -> None:
    named = [*projector.FORMATS, *(name for target in TARGETS.values() for name in target.formats)]
    assert set(named) <= set(FORMATS) and len(named) == len(set(named))


def test_targets_of_the_page_exist() -> None:
    page = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--to (\w+)", page)) - {"mm_projector"} == {*TARGETS, "projector"}
