"""Starting a model with the weights of another one's folder, and nothing else of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from torch import nn

from sightbridge.checkpoints.adapter import ADAPTER_CONFIG, load_adapter
from sightbridge.checkpoints.atomic import existing_folder
from sightbridge.checkpoints.formats import FORMATS, Found, detect
from sightbridge.checkpoints.formats.mm_projector import MM_PROJECTOR
from sightbridge.checkpoints.init_parts import InitReport, fill_from_found, fill_wrapped
from sightbridge.checkpoints.manifest import (
    ADAPTER,
    MANIFEST,
    Manifest,
    PartEntry,
    QFormerManifest,
    inner_path,
    read_manifest,
)
from sightbridge.checkpoints.mm_projector import load_mm_projector
from sightbridge.checkpoints.pretrained_connector import load_part_from_pretraining
from sightbridge.checkpoints.projection import PROJECTION, check_trains, load_without_projection, why_fresh
from sightbridge.checkpoints.rest import load_rest, remember_origin
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.checkpoints.text_branch import has_text_branch, load_without_text_branch
from sightbridge.checkpoints.weights import file_hash, fingerprint, load_part
from sightbridge.errors import CheckpointError
from sightbridge.models.build_qformer import check_qformer
from sightbridge.models.connectors.qformer import QFormerConnector
from sightbridge.models.lora import adapted_layers

WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pdparams")
"""Ends of the names of files that weights are in."""


def check_init_from(folder: str | Path) -> None:
    """Raise ``CheckpointError`` for a start that is not there or of no known kind, without reading a weight."""
    path = existing_folder(Path(folder).expanduser().resolve())
    if _foreign(path) is None and not (path / ADAPTER_CONFIG).is_file():
        read_manifest(path)


def init_from(
    model: nn.Module,
    folder: str | Path,
    parts: Collection[str] | None = None,
    fresh_projection: bool = False,
    *,
    after_another: bool = False,
) -> InitReport:
    """Fill every part of ``model`` whose weights are stored in a model folder under the same name.

    A Q-Former of BLIP-2's first stage fills a connector of the same build, see ``load_part_from_pretraining``. The
    connector of a second stage, which has no text branch, fills one that reads questions only ``after_another`` folder
    did, from which it keeps that branch: it would be left with random weights otherwise.

    The projection of a Q-Former stays random if it was made for a language model of another width, or if
    ``fresh_projection`` asks for it (mBLIP's ``random_init_projection``); so a bridge learns to lead elsewhere.

    Adapters are taken if the model has some of the same kind on the same language model. ``folder`` may also be the
    PEFT folder of such adapters alone, or a file or folder in any foreign format (``formats.FORMATS``), whose parts are
    taken by the same rules. ``parts`` are those to take (``adapters`` too), by default all.

    A tower or language model that was converted lies in a folder of its own inside: it fills one of the same build.

    Raises ``CheckpointError`` if the folder is no model or damaged, a part there has other weights or shapes than here,
    or not a single part is to be had; ``SettingsError`` for a random projection that would not learn.
    """
    folder = existing_folder(Path(folder).expanduser().resolve())
    if (found := _foreign(folder)) is not None:
        if found.format == MM_PROJECTOR.name:
            return _from_projector_file(model, folder, parts)
        return fill_from_found(model, found, parts, fresh_projection, after_another)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / MANIFEST).exists():
        return _from_peft_folder(model, folder)
    return _from_model_folder(model, folder, parts, fresh_projection, after_another)


def _foreign(path: Path) -> Found | None:
    """What a file holds, or a folder in a foreign format; ``None`` for a model folder and for anything else."""
    if path.is_file():
        weights = open_weights(path)
        return detect(weights).read(weights)
    if (path / MANIFEST).exists() or not any(child.suffix in WEIGHT_FILES for child in path.glob("*")):
        return None
    weights = open_weights(path)
    return detect(weights).read(weights) if any(form.matches(weights) for form in FORMATS.values()) else None


def _from_model_folder(
    model: nn.Module, folder: Path, parts: Collection[str] | None, fresh_projection: bool, after_another: bool
) -> InitReport:
    """Fill every part whose weights are stored in the folder, and adapters that fit."""
    report = InitReport()
    manifest = read_manifest(folder)
    for name, entry in manifest.parts.items():
        part = getattr(model, name, None)
        connector = getattr(model, "connector", None)
        if parts is not None and name not in parts:
            report.left.append(f"{name}: not asked for (training.init_parts)")
        elif isinstance(manifest, QFormerManifest) and name == "qformer" and isinstance(connector, QFormerConnector):
            _load_first_stage(connector, entry, folder, manifest, report)
        elif not isinstance(part, nn.Module):
            report.left.append(f"{name}: there is no such part here")
        elif entry.file is None:
            _take_referenced(part, name, entry, folder, report, must=parts is not None)
        elif not entry.rest and _needs_text_branch(part, path := inner_path(folder, entry.file)):
            if not after_another:
                raise CheckpointError(
                    f"training.init_from: the connector in {folder} does not read questions, the one here does "
                    "(model.connector.text_input), and its text branch has to come from somewhere: give the folder of "
                    "a first stage in front of this one, init_from=[FIRST_STAGE,SECOND_STAGE]."
                )
            report.taken += load_without_text_branch(part, _checked(entry, path))
            remember_origin(part, None)  # this folder and the one before it
        elif isinstance(part, QFormerConnector):
            _load_qformer(part, entry, folder, fresh_projection, report)
        else:
            _load(part, name, entry, folder)
            report.taken.append(f"{name}: {entry.parameters:,} weights")
    if isinstance(manifest, Manifest) and manifest.adapter and (parts is None or "adapters" in parts):
        _take_adapter(model, folder, manifest, report)
    if not report.taken:
        raise CheckpointError(f"{folder}: holds nothing to start this model with ({'; '.join(report.left)}).")
    return report


def _take_referenced(
    part: nn.Module, name: str, entry: PartEntry, folder: Path, report: InitReport, must: bool
) -> None:
    """Fill a part from the Hugging Face folder inside the model folder that it was converted into, if there is one."""
    same = fingerprint(part) == entry.fingerprint
    if not same and entry.source and Path(entry.source).parent == folder:
        fill_wrapped(part, name, open_weights(entry.source), report, must)
        return
    what = "the same one is here" if same else f"another one is here than that model had ({entry.source})"
    report.left.append(f"{name}: not stored there; {what}")


def _load_first_stage(
    connector: QFormerConnector, entry: PartEntry, folder: Path, manifest: QFormerManifest, report: InitReport
) -> None:
    """Fill a connector from the Q-Former of a first stage."""
    assert entry.file is not None, "a Q-Former is always stored"
    path = _checked(entry, inner_path(folder, entry.file))
    taken, left = load_part_from_pretraining(connector, path, check_qformer(manifest.settings.qformer).num_heads)
    remember_origin(connector, folder)
    report.taken += taken
    report.left += left


def _load_qformer(
    connector: QFormerConnector, entry: PartEntry, folder: Path, fresh_projection: bool, report: InitReport
) -> None:
    """Fill a connector from one of the same build, with its projection if that fits."""
    assert entry.file is not None, "a part that is not stored was left"
    path = _checked(entry, inner_path(folder, entry.file))
    reason = why_fresh(connector, path, fresh_projection)
    if reason is None:
        _load(connector, "connector", entry, folder)
        report.taken.append(f"connector: {entry.parameters:,} weights, its projection too")
        return
    check_trains(connector, reason)
    with telling_what_differs("connector"):
        if entry.rest:  # what is stored here is the projection
            folder = load_rest(connector, entry, folder)
            count = sum(w.numel() for n, w in connector.named_parameters() if not n.startswith(PROJECTION))
        else:
            count = load_without_projection(connector, path)
    remember_origin(connector, folder)  # of all but the projection, which trains
    connector.filled_by_init_from = True  # type: ignore[assignment]
    report.taken.append(f"connector: {count:,} weights")
    report.left.append(f"connector: its projection, which begins with random weights: {reason}")


def _from_projector_file(model: nn.Module, path: Path, parts: Collection[str] | None) -> InitReport:
    """Fill the connector of a model from a file of LLaVA's that holds nothing else."""
    connector = getattr(model, "connector", None)
    if connector is None or (parts is not None and "connector" not in parts):
        what = "there is none here to fill" if connector is None else "training.init_parts does not ask for it"
        raise CheckpointError(f"{path}: holds a connector, and {what}.")
    report = InitReport(*load_mm_projector(connector, path))
    remember_origin(connector, None)  # such a file is no model folder to look the weights up in
    connector.filled_by_init_from = True
    return report


def _from_peft_folder(model: nn.Module, folder: Path) -> InitReport:
    """Fill the adapters of a model from a folder that holds nothing else."""
    language_model = getattr(model, "language_model", None)
    if language_model is None or not adapted_layers(language_model):
        raise CheckpointError(
            f"{folder}: holds the adapters of a language model, and there are none here to fill; give model.lora the "
            "settings they were trained with, or make them part of a language model with 'sightbridge merge'."
        )
    return InitReport(taken=[f"adapters: {load_adapter(language_model, folder):,} weights"])


def _take_adapter(model: nn.Module, folder: Path, manifest: Manifest, report: InitReport) -> None:
    """Fill the adapters of a model if they stand beside the same weights as those in ``folder``."""
    assert manifest.adapter is not None
    language_model = getattr(model, "language_model", None)
    if language_model is None or not adapted_layers(language_model):
        report.left.append(
            "adapters: the model here has none (model.lora); 'sightbridge merge' makes them part of a language model"
        )
    elif fingerprint(language_model) != manifest.parts["language_model"].fingerprint:
        report.left.append("adapters: they belong to another language model than the one here, so these stay fresh")
    else:
        for name, sha256 in manifest.adapter.files.items():
            if not (path := inner_path(folder / ADAPTER, name)).is_file() or file_hash(path) != sha256:
                raise CheckpointError(f"{path}: missing or damaged: its SHA-256 is not the one in {MANIFEST}.")
        report.taken.append(f"adapters: {load_adapter(language_model, folder / ADAPTER):,} weights")


def _needs_text_branch(part: nn.Module, path: Path) -> TypeGuard[QFormerConnector]:
    """Whether a connector reads questions and the one in ``path`` does not."""
    return isinstance(part, QFormerConnector) and part.takes_text and path.is_file() and not has_text_branch(path)


def _checked(entry: PartEntry, path: Path) -> Path:
    """Return ``path`` if the file there is the one that was written."""
    if not path.is_file() or file_hash(path) != entry.sha256:
        raise CheckpointError(f"{path}: missing or damaged: its SHA-256 is not the one in {MANIFEST}.")
    return path


def _load(part: nn.Module, name: str, entry: PartEntry, folder: Path) -> None:
    assert entry.file is not None, "a part that is not stored was left"
    with telling_what_differs(name):
        origin = load_rest(part, entry, folder) if entry.rest else folder
        load_part(part, _checked(entry, inner_path(folder, entry.file)), entry.only)
        remember_origin(part, origin)
    part.filled_by_init_from = True  # type: ignore[assignment] - its source does not hold these weights


@contextmanager
def telling_what_differs(name: str) -> Iterator[None]:
    """Say in an error about weights which part it is about, and what to do."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"training.init_from: the {name.replace('_', ' ')} there is not built as the one here. {error} Give "
            f"model.{name} the settings of that model, or start without its weights."
        ) from error
