"""The optimiser and its parameter groups: one pair (decayed, not decayed) per trained part, or per layer of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sightbridge.config.base import Settings
from sightbridge.config.training import OptimSettings, PartTraining
from sightbridge.errors import SettingsError

LAYER = re.compile(r"(?:^|\.)(?:layers?|block|h)\.(\d+)\.")
"""Number of a transformer layer in a parameter's name: ``encoder.layers.3.`` (CLIP, SigLIP, BLIP-2), ``layer.3.``."""
BEFORE_THE_LAYERS = re.compile(r"(?:^|\.)(?:embeddings|pre_layrnorm)\.")
"""What a vision model does before its first layer: patches, class token, positions; CLIP's norm (its spelling)."""


def parameter_groups(model: nn.Module, parts: Settings, optim: OptimSettings) -> list[dict[str, Any]]:
    """Groups for AdamW, each with ``name``, ``params``, ``peak_lr``, ``lr_scale`` and ``weight_decay``.

    Decayed is what has not just one dimension and is no bias, as in LAVIS' ``get_optimizer_params``: queries, position
    embeddings and the contrastive temperature are, norms (also RMSNorms, which a rule by name would miss) are not. T5's
    ``relative_attention_bias`` is a table, which LAVIS would decay, but a bias by what it does: it is added to the
    attention's scores. It is not decayed here, as in transformers' Trainer, which trained CLIP-FlanT5.

    ``layer_decay`` d makes layer i of n (counted from 0) train at d^(n - i) times the part's learning rate, embeddings
    as a layer below the first one, and what follows the layers at the full one: LAVIS' and BEiT's ``lr_scale``. (LAVIS
    computes it, but its schedulers then write one rate into all groups.)

    Raises:
        SettingsError: nothing trains, or a part with ``layer_decay`` has no numbered layers.
    """
    groups: dict[str, dict[str, Any]] = {}
    for part in type(parts).model_fields:
        settings: PartTraining = getattr(parts, part)
        trained = [(n, p) for n, p in getattr(model, part).named_parameters() if p.requires_grad]
        scales = layer_scales((n for n, _ in trained), settings.layer_decay, part)
        decay = optim.weight_decay if settings.weight_decay is None else settings.weight_decay
        for name, parameter in sorted(trained, key=lambda item: scales[item[0]]):
            decayed, scale = is_decayed(name, parameter), scales[name]
            key = part + ("" if scale == 1 else f"/x{scale:.4g}") + ("" if decayed else "/no_decay")
            group = {"name": key, "params": [], "peak_lr": settings.lr or optim.lr, "lr_scale": scale}
            group["weight_decay"] = decay if decayed else 0.0
            groups.setdefault(key, group)["params"].append(parameter)
    if not groups:
        raise SettingsError(
            "nothing to train: every part is frozen. Set training.parts.connector.train=full", key="training.parts"
        )
    return list(groups.values())


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies to a parameter; see ``parameter_groups``."""
    return parameter.ndim != 1 and not name.endswith((".bias", "relative_attention_bias.weight"))


def layer_scales(names: Iterable[str], layer_decay: float | None, part: str) -> dict[str, float]:
    """Share of the part's learning rate that each parameter trains at.

    Raises:
        SettingsError: there is a ``layer_decay`` but no layer.
    """
    names = list(names)
    if layer_decay is None or not names:
        return dict.fromkeys(names, 1.0)
    numbers = {name: int(found[1]) for name in names if (found := LAYER.search(name))}
    if not numbers:
        raise SettingsError(
            f"the {part.replace('_', ' ')} has no numbered layers to decay the learning rate over; remove the setting",
            key=f"training.parts.{part}.layer_decay",
        )
    top = max(numbers.values()) + 2
    levels = {name: number + 1 for name, number in numbers.items()}
    return {
        name: layer_decay ** (top - levels.get(name, 0 if BEFORE_THE_LAYERS.search(name) else top)) for name in names
    }


def build_optimizer(model: nn.Module, parts: Settings, optim: OptimSettings) -> torch.optim.Optimizer:
    """AdamW over ``parameter_groups``, its state in float32 or in 8 bits.

    Raises:
        SettingsError: 8 bits need the bitsandbytes package.
    """
    groups = parameter_groups(model, parts, optim)
    if optim.kind == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
    except ImportError as error:
        raise SettingsError(
            "optim.kind=adamw_8bit needs the bitsandbytes package: pip install 'sightbridge[quant]'", key="optim.kind"
        ) from error
    return AdamW8bit(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
