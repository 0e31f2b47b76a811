"""mBLIP's checkpoints: what its training saved (gregor-ge/mBLIP, a Lightning ``.ckpt``).

They hold queries, Q-Former and projection under transformers' names; the tower with its last norm, and the language
model, are where training took them from. Adapters lie in a folder of PEFT's beside.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightbridge.checkpoints.formats import hf_blip2
from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.llava import lora_settings
from sightbridge.checkpoints.formats.views import RenamedWeights
from sightbridge.checkpoints.key_map import JoinedWeights
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.errors import CheckpointError

PREFIX = "model."
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
CLASS_OF_2023 = 1e-5
"""Epsilon of the tower's norms in the transformers of 2023, with which mBLIP was trained; today's default is 1e-6."""


def matches(weights: Weights) -> bool:
    """A BLIP-2 of transformers inside a Lightning module called ``model``."""
    return hf_blip2.matches(_inner(weights)) and "query_tokens" not in weights.infos


def read(weights: Weights) -> Found:
    """What the checkpoint holds, with the adapters in the folder beside it."""
    inner = _inner(weights)
    others = [name for name in weights.infos if not name.startswith(PREFIX)]
    if others:
        raise CheckpointError(f"{weights.path}: '{others[0]}' does not belong to mBLIP's model ('{PREFIX}*').")
    inner.config = {"vision_config": {"layer_norm_eps": CLASS_OF_2023}} | (weights.config or {})
    found = hf_blip2.read(inner)
    settings, mapped, notes = found.settings, found.weights, found.notes
    partial = "bridge.input_norm.weight" not in mapped.infos
    if partial:
        settings["connector"] |= {"input_norm": True}
        notes += ("mBLIP freezes the norm in front of the Q-Former with the tower and saves neither: both are needed",)
        notes += (
            "mBLIP saw the tower through the transformers of 2023, whose norms have epsilon 1e-5. If the tower comes "
            "without a configuration: vision_tower.config.layer_norm_eps=1e-5",
        )
    adapter = _adapter_beside(weights.path)
    if adapter:
        mapped = JoinedWeights(mapped, _adapter_weights(adapter))
        settings["lora"] = lora_settings(json.loads((adapter / ADAPTER_CONFIG).read_text("utf-8")), adapter)
        notes += (f"adapters: from {adapter}",)
        decoder_only = any(".transformer.h." in name for name in mapped.infos)  # BLOOM's names, not mT5's
        settings["prompt"] = {"template": "mblip_bloomz" if decoder_only else "mblip"}
    what = found.what.replace("BLIP-2, Hugging Face layout", "mBLIP, as its training saves it")
    return Found("mblip", what, mapped, "generation", settings, notes=notes, partial=partial)


def _inner(weights: Weights) -> Weights:
    """The model inside; what PEFT wraps is Lightning's doubled ``model.model.`` in some runs."""
    names = {name.removeprefix(PREFIX).removeprefix(PREFIX): name for name in weights.infos if name.startswith(PREFIX)}
    return RenamedWeights(weights, names)


def _adapter_beside(path: Path) -> Path | None:
    """The one folder of adapters beside a checkpoint; raises ``CheckpointError`` if there are several."""
    folders = sorted(file.parent for file in path.parent.glob(f"*/{ADAPTER_CONFIG}"))
    if len(folders) > 1:
        listed = ", ".join(folder.name for folder in folders)
        raise CheckpointError(
            f"{path}: beside it are several folders of adapters ({listed}), and nothing says whose are whose. Put the "
            "checkpoint and its own adapters into a folder of their own."
        )
    return folders[0] if folders else None


def _adapter_weights(folder: Path) -> Weights:
    file = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder}: has an {ADAPTER_CONFIG}, but none of {', '.join(ADAPTER_FILES)}.")
    adapters: Any = open_weights(file)
    return RenamedWeights(adapters, {f"adapter.{name}": name for name in adapters.infos})


MBLIP = Format("mblip", "mBLIP's Lightning .ckpt", matches, read)
