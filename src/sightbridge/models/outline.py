"""What can be known of a model before a single weight is loaded: its shape, from configurations alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.initialization import no_init_weights

from sightbridge.config.model import ImageSettings, ModelSettings, VisionTowerSettings
from sightbridge.config.qformer_recipe import QFormerModelSettings
from sightbridge.errors import SettingsError
from sightbridge.models.build import VISION_CLASSES, find_config
from sightbridge.models.build_qformer import check_qformer
from sightbridge.models.connectors import build_connector
from sightbridge.models.lora import find_targets
from sightbridge.models.qformer_bert import check_bert
from sightbridge.models.qformer_pretraining import QFormerForPretraining, QFormerPretrainingOptions
from sightbridge.models.vision_tower import VisionTower


@dataclass(frozen=True)
class Outline:
    """``tokens_per_image``: slots one picture fills. ``vocabulary``: rows of the language model's embedding table."""

    tokens_per_image: int
    encoder_decoder: bool
    vocabulary: int


def outline(settings: ModelSettings) -> Outline:
    """Read the parts' configurations and build tower and connector without memory, on the meta device.

    Raises:
        SettingsError: a configuration or an option is wrong, or pictures have another size than the tower takes.
        CheckpointError: a source was not found.
    """
    tower = outline_tower(settings.vision_tower, settings.image)
    with torch.device("meta"), no_init_weights():
        connector = build_connector(settings.connector, tower.channels, tower.positions, out_width=1)
    language_config = find_config(settings.language_model, "language_model")
    if settings.lora:
        auto_class = AutoModelForSeq2SeqLM if language_config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"), no_init_weights():
            find_targets(auto_class.from_config(language_config), settings.lora)
    return Outline(
        tokens_per_image=connector.tokens_per_image,  # type: ignore[arg-type]
        encoder_decoder=bool(language_config.is_encoder_decoder),
        vocabulary=language_config.get_text_config().vocab_size,
    )


def outline_tower(settings: VisionTowerSettings, image: ImageSettings) -> VisionTower:
    """Build a vision tower without memory. Errors as for ``outline``."""
    config = find_config(settings, "vision_tower")
    if settings.image_size is not None:
        config.image_size = settings.image_size
    if image.size != config.image_size:
        raise SettingsError(
            f"Pictures are made {image.size} pixels wide, but the vision tower takes {config.image_size}. Set "
            "model.image.size, or model.vision_tower.image_size to give the tower another size.",
            key="model.image.size",
        )
    vision_class = VISION_CLASSES.get(config.model_type, AutoModel)
    build = getattr(vision_class, "from_config", None) or vision_class._from_config
    with torch.device("meta"), no_init_weights():
        return VisionTower(build(config), settings.layers, settings.class_token)


def check_qformer_outline(settings: QFormerModelSettings) -> QFormerPretrainingOptions:
    """Check a first-stage model in the same way, its BERT's sizes included; returns the Q-Former's options."""
    options = check_qformer(settings.qformer)
    tower = outline_tower(settings.vision_tower, settings.image)
    with torch.device("meta"), no_init_weights():
        qformer = QFormerForPretraining(options, tower.channels)
    if settings.qformer.source is not None:
        check_bert(qformer, settings.qformer.source)
    return options
