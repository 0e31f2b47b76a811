"""Which container a path is, and its reader."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from sightbridge.checkpoints.sources.base import Held, Stored, StoredWeights, Weights
from sightbridge.errors import CheckpointError


def open_container(path: Path) -> Weights:
    """Skeleton: safetensors, torch zip files, folders of these."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder.")
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors")] or [*path.glob("*.bin")])
    folder = path if path.is_dir() else path.parent
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else None
    stored: dict[str, Stored] = {}
    kind = "torch"
    for file in files:
        with file.open("rb") as head:
            is_safetensors = head.read(9)[8:] == b"{"
        if is_safetensors:
            kind = "safetensors"
            with safe_open(file, framework="pt") as opened:
                stored |= {name: Held(opened.get_tensor(name), file) for name in opened.keys()}  # noqa: SIM118
            continue
        content = torch.load(file, map_location="cpu", weights_only=True)
        for wrapper in ("model", "state_dict", "module"):
            content = content.get(wrapper, content) if isinstance(content, dict) else content
        stored |= {name: Held(tensor, file) for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
    return StoredWeights(path, kind, stored, config)
