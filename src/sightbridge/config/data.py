"""Settings of training and validation data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sightbridge.config.base import Settings


class SourceSettings(Settings):
    """One annotation file and the folder its pictures are in."""

    format: str = Field(description="name of a reader: llava, coco_caption, ...")
    path: str = Field(description="annotation file, relative to data.root; tars and tables: a pattern too")
    images: str | None = Field(default=None, description="folder of the pictures, relative to data.root")
    limit: int | None = Field(default=None, ge=1, description="read only the first so many records")
    clean: Literal["blip_caption", "blip_question"] | None = Field(
        default=None, description="LAVIS' clean-up of the answers (blip_caption) or of the questions (blip_question)"
    )


class DataSettings(Settings):
    """What is trained and validated on."""

    root: str = Field(default=".", description="folder that relative paths start from")
    train: list[SourceSettings] = Field(default_factory=list, description="sources, concatenated in order")
    validation: list[SourceSettings] = Field(default_factory=list, description="sources, as in train")
    no_target: Literal["error", "skip"] = Field(
        default="error",
        description="a record without a single target token stops the run, or is skipped, counted and listed",
    )
    bad_limit: float = Field(
        default=0.01, ge=0, le=1, description="largest share of records that may be unusable before the run stops"
    )
    workers: int = Field(default=0, ge=0, description="processes that open pictures; 0 = in the training process")
    keep_features: bool = Field(
        default=False, description="run the frozen vision tower once per picture and keep its output in memory"
    )
