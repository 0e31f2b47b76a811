"""The kinds of model that are trained and saved, and the settings each is built from."""

from __future__ import annotations

from sightbridge.config.model import ModelSettings
from sightbridge.config.qformer_recipe import QFormerModelSettings
from sightbridge.models.build import build_model
from sightbridge.models.build_qformer import build_qformer_model
from sightbridge.models.qformer_pretraining import QFormerPretraining
from sightbridge.models.vlm import VisionLanguageModel

AnyModel = VisionLanguageModel | QFormerPretraining
AnyModelSettings = ModelSettings | QFormerModelSettings


def build_any(settings: AnyModelSettings, seed: int = 0) -> AnyModel:
    """Build the model that the settings are for; see ``build_model``."""
    if isinstance(settings, QFormerModelSettings):
        return build_qformer_model(settings, seed)
    return build_model(settings, seed)


def part_names(settings: AnyModelSettings) -> tuple[str, ...]:
    """Names of a model's parts, in its settings, its modules and its folder."""
    if isinstance(settings, QFormerModelSettings):
        return ("vision_tower", "qformer")
    return ("vision_tower", "connector", "language_model")
