"""Writes the table of formats in docs/checkpoints.md from the code: ``python docs/format_table.py``."""

from __future__ import annotations

import re
from pathlib import Path

from sightbridge.checkpoints.export import TARGETS, projector
from sightbridge.checkpoints.formats import FORMATS

PAGE = Path(__file__).parent / "checkpoints.md"
PLACE = re.compile(r"(?<=<!-- formats -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table() -> str:
    """Rows of what is read and what is written, one for each format, and for what only has a target."""
    writers = {format: f"`--to {name}`" for name, target in TARGETS.items() for format in target.formats}
    writers |= dict.fromkeys(projector.FORMATS, "`--to projector`")
    rows = [(format.what, f"`{name}`", writers.get(name, "")) for name, format in FORMATS.items()]
    rows += [(target.what, "", f"`--to {name}`") for name, target in TARGETS.items() if not target.formats]
    lines = ["| layout | read as | written by |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(cells)} |" for cells in sorted(rows, key=lambda row: row[0].lower())]
    return "\n".join(lines) + "\n"


def renewed(page: str) -> str:
    """The page with the table of today."""
    return PLACE.sub(lambda _: table(), page, count=1)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
