"""LLaVA's ``mm_projector.bin``: a bridge alone, as the LLaVA family saves it behind its first stage.

The keys begin with ``model.mm_projector.``, in older files and CLIP-FlanT5's with ``mm_projector.``, in the
``non_lora_trainables.bin`` of a LoRA run with ``base_model.model.`` in front of that. What follows is ``0`` and ``2``
for the layers of LLaVA-1.5's MLP; ``clip_layernorm``, ``final_linear.0`` and ``final_linear.2`` in ViP-LLaVA; nothing
for LLaVA-1's single layer (haotian-liu/LLaVA and WisconsinAIVision/ViP-LLaVA, ``multimodal_projector/builder.py``).
"""

from __future__ import annotations

import re
from typing import Any

from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.llava import (
    checked_config,
    family,
    image_settings,
    projector_table,
    refuse_what_is_not_here,
    vision_settings,
)
from sightbridge.checkpoints.formats.llava_parts import (
    CLIP_336,
    VIP_LAYERS,
    bridge_settings,
    bridge_widths,
    bridge_words,
)
from sightbridge.checkpoints.key_map import KeyMap, MappedWeights
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.errors import CheckpointError

BEGINNING = re.compile(r"(base_model\.model\.)?(model\.)?mm_projector\.")
EMBEDDINGS = re.compile(r".*\bembed_(tokens|in)\.weight")
"""What is kept beside a projector that was trained with new words around pictures."""
VIP_CHANNELS = 5 * 1024
"""What five layers of CLIP-L give."""


def is_mm_projector(weights: Weights) -> bool:
    """Whether these are a projector, with embeddings of new words at most."""
    projector = [name for name in weights.infos if BEGINNING.match(name)]
    others = [name for name in weights.infos if not BEGINNING.match(name)]
    return bool(projector) and all(EMBEDDINGS.fullmatch(name) for name in others)


def read_mm_projector(weights: Weights) -> Found:
    """Say what a projector is; the ``config.json`` of its run, if it lies beside it, says which tower it was for."""
    mapped, others = projector_weights(weights)
    bridge, config = bridge_settings(mapped), checked_config(weights)
    settings: dict[str, Any] = {"connector": bridge, "vision_tower": {"class_token": "drop"}}  # the family's default
    if "mm_vision_tower" in config:
        refuse_what_is_not_here(weights, config)
        tower, _, _ = vision_settings(mapped, config)
        settings |= {"vision_tower": tower, "image": image_settings(config)}
    elif bridge.get("input_norm") and bridge_widths(mapped)[0] == VIP_CHANNELS:
        # The LayerNorm is only ever built in front of these layers of this tower.
        settings["vision_tower"] = {"source": CLIP_336, "layers": VIP_LAYERS, "class_token": "drop"}
    notes = [f"left out: {name}: is no part of a connector" for name in others]
    if trained_for := config.get("_name_or_path"):
        notes.append(f"config.json says that it was trained in front of '{trained_for}'")
    what = f"{family(bridge, config)}'s projector alone: {bridge_words(mapped)}"
    return Found("mm-projector", what, mapped, "generation", settings, notes=tuple(notes))


def projector_weights(weights: Weights) -> tuple[MappedWeights, list[str]]:
    """A file's projector under our connectors' names behind ``bridge.``, and the names of what else the file holds.

    Raises ``CheckpointError`` for one without a projector, or with keys that none has.
    """
    mapped = KeyMap.named(projector_table(weights)).to_ours(weights)
    odd = [name for name in mapped.unexpected if BEGINNING.match(name)]
    others = sorted(set(mapped.unexpected) - set(odd))
    if odd:
        raise CheckpointError(
            f"{weights.path}: '{odd[0]}' is a weight that no LLaVA, LLaVA-1.5 or ViP-LLaVA projector has, so this one "
            "works otherwise."
        )
    if not mapped.infos:
        held = f", but {', '.join(others[:3])}" if others else ""
        raise CheckpointError(
            f"{weights.path}: holds no projector (keys that begin with model.mm_projector. or mm_projector.){held}."
        )
    return mapped, others


MM_PROJECTOR = Format("mm-projector", "an mm_projector.bin of the LLaVA family", is_mm_projector, read_mm_projector)
