"""Recipes of BLIP-2's first stage, which teaches a Q-Former to read pictures before there is a language model."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from sightbridge.config.base import Settings
from sightbridge.config.model import ImageSettings, VisionTowerSettings
from sightbridge.config.recipe import Recipe, RunRecipe
from sightbridge.config.training import PartTraining, TrainedPart, TrainingSettings


class QFormerSettings(Settings):
    """The Q-Former and its three heads. All keys but ``source`` are options, checked by the models' own class."""

    model_config = ConfigDict(extra="allow", frozen=True)

    source: str | None = Field(
        default=None,
        description="BERT with its masked-word head (folder or hub name) that text branch, self-attention and head "
        "begin as; null = random weights",
    )

    @property
    def options(self) -> dict[str, Any]:
        """Every key but ``source``."""
        return dict(self.model_extra or {})


class CaptionTextSettings(Settings):
    """How captions become tokens."""

    tokenizer: str = Field(
        default="bert-base-uncased",
        description="folder, hub name or 'embedded:NAME'; one without [CLS] and [SEP] uses its <s> and </s> for them",
    )
    max_length: int = Field(default=32, ge=3, description="longest caption in tokens, [CLS] and [SEP] included")


class QFormerModelSettings(Settings):
    """A vision tower, and the Q-Former that learns to read it."""

    vision_tower: VisionTowerSettings
    qformer: QFormerSettings
    text: CaptionTextSettings = CaptionTextSettings()
    image: ImageSettings = ImageSettings()


class QFormerPartsSettings(Settings):
    """The two parts; by default the vision tower stays frozen."""

    vision_tower: PartTraining = PartTraining()
    qformer: TrainedPart = TrainedPart()


class QFormerTrainingSettings(TrainingSettings):
    """The run itself."""

    parts: QFormerPartsSettings = QFormerPartsSettings()


class QFormerRecipe(RunRecipe):
    """One run of the first stage. The key ``model.qformer`` tells it from an ordinary recipe."""

    model: QFormerModelSettings
    training: QFormerTrainingSettings


ModelRecipe = Recipe | QFormerRecipe
"""A recipe that trains one model."""
