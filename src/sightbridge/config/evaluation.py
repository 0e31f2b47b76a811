"""Settings of the evaluation that a run makes of its own answers while it trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sightbridge.config.base import Settings

Metric = Literal["accuracy", "relaxed_accuracy", "vqa_accuracy", "cider", "bleu_1", "bleu_4", "rouge_l"]

UNMARKED = "unmarked_"
"""Begins the names of values that were measured without the marks on the pictures."""


class EvaluationSettings(Settings):
    """Which answers are made and what they are measured by, besides the validation loss."""

    metrics: list[Metric] = Field(
        default_factory=list,
        description="of the answers to validation records: accuracy (exact but for case), cider, bleu_4, rouge_l, ...",
    )
    tasks: list[str] = Field(
        default_factory=list,
        description="benchmarks as 'sightbridge tasks' lists them, their files in 'root'; also values for "
        "training.best, such as xgqa/accuracy and xgqa/de/accuracy",
    )
    root: str | None = Field(
        default=None, description="the folder that the files of tasks are in; data.root if it is not given"
    )
    records: int = Field(
        default=500, ge=1, description="answer the first so many validation records, and so many of each part of a task"
    )
    unmarked: bool = Field(
        default=False,
        description="also answer the same questions without the marks on their pictures: what is then still right was "
        "guessed",
    )
    batch_size: int = Field(default=32, ge=1, description="records answered at a time")
