"""Every shipped task can be loaded, says where its files are from, and is on the page of the documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightbridge.evaluation.metrics import METRICS
from sightbridge.evaluation.task import TASKS, load_task, task_names

PAGE = (Path(__file__).parents[2] / "docs/evaluation.md").read_text("utf-8")


@pytest.mark.parametrize("name", task_names())
def test_a_task_is_whole(name: str) -> None:
    text = (TASKS / f"{name}.yaml").read_text("utf-8")
    settings = load_task(name).settings
    assert text.startswith("# "), "a comment says what it is and where its numbers are from"
    assert "DATA" in settings.get and settings.description
    family = f"`{name.partition('/')[0]}/...`" if "/" in name else f"`{name}`"
    assert family in PAGE


def test_every_metric_is_on_the_page() -> None:
    assert [name for name in METRICS if f"`{name}`" not in PAGE] == []
