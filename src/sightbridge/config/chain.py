"""A chain: runs one after the other, each from where an earlier one ended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from sightbridge.config.base import Settings


class ChainStep(Settings):
    """One run of a chain."""

    name: str = Field(description="its folder inside the chain's", pattern=r"^[\w.-]*\w$")
    recipe: str = Field(description="recipe that it runs")
    start: str | list[str] | None = Field(
        default=None, description="earlier step whose model it starts from; of several, a later one over an earlier one"
    )
    change: dict[str, Any] = Field(default_factory=dict, description="settings that differ from the recipe's")

    @property
    def starts(self) -> list[str]:
        """All of ``start``."""
        return [self.start] if isinstance(self.start, str) else self.start or []


class ScenesOptions(Settings):
    """Pictures to draw, as ``sightbridge data scenes`` does."""

    train: int = Field(default=2000, ge=1, description="pictures to train on")
    test: int = Field(default=500, ge=1, description="pictures to validate on")
    languages: list[str] = Field(default=["en"], min_length=1, description="languages of captions and questions")
    size: int = Field(default=96, ge=48, description="side of a picture in pixels")
    seed: int = Field(default=0, ge=0, description="of the drawing")


class ChainRecipe(Settings):
    """Several runs, such as BLIP-2's two stages and its fine-tunes."""

    description: str = Field("", description="what it trains and where its numbers come from, in a sentence or two")
    hardware: str = Field("", description="what it needs, and how long it takes there")
    scenes: ScenesOptions | None = Field(
        default=None, description="draw scenes into the chain's folder first; they are every step's data.root"
    )
    mixes: dict[str, list[str]] = Field(
        default_factory=dict,
        description="files to make beside the scenes, as 'sightbridge data mix' does: the mixture, then its overrides",
    )
    every: dict[str, Any] = Field(default_factory=dict, description="settings of every step, such as data.root")
    chain: list[ChainStep] = Field(..., min_length=1, description="the runs, in order")

    @model_validator(mode="after")
    def _mixes_are_of_scenes(self) -> ChainRecipe:
        if self.mixes and not self.scenes:
            raise ValueError("'mixes' are made of scenes; say how many under 'scenes'")
        for file, mixture in self.mixes.items():
            if not re.fullmatch(r"[\w.-]*\w\.jsonl?", file):
                raise ValueError(f"mixes: '{file}' is no name of a .json or .jsonl file")
            if not mixture:
                raise ValueError(f"mixes: '{file}' needs a mixture, such as [scenes]")
        return self

    @model_validator(mode="after")
    def _steps_start_from_earlier_ones(self) -> ChainRecipe:
        earlier: list[str] = []
        for step in self.chain:
            if step.name in earlier:
                raise ValueError(f"two steps are called '{step.name}'")
            for start in step.starts:
                if start not in earlier:
                    known = ", ".join(earlier) or "none"
                    raise ValueError(f"step '{step.name}' starts from '{start}', but the steps before it are: {known}")
            earlier.append(step.name)
        return self


def as_overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested settings as ``key=value`` overrides: mappings are gone into, everything else replaces what was there."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from as_overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value, ensure_ascii=False)}"
