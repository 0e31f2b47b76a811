"""What every target of an export is given, and what it says of what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sightbridge.checkpoints.folder import AnyProcessor
from sightbridge.checkpoints.manifest import AnyManifest
from sightbridge.checkpoints.sources.model_folder import FolderWeights
from sightbridge.errors import CheckpointError


@dataclass(frozen=True)
class Job:
    """A model folder on its way out.

    Attributes:
        folder: of the model.
        out: where the export will be once it is whole.
        manifest: of that folder.
        weights: those parts that the target asked for, adapters inside or beside the language model.
        processor: tokenizer, template and image transform.
        dtype: type that was asked for all weights; ``None`` leaves each as its file has it.
        sources: part -> folder or hub name, for referenced parts that lie elsewhere now.
        verify: whether to load what was written and compare it with the model.
        on_tensor: called with the name of each tensor that is written.
    """

    folder: Path
    out: Path
    manifest: AnyManifest
    weights: FolderWeights
    processor: AnyProcessor
    dtype: str | None
    sources: Mapping[str, str]
    verify: bool = False
    on_tensor: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Written:
    """What a target wrote.

    Attributes:
        what: for people: "Blip2ForConditionalGeneration of transformers".
        load: lines of Python that load it, for the model card; they may use ``FOLDER``.
        notes: where it is not exactly the model, and what a reader must know, a sentence each.
        tags: of the hub.
    """

    what: str
    load: str
    notes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A layout to write.

    Attributes:
        what: for people.
        parts: which parts of the model folder it needs.
        write: writes into a folder that is there and empty.
        formats: names in ``formats.FORMATS`` of what it writes, which reads it back.
    """

    what: str
    parts: Callable[[AnyManifest], tuple[str, ...]]
    write: Callable[[Job, Path], Written]
    formats: tuple[str, ...] = ()


def cannot(job: Job, target: str, reason: str, instead: str) -> CheckpointError:
    """The error for a model that a layout has no place for: the reason, and where it can go."""
    return CheckpointError(f"{job.folder}: cannot be written as {target}: {reason}. {instead}".rstrip())
