"""From settings to a model of BLIP-2's first stage."""

from __future__ import annotations

import torch

from sightbridge.config.qformer_recipe import QFormerModelSettings, QFormerSettings
from sightbridge.models.build import build_vision_tower
from sightbridge.models.connectors import check_options
from sightbridge.models.qformer_bert import load_bert
from sightbridge.models.qformer_pretraining import (
    QFormerForPretraining,
    QFormerPretraining,
    QFormerPretrainingOptions,
)


def build_qformer_model(settings: QFormerModelSettings, seed: int = 0) -> QFormerPretraining:
    """Build a first-stage model in evaluation mode, on the CPU, every parameter trainable.

    Random weights, and errors, are as those of ``build_model``: a stream for each part, and the caller's random state
    is not touched.
    """
    options = check_qformer(settings.qformer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision_tower = build_vision_tower(settings.vision_tower, settings.image)
        torch.manual_seed(seed + 2)  # as the connector that a second stage goes on with
        qformer = QFormerForPretraining(options, vision_tower.channels)
        if settings.qformer.source is not None:
            load_bert(qformer, settings.qformer.source)
    return QFormerPretraining(vision_tower, qformer).eval()


def check_qformer(settings: QFormerSettings) -> QFormerPretrainingOptions:
    """Return the checked options; raises ``SettingsError`` with the key of an unknown or wrong one."""
    return check_options(QFormerPretrainingOptions, settings.options, "the Q-Former", "model.qformer")
