"""The front of a model: all that makes a prompt of pictures and text, without the language model's layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightbridge.checkpoints.folder import FIRST_STAGE, fill_parts, load_processor
from sightbridge.checkpoints.manifest import Manifest
from sightbridge.checkpoints.sources.model_folder import FolderWeights, open_model_folder
from sightbridge.data.processor import Processor
from sightbridge.errors import CheckpointError
from sightbridge.models.build import build_vision_tower
from sightbridge.models.connectors import build_connector
from sightbridge.models.input_embeddings import InputEmbeddings
from sightbridge.models.vlm import VisionLanguageModel


def load_front(
    folder: str | Path, device: torch.device | str = "cpu", sources: Mapping[str, str] | None = None
) -> tuple[VisionLanguageModel, Processor]:
    """Load vision tower, connector and input embeddings of the decoder-only model in a folder, and its processor.

    Weights of the language model are read one at a time, to see that they are the right ones, and only the table of
    embeddings is kept. Adapters are left out: they change the layers alone.

    Args:
        folder: written by ``save_model`` or ``convert``.
        device: to move the model to.
        sources: part -> folder or hub name, for referenced parts that lie elsewhere now.

    Returns:
        A model that can ``embed``, and no more.

    Raises:
        CheckpointError: as ``load_any_model``; the model is an encoder-decoder or of the first stage; adapters change
            the embeddings.
    """
    weights = open_model_folder(folder, sources, parts=("language_model", "adapter"))
    manifest = weights.manifest
    if not isinstance(manifest, Manifest):
        raise CheckpointError(f"{folder}: {FIRST_STAGE}")
    if manifest.encoder_decoder:
        raise CheckpointError(
            f"{folder}: its language model is an encoder-decoder, whose pictures enter an encoder; the prompts of "
            "decoder-only models alone can be handed over."
        )
    table, config = _read_table(weights)
    settings = manifest.settings
    tower = build_vision_tower(settings.vision_tower, settings.image)
    connector = build_connector(settings.connector, tower.channels, tower.positions, table.shape[1])
    model = VisionLanguageModel(tower, connector, InputEmbeddings(table, config))
    fill_parts(model, manifest, weights.path, sources or {}, ("vision_tower", "connector"))
    return model.eval().to(device), load_processor(folder)


def _read_table(weights: FolderWeights) -> tuple[Tensor, Any]:
    """The table of input embeddings (V, D) and the configuration of the language model."""
    model, manifest = weights.language_model, weights.manifest
    assert isinstance(manifest, Manifest), "looked at before"
    place = model.get_input_embeddings().weight
    name = next(name for name, tensor in model.state_dict(keep_vars=True).items() if tensor is place)
    changed = [key for key in weights.infos if key.startswith("adapter.") and name.removesuffix(".weight") in key]
    if changed:
        raise CheckpointError(
            f"{weights.path}: its adapters change the input embeddings ('{changed[0]}'); put them into the weights "
            "first: sightbridge merge."
        )
    table = weights.read(f"language_model.{name}")
    if not manifest.parts["language_model"].file:
        table = table.to(getattr(torch, manifest.settings.language_model.dtype))
    return table.clone(), model.config
