"""Adapters of a language model in the folder format of ``peft``, which other tools read and write too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sightbridge.checkpoints.manifest import AdapterEntry
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.weights import file_hash
from sightbridge.errors import CheckpointError
from sightbridge.models.lora import adapted_layers, adapter_parameters

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What ``peft`` puts before the names of a model's modules."""


def save_adapter(language_model: nn.Module, source: str | None, folder: Path, trained: bool) -> AdapterEntry:
    """Write the adapters of a language model; ``peft.PeftModel.from_pretrained(base, folder)`` puts them back.

    Args:
        language_model: a ``LanguageModel`` with adapters.
        source: where its own weights come from, for tools that fetch them.
        folder: is made.
        trained: whether this run trained them.

    Returns:
        What the manifest says of them.
    """
    model: Any = language_model.model
    weights = {key: p.detach() for key, p in _by_key(model).items()}
    return write_adapter(language_model, Weights.of(weights), source, folder, trained)


def write_adapter(
    language_model: nn.Module, weights: Weights, source: str | None, folder: Path, trained: bool
) -> AdapterEntry:
    """Like ``save_adapter``, with the ``weights`` of a file; the adapters of ``language_model`` may be empty."""
    folder.mkdir(exist_ok=True)
    model: Any = language_model.model
    config: dict[str, Any] = {key: sorted(v) if isinstance(v, set) else v for key, v in _config(model).items()}
    config |= {"base_model_name_or_path": source, "inference_mode": True}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file({key: weights.read(key).cpu().contiguous() for key in weights.infos}, folder / ADAPTER_WEIGHTS)
    files = {name: file_hash(folder / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    size = sum(math.prod(info.shape) for info in weights.infos.values())
    return AdapterEntry(files=files, layers=len(adapted_layers(model)), parameters=size, trained=trained)


@torch.no_grad()
def load_adapter(language_model: nn.Module, folder: Path) -> int:
    """Fill the adapters of a language model from a folder that this module or ``peft`` wrote; returns their size.

    Raises:
        CheckpointError: a file is missing or damaged, or the adapters there go to other layers, have another rank or
            another scale.
    """
    model: Any = language_model.model
    saved = read_adapter_config(folder)
    try:
        weights = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / ADAPTER_WEIGHTS}: not a readable safetensors file ({error}).") from error
    here, wanted = _config(model), _by_key(model)
    differing = [f"{key} {saved.get(key)} (here {here[key]})" for key in ("r", "lora_alpha") if saved[key] != here[key]]
    lists = (("missing", wanted.keys() - weights.keys()), ("unexpected", weights.keys() - wanted.keys()))
    differing += [f"{len(keys)} {what} weights, such as {min(keys)}" for what, keys in lists if keys]
    common = wanted.keys() & weights.keys()
    differing += [key for key in sorted(common) if wanted[key].shape != weights[key].shape and not differing]
    if differing:
        raise CheckpointError(
            f"{folder}: the adapters there are not those of model.lora here: {'; '.join(differing)}. Give model.lora "
            "the settings that they were trained with."
        )
    for key, parameter in wanted.items():
        parameter.copy_(weights[key])
    return sum(parameter.numel() for parameter in wanted.values())


def adapter_shapes(language_model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a language model's adapters under the names they have in a PEFT folder."""
    return {key: tuple(parameter.shape) for key, parameter in adapter_tensors(language_model).items()}


def adapter_tensors(language_model: nn.Module) -> dict[str, Tensor]:
    """A language model's adapters under the names they have in a PEFT folder."""
    return _by_key(language_model.get_submodule("model"))


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the ``adapter_config.json`` of a LoRA; raises ``CheckpointError`` if it is missing or of something else."""
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); expected the folder of a PEFT adapter.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise CheckpointError(f"{path}: a PEFT adapter of type '{kind}'; only LORA can be used here.")
    missing = [key for key in ("r", "lora_alpha", "target_modules") if key not in config]
    if missing:
        raise CheckpointError(f"{path}: '{missing[0]}' is missing in it; was it written by peft?")
    return config


def _config(model: Any) -> dict[str, Any]:
    """Settings of the adapters as ``peft`` keeps them."""
    return model.peft_config["default"].to_dict()


def _by_key(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights under the names they have in a PEFT folder: without that of the adapter."""
    return {PREFIX + name.replace(".default.", "."): p for name, p in adapter_parameters(model).items()}
