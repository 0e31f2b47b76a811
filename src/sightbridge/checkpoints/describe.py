"""What a model folder holds, from its manifest alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sightbridge.checkpoints.atomic import existing_folder
from sightbridge.checkpoints.manifest import AnyManifest, inner_path, read_manifest
from sightbridge.config.model import ModelSettings, PartSource


@dataclass(frozen=True)
class PartDescription:
    """One part: ``what`` kind of model it is, whether its weights are stored in the folder, and ``bytes`` of the file.

    ``bytes`` is ``None`` if the part is only referenced, or its file is missing.
    """

    name: str
    what: str
    stored: bool
    source: str | None
    trained: bool
    parameters: int
    dtype: str
    bytes: int | None


@dataclass(frozen=True)
class ModelDescription:
    """What a model folder holds."""

    folder: Path
    parts: tuple[PartDescription, ...]
    manifest: AnyManifest

    @property
    def template(self) -> str | None:
        """Name of the prompt template; a model of the first stage has none."""
        settings = self.manifest.settings
        return settings.prompt.template if isinstance(settings, ModelSettings) else None


def describe(folder: str | Path) -> ModelDescription:
    """Say what is in a model folder without reading a weight; raises ``CheckpointError`` if it is no model folder."""
    folder = existing_folder(Path(folder).expanduser().resolve())
    manifest = read_manifest(folder)
    parts = []
    for name, entry in manifest.parts.items():
        settings = getattr(manifest.settings, name)
        what = "as its source says"
        if not isinstance(settings, PartSource):
            what = "qformer" if name == "qformer" else settings.kind
        elif settings.config:
            what = settings.config["model_type"]
        path = inner_path(folder, entry.file) if entry.file else _inside(folder, entry.source)
        stored, size = path is not None, _size(path)
        parts.append(
            PartDescription(name, what, stored, entry.source, entry.trained, entry.parameters, entry.dtype, size)
        )
    return ModelDescription(folder, tuple(parts), manifest)


def _inside(folder: Path, source: str | None) -> Path | None:
    """The Hugging Face folder of a converted or merged part, which lies in the model folder."""
    return Path(source) if source and Path(source).parent == folder else None


def _size(path: Path | None) -> int | None:
    """Bytes of a file, or of the files of weights in a folder."""
    if path is None or not path.exists():
        return None
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.bin")]
    return sum(file.stat().st_size for file in files)
