"""Settings of an evaluation task: which files, what is asked, how it is answered, what the answers are measured by."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sightbridge.config.base import Settings
from sightbridge.config.generation import GenerationSettings

PARTS = ("language", "split")


class TaskSettings(Settings):
    """One benchmark. ``path``, ``images``, ``prompt`` and ``options`` may hold ``{part}`` and ``{language}``.

    A task of several files has ``languages`` or ``splits``; ``{part}`` stands for the one at hand, and ``{language}``
    in a prompt for a language's name.
    """

    description: str = Field(description="one line on what is measured")
    version: int = Field(default=1, ge=1, description="raised whenever prompt, settings or post-processing change")
    kind: Literal["answers", "matches", "retrieval"] = Field(
        default="answers",
        description="answers: the model writes, and what it wrote is measured; matches: it scores how well texts and "
        "pictures fit, and the scores are measured; retrieval: it finds each picture's captions among all, and back",
    )
    get: str = Field(description="which files to get where, and where to put them")
    reader: str = Field(description="name of a data format, or of a benchmark's own")
    path: str = Field(description="annotation file, in the folder of data")
    images: str = Field(default=".", description="folder of the pictures, in the folder of data")
    options: dict[str, Any] = Field(default_factory=dict, description="of the reader")
    languages: list[str] = Field(default_factory=list, description="codes of the languages that there is a part for")
    splits: list[str] = Field(default_factory=list, description="names of the parts, if these are not languages")
    names: str | None = Field(default=None, description="task whose own names of languages are used, e.g. xm3600")
    prompt: str | None = Field(
        default=None, description="what is asked, {} being the record's words; null = the record's words as they are"
    )
    generation: GenerationSettings = GenerationSettings()
    clean: str | None = Field(default=None, description="post-processing of answers before they are measured")
    metrics: list[str] = Field(min_length=1, description="see docs/evaluation.md; the first one is the main one")
    score: dict[str, Any] = Field(
        default_factory=dict, description="matches: how pairs are scored; retrieval: k candidates"
    )

    @field_validator("languages", "splits")
    @classmethod
    def _names_of_files(cls, names: list[str]) -> list[str]:
        for name in names:
            if not re.fullmatch(r"[\w-]+", name) or names.count(name) > 1:
                raise ValueError(f"a part is a file of answers: expected letters, digits, _ and -, once, got '{name}'")
        return names

    @model_validator(mode="after")
    def _one_kind_of_parts(self) -> TaskSettings:
        if self.languages and self.splits:
            raise ValueError("give 'languages' or 'splits', not both")
        if not self.parts and "{part}" in self.path:
            raise ValueError("'path' has {part}, but there are neither 'languages' nor 'splits'")
        if not self.languages and "{language}" in (self.prompt or ""):
            raise ValueError("'prompt' has {language}, but there are no 'languages'")
        known = {"answers": [], "retrieval": ["k"]}.get(self.kind)
        if known is not None and (wrong := self.score.keys() - known):
            raise ValueError(f"'score' of a task of {self.kind} has no {', '.join(sorted(wrong))}")
        if self.kind == "retrieval" and not (isinstance(k := self.score.get("k", 0), int) and k >= 0):
            raise ValueError(f"'score.k' is a number of candidates, got {k!r}")
        return self

    @property
    def parts(self) -> list[str]:
        """Languages or splits; empty for a task of one file."""
        return self.languages or self.splits
