"""A hash to know a model's weights by, so that kept scores are never taken for another model's."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from sightbridge.checkpoints.weights import fingerprint
from sightbridge.models.lora import is_adapter


def fingerprint_of(model: nn.Module) -> str:
    """Hash samples of all weights and all of every adapter; a quantised part also by how it is held."""
    hashes = []
    for name, part in sorted(model.named_children()):
        how = type(next((m for m in part.modules() if "bit" in type(m).__name__.lower()), part)).__name__
        hashes.append(f"{name} {how} {fingerprint(part)}")
    for name, weight in sorted(model.named_parameters()):
        if is_adapter(name):
            content = weight.detach().float().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            hashes.append(hashlib.sha256(content).hexdigest())
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
