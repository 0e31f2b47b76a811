"""Recipes of the tiny unimodal parents that the package ships: a vision tower, and language models that read text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sightbridge.config.base import Settings
from sightbridge.config.model import ImageSettings, PromptSettings
from sightbridge.config.training import OptimSettings, TrainingSettings


class ParentRecipe(Settings):
    """One parent, trained from nothing on one modality alone. The key ``parent`` tells it from an ordinary recipe."""

    description: str = Field(default="", description="what it trains, in a sentence or two")
    hardware: str = Field(default="", description="what it needs, and how long it takes there")
    parent: Literal["vision", "language"] = Field(..., description="what it learns from: pictures, or text")
    config: dict[str, Any] = Field(..., description="Hugging Face configuration (with 'model_type')")
    image: ImageSettings = Field(default_factory=ImageSettings, description="vision: how a picture becomes pixels")
    prompt: PromptSettings = Field(
        PromptSettings(template="vicuna_v1"), description="language: how prompts are written"
    )
    languages: list[str] = Field(default=["en", "de", "es", "zh"], description="language: what scenes are described in")
    vocabulary: int = Field(default=1024, ge=300, description="language: most tokens of the tokenizer it trains")
    questions: int = Field(default=4, ge=1, description="language: turns of a conversation")
    first_language_steps: int = Field(
        default=0, ge=0, description="language: steps of easy questions about shapes in the first language, beforehand"
    )
    first_lessons: float = Field(
        default=0.0, ge=0, le=1, description="language: share of the steps, at the start, with easy questions only"
    )
    drill_steps: int = Field(
        default=0, ge=0, description="language: steps afterwards, at half the learning rate, with more hard questions"
    )
    optim: OptimSettings = OptimSettings()
    training: TrainingSettings
