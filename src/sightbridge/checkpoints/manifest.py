"""``sightbridge.json``: what a model folder holds. What a folder is, is read here and never guessed from its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from sightbridge.config.base import Settings
from sightbridge.config.model import ModelSettings
from sightbridge.config.qformer_recipe import QFormerModelSettings
from sightbridge.errors import CheckpointError

MANIFEST = "sightbridge.json"
"""Name of the manifest in a model folder."""
TOKENIZER = "tokenizer"
"""Name of the folder beside it that the tokenizer is in."""
CONNECTOR_TOKENIZER = "connector_tokenizer"
"""Name of the folder of a connector's own tokenizer, if it has one."""
ADAPTER = "adapter"
"""Name of the PEFT folder of a language model's adapters, if it has some."""
LANGUAGE_MODEL = "language_model"
"""Name of the Hugging Face folder of a language model that was converted, or that adapters were merged into."""
VISION_TOWER = "vision_tower"
"""Name of the Hugging Face folder of a vision tower that was converted."""
FORMAT = "sightbridge-model"
FORMAT_VERSION = 1
"""Grows whenever an older release could not read the folder rightly."""
PARTS = ("vision_tower", "connector", "qformer", "language_model")
"""Names of parts; a model has those that its settings have."""


class PartEntry(Settings):
    """One part of the model and where its weights are: in ``file``, or at the ``source`` that the settings name."""

    file: str | None = Field(description="safetensors file beside the manifest, if the weights are stored here")
    sha256: str | None = Field(description="of that file")
    source: str | None = Field(description="where the weights came from; null = they began as random ones")
    trained: bool = Field(description="whether they changed since")
    parameters: int
    dtype: str = Field(pattern="^(float(16|32|64)|bfloat16)$")
    fingerprint: str = Field(description="hash of samples of the weights, see checkpoints.weights.fingerprint")
    only: list[str] = Field(default_factory=list, description="submodules that 'file' holds; empty = all of the part")
    rest: list[str] = Field(
        default_factory=list, description="where to look for the model folder that holds all other submodules"
    )


class AdapterEntry(Settings):
    """The adapters of the language model, in a folder that ``peft`` loads."""

    files: dict[str, str] = Field(description="name in the adapter's folder -> SHA-256")
    layers: int = Field(description="how many linear layers are adapted")
    parameters: int
    trained: bool = Field(description="whether this run trained them")


class BaseManifest(Settings):
    """Everything but the weights and the tokenizer."""

    format: Literal["sightbridge-model"] = FORMAT
    format_version: int = FORMAT_VERSION
    kind: str
    settings: Settings = Field(description="builds the model; stored parts by configuration, others by source")
    parts: dict[str, PartEntry]
    tokenizer_files: dict[str, str] = Field(description="name in the tokenizer's folder -> SHA-256")
    connector_tokenizer_files: dict[str, str] = Field(default_factory=dict, description="the same of a connector's own")
    tokens_per_image: int
    versions: dict[str, str] = Field(description="of the libraries that wrote the folder")
    provenance: dict[str, Any] = Field(default_factory=dict, description="free notes: recipe, steps, data, ...")

    @model_validator(mode="after")
    def _parts_of_the_settings(self) -> BaseManifest:
        names = [name for name in PARTS if hasattr(self.settings, name)]
        if set(self.parts) != set(names):
            raise ValueError(f"expected the parts {', '.join(names)}, got {', '.join(self.parts) or '-'}")
        for name, entry in self.parts.items():
            if not entry.file and not hasattr(getattr(self.settings, name), "source"):
                raise ValueError(f"the weights of the {name} have no file")
        return self


class Manifest(BaseManifest):
    """Of a model that answers questions about pictures."""

    kind: Literal["generation"] = "generation"
    settings: ModelSettings
    encoder_decoder: bool
    adapter: AdapterEntry | None = None

    @model_validator(mode="after")
    def _adapters_of_lora(self) -> Manifest:
        if (self.adapter is None) != (self.settings.lora is None):
            raise ValueError("'adapter' and 'settings.lora' belong together, and one of them is missing")
        return self


class QFormerManifest(BaseManifest):
    """Of a model of BLIP-2's first stage."""

    kind: Literal["qformer"] = "qformer"
    settings: QFormerModelSettings


AnyManifest = Manifest | QFormerManifest
KINDS: dict[str, type[AnyManifest]] = {"generation": Manifest, "qformer": QFormerManifest}


def write_manifest(manifest: AnyManifest, folder: Path) -> None:
    """Write the manifest into ``folder``."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> AnyManifest:
    """Read the manifest of a model folder.

    Raises ``CheckpointError`` if there is no such folder, it is of another kind, its manifest is damaged, or it was
    written by a newer release.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(_say_what_it_is(folder))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the manifest is damaged: {error}. Restore it from a copy.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not the manifest of a model: expected 'format': '{FORMAT}'.")
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version} is newer than {FORMAT_VERSION}, the newest that this release reads. "
            "Update sightbridge."
        )
    kind = content.get("kind", "generation")
    if kind not in tuple(KINDS):  # a damaged one may be a list
        raise CheckpointError(f"{path}: the manifest is damaged at 'kind': {kind!r} is none of {', '.join(KINDS)}.")
    try:
        return _with_inner_sources(KINDS[kind].model_validate(content), folder)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f" at '{key}'" if key else ""
        message = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"{path}: the manifest is damaged{where}: {message}.") from error


def _with_inner_sources(manifest: AnyManifest, folder: Path) -> AnyManifest:
    """Sources that begin with ``./`` lie in the model folder, wherever that is now."""
    settings, parts = {}, {}
    for name, entry in manifest.parts.items():
        if entry.source and entry.source.startswith("./"):
            source = str(inner_path(folder, entry.source))
            parts[name] = entry.model_copy(update={"source": source})
            settings[name] = getattr(manifest.settings, name).model_copy(update={"source": source})
    if not parts:
        return manifest
    changes = {"settings": manifest.settings.model_copy(update=settings), "parts": manifest.parts | parts}
    return manifest.model_copy(update=changes)


def inner_path(folder: Path, name: str) -> Path:
    """Return the file that a manifest calls ``name``; raises ``CheckpointError`` if that is not inside ``folder``."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        raise CheckpointError(f"{folder / MANIFEST}: '{name}' is not the name of a file inside the folder.")
    return folder / name


def _say_what_it_is(folder: Path) -> str:
    """Explain a folder without a manifest."""
    if not folder.exists():
        return f"{folder}: no such model folder."
    if not folder.is_dir():
        return f"{folder}: is a file, expected a model folder with {MANIFEST} in it."
    inner = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if inner:
        return f"{folder}: no {MANIFEST} in it. Did you mean {inner[-1]}?"
    if (folder / "adapter_config.json").is_file():
        kind = "it looks like a PEFT adapter"
    elif (folder / "config.json").is_file():
        kind = "it looks like a Hugging Face model, which a recipe can name as the 'source' of a part"
    else:
        kind = "it is not a model folder"
    return f"{folder}: no {MANIFEST} in it; {kind}."
