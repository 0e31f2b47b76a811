"""A model's folder becomes a model that is served, of whichever kind it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sightbridge.checkpoints.folder import load_any_model
from sightbridge.checkpoints.manifest import Manifest, read_manifest
from sightbridge.config.serving import ServingSettings
from sightbridge.data.processor import Processor
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.scoring.clip import is_clip_folder, load_clip
from sightbridge.serving.api.one_at_a_time import OneAtATime
from sightbridge.serving.api.served import ServedModel
from sightbridge.serving.engines.engine import Engine

LoadAnswering = Callable[[Path], tuple[VisionLanguageModel, Processor]]


def load_served(
    folder: Path,
    name: str,
    settings: ServingSettings,
    *,
    device: str,
    sources: dict[str, str],
    load_answering: LoadAnswering,
    max_batch: int,
    max_queue: int,
) -> ServedModel:
    """Load a model that answers, one of the first stage, or a CLIP's folder; start the engine of one that answers.

    Args:
        folder: of the model.
        name: in requests.
        settings: of the server.
        device: of models that do not answer.
        sources: part -> folder or hub name, for referenced parts that lie elsewhere now.
        load_answering: loads one that answers, as its user wishes.
        max_batch: answers that are written at the same time.
        max_queue: requests that wait.

    Raises ``CheckpointError`` and what ``load_answering`` raises.
    """
    work, created = OneAtATime(name, settings.max_waiting_scores), int(time.time())
    if is_clip_folder(folder):
        return ServedModel(name, load_clip(str(folder), device, None), None, None, work, created)
    if not isinstance(read_manifest(folder.expanduser().resolve()), Manifest):
        model, processor = load_any_model(folder, device, sources)
        return ServedModel(name, model.eval(), processor, None, work, created)
    model, processor = load_answering(folder)
    engine = Engine(model.eval(), processor, name=name, max_batch=max_batch, max_queue=max_queue)
    return ServedModel(name, model, processor, engine, work, created)
