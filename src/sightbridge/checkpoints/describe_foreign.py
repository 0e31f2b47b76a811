"""What a file or folder of weights in a foreign format holds, before it is converted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sightbridge.checkpoints.adapter import ADAPTER_CONFIG, read_adapter_config
from sightbridge.checkpoints.formats import Found, detect
from sightbridge.checkpoints.manifest import read_manifest
from sightbridge.checkpoints.sources.base import NoWeightsError, Weights
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.checkpoints.supply import is_huggingface
from sightbridge.errors import CheckpointError

PARTS = {"vision_tower": "vision tower", "bridge": "connector", "language_model": "language model"}
"""Beginnings of canonical names, and what people call the parts."""
REST = "rest of the connector"
"""What a file lacks that holds only what was trained of a connector."""


@dataclass(frozen=True)
class ForeignPart:
    """Weights of one part: tensors, numbers in them, bytes these take, and their types, the commonest first."""

    name: str
    tensors: int
    parameters: int
    bytes: int
    types: tuple[str, ...]


@dataclass(frozen=True)
class ForeignDescription:
    """What was found.

    Attributes:
        weights: as they are in the file.
        what: what it is, for people.
        role: a model (whole or in part), a Hugging Face model that can be one of a model's parts, or adapters alone.
        parts: what it holds of each part; of a Hugging Face model alone, that one.
        absent: parts of a model that it lacks.
        template: name of the prompt template, if the format says so.
        notes: of the format's reader.
        format: of the file, and its name in ``FORMATS``; ``None`` for a Hugging Face model that is a part.
    """

    weights: Weights
    what: str
    role: Literal["model", "vision_tower", "language_model", "adapter"]
    parts: tuple[ForeignPart, ...]
    absent: tuple[str, ...] = ()
    template: str | None = None
    notes: tuple[str, ...] = ()
    format: str | None = None

    @property
    def files(self) -> list[Path]:
        """The files that its tensors lie in."""
        return sorted({info.file for info in self.weights.infos.values()})


def describe_foreign(path: Path) -> ForeignDescription:
    """Say what a file or folder that is no model folder holds, without reading a weight.

    Raises:
        CheckpointError: it holds no weights, is damaged or hostile, or of no known format.
    """
    try:
        weights = open_weights(path)
    except NoWeightsError as error:
        raise _neither(path, error) from error
    if path.is_dir() and weights.config:
        if is_huggingface(path, "language_model"):
            return _describe_part(weights, "language_model")
        if str(weights.config.get("model_type")).endswith("vision_model") and is_huggingface(path, "vision_tower"):
            return _describe_part(weights, "vision_tower")
    if (path / ADAPTER_CONFIG).is_file() and all(".lora_" in name for name in weights.infos):
        return _describe_adapter(weights, path)
    format = detect(weights)
    return _describe_model(weights, format.read(weights), format.what)


def _describe_model(weights: Weights, found: Found, format: str) -> ForeignDescription:
    titles = PARTS | ({"bridge": "Q-Former"} if found.kind == "qformer" else {})
    wanted = [title for part, title in titles.items() if found.kind != "qformer" or part != "language_model"]
    parts = [
        part for prefix, title in [*titles.items(), ("adapter", "adapters")] if (part := _part(found, prefix, title))
    ]
    present = {part.name for part in parts}
    absent = [title for title in wanted if title not in present]
    if found.partial:
        absent.append(REST)
    return ForeignDescription(
        weights,
        found.what,
        "model",
        tuple(parts),
        tuple(absent),
        found.settings.get("prompt", {}).get("template"),
        found.notes,
        format,
    )


def _describe_part(weights: Weights, role: Literal["vision_tower", "language_model"]) -> ForeignDescription:
    assert weights.config is not None, "asked before"
    title = PARTS[role]
    what = f"a Hugging Face {title} ({weights.config.get('model_type')}), to build or convert a model with"
    return ForeignDescription(weights, what, role, (_measure(weights, list(weights.infos), title),))


def _describe_adapter(weights: Weights, folder: Path) -> ForeignDescription:
    """A folder of peft's that holds adapters and nothing else."""
    config = read_adapter_config(folder)
    base = config.get("base_model_name_or_path")
    what = f"LoRA adapters for peft (r {config.get('r')}, alpha {config.get('lora_alpha')}), of the model {base!r}"
    return ForeignDescription(weights, what, "adapter", (_measure(weights, list(weights.infos), "adapters"),))


def _part(found: Found, prefix: str, title: str) -> ForeignPart | None:
    names = [name for name in found.weights.infos if name.startswith(f"{prefix}.")]
    return _measure(found.weights, names, title) if names else None


def _measure(weights: Weights, names: list[str], title: str) -> ForeignPart:
    infos = [weights.infos[name] for name in names]
    types: Counter[str] = Counter()
    for info in infos:
        types[str(info.dtype).removeprefix("torch.")] += info.bytes
    size, parameters = sum(types.values()), sum(info.bytes // info.dtype.itemsize for info in infos)
    return ForeignPart(title, len(names), parameters, size, tuple(name for name, _ in types.most_common()))


def _neither(path: Path, error: NoWeightsError) -> CheckpointError:
    """The error for what is neither a model folder nor weights; a folder's own says where a model folder may be."""
    try:
        read_manifest(path)
    except CheckpointError as no_model:
        if path.is_dir():
            return CheckpointError(f"{no_model} Nor does it hold weights in another format.")
    return CheckpointError(f"{str(error).removesuffix('.')}. Nor is it a model folder, which has a sightbridge.json.")
