"""The optimiser and its parameter groups: one pair (decayed, not decayed) per trained part."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sightbridge.config.training import OptimSettings, PartsSettings, PartTraining
from sightbridge.errors import SettingsError


def parameter_groups(model: nn.Module, parts: PartsSettings, optim: OptimSettings) -> list[dict[str, Any]]:
    """Groups for AdamW, each with ``name``, ``params``, ``peak_lr`` and ``weight_decay``.

    Biases, norms and other parameters of at most one dimension are not decayed (LAVIS' rule, which unlike a rule by
    name also finds T5's and Llama's norms).
    """
    groups = []
    for part in type(parts).model_fields:
        settings: PartTraining = getattr(parts, part)
        trained = [(n, p) for n, p in getattr(model, part).named_parameters() if p.requires_grad]
        for suffix, decayed in (("", True), ("/no_decay", False)):
            chosen = [p for n, p in trained if (p.ndim > 1 and not n.endswith(".bias")) == decayed]
            if chosen:
                decay = optim.weight_decay if settings.weight_decay is None else settings.weight_decay
                groups.append(
                    {
                        "name": part + suffix,
                        "params": chosen,
                        "peak_lr": settings.lr or optim.lr,
                        "weight_decay": decay if decayed else 0.0,
                    }
                )
    if not groups:
        raise SettingsError(
            "nothing to train: every part is frozen. Set training.parts.connector.train=full", key="training.parts"
        )
    return groups


def build_optimizer(model: nn.Module, parts: PartsSettings, optim: OptimSettings) -> torch.optim.AdamW:
    """AdamW over ``parameter_groups``."""
    groups = parameter_groups(model, parts, optim)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
