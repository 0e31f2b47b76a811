"""The report: one HTML file that shows what was trained, how well it answers, and pictures with its answers."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightbridge.config.load import write_atomically
from sightbridge.data.scenes.language import language_name
from sightbridge.pages import render
from sightbridge.quickstart.accuracy import Answered
from sightbridge.text.turns import IMAGE_MARKER
from sightbridge.training.charts import Panel, draw_panels

EXAMPLES = 12


def write_report(
    path: Path,
    results: dict[str, Any],
    history: Sequence[dict[str, Any]],
    answers: Sequence[Answered],
    commands: list[str],
) -> None:
    """Write the report of a quickstart; it loads nothing from anywhere else."""
    html = render(
        "sightbridge.quickstart",
        "report.html.jinja",
        results=results,
        language_name=language_name,
        curves=base64.b64encode(_curves(history)).decode(),
        examples=[_example(answer) for answer in _choose(answers)],
        commands=commands,
    )
    write_atomically(path, html)


def _curves(history: Sequence[dict[str, Any]]) -> bytes:
    losses = [(line["step"], line["loss"]) for line in history if line["kind"] == "train"]
    accuracies = [(line["step"], line["accuracy"]) for line in history if line["kind"] == "evaluation"]
    return draw_panels(
        [
            Panel("Loss per answer token, training pictures", {"": losses}, (0.0, None)),
            Panel("Share of right answers, held-out pictures", {"": accuracies}, (0.0, 1.0)),
        ]
    )


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
