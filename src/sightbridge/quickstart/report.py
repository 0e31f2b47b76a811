"""The report: one HTML file that shows what was trained, how well it answers, and pictures with its answers."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sightbridge.config.load import write_atomically
from sightbridge.data.scenes.language import language_name
from sightbridge.quickstart.accuracy import Answered
from sightbridge.text.turns import IMAGE_MARKER

CHART_WIDTH, CHART_HEIGHT = 440, 180
EXAMPLES = 12


@dataclass(frozen=True)
class Chart:
    """A curve as an SVG polyline, with the numbers to write at its axes."""

    title: str
    points: str
    low: str
    high: str
    last_step: int
    final: str


def write_report(
    path: Path,
    results: dict[str, Any],
    history: Sequence[dict[str, Any]],
    answers: Sequence[Answered],
    commands: list[str],
) -> None:
    """Write the report of a quickstart; it loads nothing from anywhere else."""
    templates = Environment(
        loader=PackageLoader("sightbridge.quickstart", "."), autoescape=True, undefined=StrictUndefined
    )
    templates.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    templates.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\u202f")
    html = templates.get_template("report.html.jinja").render(
        results=results,
        language_name=language_name,
        charts=_charts(history),
        examples=[_example(answer) for answer in _choose(answers)],
        commands=commands,
    )
    write_atomically(path, html)


def _charts(history: Sequence[dict[str, Any]]) -> list[Chart]:
    losses = [(line["step"], line["loss"]) for line in history if line["kind"] == "train"]
    accuracies = [(line["step"], line["accuracy"]) for line in history if line["kind"] == "evaluation"]
    return [
        _chart("Loss per answer token, training pictures", losses, "{:.2f}", bottom=0.0),
        _chart("Share of right answers, held-out pictures", accuracies, "{:.0%}", bottom=0.0, top=1.0),
    ]


def _chart(
    title: str, values: list[tuple[int, float]], form: str, bottom: float | None = None, top: float | None = None
) -> Chart:
    """Scale values to the chart's box; y grows downwards in SVG."""
    steps, heights = [step for step, _ in values], [value for _, value in values]
    low = min(heights) if bottom is None else bottom
    high = max(heights) if top is None else top
    span, width = (high - low) or 1.0, (steps[-1] - steps[0]) or 1
    points = " ".join(
        f"{(step - steps[0]) / width * CHART_WIDTH:.1f},{(1 - (value - low) / span) * CHART_HEIGHT:.1f}"
        for step, value in values
    )
    return Chart(title, points, form.format(low), form.format(high), steps[-1], form.format(heights[-1]))


def _choose(answers: Sequence[Answered]) -> list[Answered]:
    """A fixed random choice, right and wrong ones as they come, every picture once."""
    shuffled = list(answers)
    random.Random(0).shuffle(shuffled)
    by_picture = {answer.record.images[0]: answer for answer in shuffled}
    return list(by_picture.values())[:EXAMPLES]


def _example(answer: Answered) -> dict[str, Any]:
    picture = Path(str(answer.record.images[0])).read_bytes()
    question = next(turn.text or "" for turn in answer.record.turns if turn.role == "user")
    return {
        "picture": base64.b64encode(picture).decode(),
        "question": question.replace(IMAGE_MARKER, "").strip(),
        "said": answer.said or "(nothing)",
        "truth": answer.truth,
        "right": answer.right,
    }
