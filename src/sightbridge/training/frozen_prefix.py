"""What of a recipe's model comes before the first trained weight, and whether its output can be stored."""

from __future__ import annotations

from sightbridge.config.qformer_recipe import ModelRecipe
from sightbridge.config.recipe import Recipe
from sightbridge.data.feature_store import check_views
from sightbridge.errors import SettingsError
from sightbridge.models.connectors import CONNECTORS, check_connector
from sightbridge.models.vlm import FrozenPrefix

MEMORY = "memory"
"""Value of ``data.cache`` that keeps features in memory instead of in a folder."""


def frozen_prefix(recipe: ModelRecipe) -> FrozenPrefix | None:
    """What ``VisionLanguageModel.frozen_prefix`` will say of the recipe's model, before there is one."""
    if recipe.training.parts.vision_tower.train != "frozen":
        return None
    if not isinstance(recipe, Recipe):
        return "tower"
    connector, training = recipe.model.connector, recipe.training.parts.connector
    takes_text = getattr(check_connector(connector), "text_input", False)
    splits = hasattr(CONNECTORS[connector.kind][1], "read") and not takes_text
    stays = training.train == "frozen" or training.only == ["output"]
    return "connector.read" if splits and stays else "tower"


def check_cache(recipe: ModelRecipe) -> None:
    """Check that the run has features that can be stored: behind something frozen, of views that come again."""
    if recipe.data.cache is None:
        return
    check_views(recipe.model.image, recipe.data.cache_views)
    if frozen_prefix(recipe) is None:
        raise SettingsError(
            "the vision tower trains, so nothing in front of the first trained weight is frozen, and features change "
            "with every step. Set data.cache=null or training.parts.vision_tower.train=frozen.",
            key="data.cache",
        )
