"""Spreading a model over devices that are too small for it one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import nn

from sightbridge.models.vlm import VisionLanguageModel


def spread(model: VisionLanguageModel, max_memory: dict[int | str, int | str] | None = None) -> Mapping[str, Any]:
    """Spread the language model over all GPUs evenly, and over the CPU what they cannot hold; returns what lies where.

    Vision tower and connector go beside its embeddings, where pictures and words meet. A part on the CPU is copied to a
    GPU every time it is needed, which is slow, but works with a model that is larger than all GPUs.

    Args:
        model: on the CPU.
        max_memory: bytes (or ``"20GiB"``) by device, ``{0: ..., "cpu": ...}``; ``None`` asks the devices.
    """
    language_model = model.language_model.model
    whole = list(language_model._no_split_modules or [])
    limits = max_memory or get_balanced_memory(language_model, no_split_module_classes=whole)
    places = infer_auto_device_map(language_model, limits, no_split_module_classes=whole)
    dispatch_model(language_model, places)
    model.vision_tower.to(_device_of(language_model))
    model.connector.to(_device_of(language_model))
    return places


def _device_of(language_model: nn.Module) -> str | int:
    """Where the embeddings are computed."""
    table = language_model.get_input_embeddings()  # type: ignore[operator]
    hook = getattr(table, "_hf_hook", None)
    return getattr(hook, "execution_device", None) or table.weight.device
