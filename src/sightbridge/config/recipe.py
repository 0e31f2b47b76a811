"""A recipe: everything one training run needs, in one file."""

from __future__ import annotations

from pydantic import Field

from sightbridge.config.base import Settings
from sightbridge.config.data import DataSettings
from sightbridge.config.generation import GenerationSettings
from sightbridge.config.model import ModelSettings
from sightbridge.config.training import OptimSettings, TrainingSettings


class Recipe(Settings):
    """One training run. Shipped recipes are the YAML files in ``sightbridge/recipes``."""

    description: str = Field("", description="what it trains and where its numbers come from, in a sentence or two")
    hardware: str = Field("", description="what it needs, and how long it takes there")
    model: ModelSettings
    data: DataSettings = DataSettings()
    optim: OptimSettings = OptimSettings()
    training: TrainingSettings
    generation: GenerationSettings = GenerationSettings()
