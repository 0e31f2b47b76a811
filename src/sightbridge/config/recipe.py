"""A recipe: everything one training run needs, in one file."""

from __future__ import annotations

from pydantic import Field

from sightbridge.config.base import Settings
from sightbridge.config.data import DataSettings
from sightbridge.config.evaluation import EvaluationSettings
from sightbridge.config.generation import GenerationSettings
from sightbridge.config.model import ModelSettings
from sightbridge.config.training import OptimSettings, TrainingSettings


class RunRecipe(Settings):
    """What the recipes of all models have in common; each kind of model has a class of its own."""

    description: str = Field("", description="what it trains and where its numbers come from, in a sentence or two")
    hardware: str = Field("", description="what it needs, and how long it takes there")
    model: Settings
    data: DataSettings = DataSettings()
    optim: OptimSettings = OptimSettings()
    training: TrainingSettings


class Recipe(RunRecipe):
    """A run that joins a vision tower to a language model. Shipped ones are the files in ``sightbridge/recipes``."""

    model: ModelSettings
    generation: GenerationSettings = GenerationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
