"""Our model folder: saving, loading, describing.

    MODEL/sightbridge.json            manifest: settings, parts, hashes (see ``manifest``)
    MODEL/connector.safetensors       one file per stored part
    MODEL/vision_tower/               Hugging Face folders of parts that were converted or merged, and did not train
    MODEL/language_model/
    MODEL/adapter/                    a PEFT folder, if the language model has adapters
    MODEL/tokenizer/                  the tokenizer, as transformers saves it
    MODEL/connector_tokenizer/        that of a connector which reads the question too

The model of BLIP-2's first stage is kept in the same way, with a Q-Former in place of connector and language model.

A part that was trained, or has no source, is stored. A frozen part with a source is only referenced, unless the folder
is to be self-contained: the bridge of a 7B model is then a few megabytes. A language model with adapters counts as
frozen: what it learnt is in the adapters. If only some submodules of a part trained (``training.parts.connector.only``)
these are stored, and the folder that the run started from keeps the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

import sightbridge
from sightbridge.checkpoints.adapter import load_adapter, save_adapter
from sightbridge.checkpoints.atomic import atomic_folder, existing_folder
from sightbridge.checkpoints.connector_text import open_connector_text
from sightbridge.checkpoints.manifest import (
    ADAPTER,
    CONNECTOR_TOKENIZER,
    LANGUAGE_MODEL,
    MANIFEST,
    PARTS,
    TOKENIZER,
    VISION_TOWER,
    AdapterEntry,
    AnyManifest,
    Manifest,
    PartEntry,
    QFormerManifest,
    inner_path,
    read_manifest,
    write_manifest,
)
from sightbridge.checkpoints.quantized import quantize_language_model
from sightbridge.checkpoints.rest import check_whole, find_rest, load_rest, places_of
from sightbridge.checkpoints.weights import file_hash, fingerprint, load_part, parameter_count, part_dtype, save_part
from sightbridge.config.model import ModelSettings, PartSource
from sightbridge.config.qformer_recipe import QFormerModelSettings
from sightbridge.data.processor import Processor
from sightbridge.data.qformer_processor import QFormerProcessor, load_caption_tokenizer
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import CheckpointError
from sightbridge.models.kinds import AnyModel, AnyModelSettings, build_any, part_names
from sightbridge.models.qformer_pretraining import QFormerPretraining
from sightbridge.models.vlm import VisionLanguageModel

AnyProcessor = Processor | QFormerProcessor
Quantize = Literal["8bit", "nf4", "none"]
FIRST_STAGE = (
    "holds a Q-Former of BLIP-2's first stage, which has no language model to answer with. Start a second stage from "
    "it: training.init_from=FOLDER."
)

NOT_SETTINGS = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
"""What a Hugging Face configuration says about its file, not about its model."""


def save_model(
    model: AnyModel,
    processor: AnyProcessor,
    settings: AnyModelSettings,
    folder: str | Path,
    *,
    trained_parts: Collection[str],
    self_contained: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model folder, or replace one, atomically; returns its path.

    Args:
        model: with trained weights; of the first stage or of what follows.
        processor: its tokenizer is written.
        settings: that the model was built with.
        folder: a new or empty folder, or a model folder.
        trained_parts: parts whose weights changed. They are stored; weights of other parts with a source are not
            written, so a changed part that is not named here would be lost (but for what ``init_from`` filled). Of a
            language model with adapters these are what changed, and its own weights are not.
        self_contained: store every part, so that the folder loads without any source.
        provenance: notes to keep in the manifest, such as recipe and steps; must be JSON.

    Raises ``CheckpointError`` if ``folder`` holds anything but a model.
    """
    names = part_names(settings)
    assert set(trained_parts) <= set(names), f"parts are {names}"
    target = Path(folder).expanduser().resolve()
    _check_replaceable(target)
    _check_heads(model)
    with atomic_folder(target) as writing:
        entries = {}
        adapted = "language_model" if isinstance(settings, ModelSettings) and settings.lora else None
        for name in names:
            source = getattr(getattr(settings, name), "source", None)
            trained = name in trained_parts and name != adapted
            changed = trained or getattr(model.get_submodule(name), "filled_by_init_from", False)
            stored = self_contained or changed or source is None or name == "qformer"
            rest = None if self_contained else find_rest(model.get_submodule(name))
            places = places_of(rest, target) if stored and rest else []
            entries[name] = _save_part(model, name, source, trained, writing if stored else None, places)
        adapter = None
        if adapted:
            source, trained = entries[adapted].source, adapted in trained_parts
            adapter = save_adapter(model.get_submodule(adapted), source, writing / ADAPTER, trained)
        processor.tokenizer.save_pretrained(writing / TOKENIZER)
        if isinstance(processor, Processor) and processor.connector_text:
            processor.connector_text.tokenizer.save_pretrained(writing / CONNECTOR_TOKENIZER)
        manifest = _manifest(model, settings, entries, adapter, writing, dict(provenance or {}))
        write_manifest(manifest, writing)
    return target


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    sources: Mapping[str, str] | None = None,
    quantize: Quantize | None = None,
) -> tuple[VisionLanguageModel, Processor]:
    """Load the model in a folder, in evaluation mode, and its processor; errors as ``load_any_model``.

    Raises ``CheckpointError`` also for a model of the first stage, which cannot answer.
    """
    model, processor = load_any_model(folder, device, sources, quantize)
    if not isinstance(model, VisionLanguageModel) or not isinstance(processor, Processor):
        raise CheckpointError(f"{folder}: {FIRST_STAGE}")
    return model, processor


def load_any_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    sources: Mapping[str, str] | None = None,
    quantize: Quantize | None = None,
) -> tuple[AnyModel, AnyProcessor]:
    """Load the model in a folder, whatever its kind, in evaluation mode, and its processor.

    Args:
        folder: written by ``save_model``.
        device: to move the model to.
        sources: part -> folder or hub name, for referenced parts that lie elsewhere now.
        quantize: hold the language model's linear layers in ``"8bit"`` or ``"nf4"``, or ``"none"`` = in full; by
            default as the model was trained.

    Raises ``CheckpointError`` if the folder is of another kind or damaged, a referenced part is not found or is another
    one than the model was trained with, or weights do not fit; ``SettingsError`` if it cannot be quantised here.
    """
    folder = existing_folder(Path(folder).expanduser().resolve())
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    try:
        model = build_any(settings_with(manifest, sources or {}))
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} references a part that cannot be loaded. {error} "
            "If it lies elsewhere now, say where with sources={PART: FOLDER}; a folder that was saved with "
            "self_contained=True needs no sources."
        ) from error
    fill_parts(model, manifest, folder, sources or {}, manifest.parts)
    if isinstance(manifest, Manifest) and manifest.adapter:
        load_adapter(model.get_submodule("language_model"), folder / ADAPTER)
    _check_heads(model)
    if isinstance(model, VisionLanguageModel) and isinstance(manifest, Manifest):
        kind = quantize or manifest.settings.language_model.quantize
        if kind and kind != "none":
            quantize_language_model(model.language_model, kind, device)
    return model.eval().to(device), _load_processor(folder, manifest)


def fill_parts(
    model: AnyModel, manifest: AnyManifest, folder: Path, sources: Mapping[str, str], names: Iterable[str]
) -> None:
    """Fill parts whose weights are stored, and see that referenced ones are those that the model was trained with.

    Raises ``CheckpointError``; the arguments are those of ``load_any_model``.
    """
    for name in names:
        entry = manifest.parts[name]
        part = model.get_submodule(name)
        if entry.file and entry.rest:
            rest = load_rest(part, entry, folder, sources.get(name))
            load_part(part, inner_path(folder, entry.file), entry.only)
            check_whole(part, entry, folder, rest)
        elif entry.file:
            load_part(part, inner_path(folder, entry.file))
        elif fingerprint(part) != entry.fingerprint:
            raise CheckpointError(
                f"{folder}: the {name.replace('_', ' ')} at '{getattr(manifest.settings, name).source}' is not the one "
                "that this model was trained with: its weights differ. Give the right one with sources={PART: FOLDER}."
            )


def load_processor(folder: str | Path) -> Processor:
    """Make the processor of a model folder alone, without reading a weight; raises ``CheckpointError``."""
    processor = load_any_processor(folder)
    if not isinstance(processor, Processor):
        raise CheckpointError(f"{folder}: {FIRST_STAGE}")
    return processor


def load_any_processor(folder: str | Path) -> AnyProcessor:
    """The same for a model of whatever kind."""
    folder = existing_folder(Path(folder).expanduser().resolve())
    return _load_processor(folder, read_manifest(folder))


def _manifest(
    model: AnyModel,
    settings: AnyModelSettings,
    parts: dict[str, PartEntry],
    adapter: AdapterEntry | None,
    folder: Path,
    provenance: dict[str, Any],
) -> AnyManifest:
    """Describe a model whose parts and tokenizers are in ``folder`` already."""
    common: dict[str, Any] = {
        "settings": _portable_settings(model, settings, {name for name, entry in parts.items() if entry.file}),
        "parts": parts,
        "tokenizer_files": hash_files(folder / TOKENIZER),
        "connector_tokenizer_files": hash_files(folder / CONNECTOR_TOKENIZER),
        "versions": {"sightbridge": sightbridge.__version__} | {n: version(n) for n in ("torch", "transformers")},
        "provenance": provenance,
    }
    if isinstance(model, QFormerPretraining):
        return QFormerManifest(tokens_per_image=model.qformer.options.num_queries, **common)
    return Manifest(
        tokens_per_image=model.tokens_per_image,
        encoder_decoder=model.language_model.is_encoder_decoder,
        adapter=adapter,
        **common,
    )


def _check_replaceable(target: Path) -> None:
    """Never delete what is not ours."""
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target}: is a file; choose a folder to save the model in.")
    names = {path.name for path in target.iterdir()}
    ours = {
        MANIFEST,
        ADAPTER,
        LANGUAGE_MODEL,
        VISION_TOWER,
        TOKENIZER,
        CONNECTOR_TOKENIZER,
        *(f"{name}.safetensors" for name in PARTS),
    }
    if names and (MANIFEST not in names or names - ours):
        others = ", ".join(sorted(names - ours)[:3])
        raise CheckpointError(f"{target}: holds files that are no part of a model ({others}); choose another folder.")


def _check_heads(model: AnyModel) -> None:
    """See ``LanguageModel.assert_heads_untied``."""
    if isinstance(model, VisionLanguageModel):
        model.language_model.assert_heads_untied()


def _save_part(
    model: AnyModel, name: str, source: str | None, trained: bool, folder: Path | None, rest: list[str]
) -> PartEntry:
    """Describe a part, and write its weights if there is a ``folder`` for them: what trained if ``rest`` is kept."""
    part: Any = model.get_submodule(name)
    file = f"{name}.safetensors" if folder else None
    only = list(part.trained_submodules) if rest else []
    if folder and file:
        save_part(part, folder / file, only)
    return PartEntry(
        file=file,
        sha256=file_hash(folder / file) if folder and file else None,
        source=source,
        trained=trained,
        parameters=parameter_count(part),
        dtype=part_dtype(part),
        fingerprint=fingerprint(part),
        only=only,
        rest=rest,
    )


def _portable_settings(model: AnyModel, settings: AnyModelSettings, stored: Collection[str]) -> AnyModelSettings:
    """Settings that rebuild the model wherever the folder is: stored parts by their configuration alone.

    The vision tower was cut down to what is used, so its configuration is that of the rest, and its layers are counted
    from the front.
    """
    changes: dict[str, Any] = {}
    if isinstance(settings, QFormerModelSettings):  # what it began as is no longer needed
        changes["qformer"] = settings.qformer.model_copy(update={"source": None})
    for name in part_names(settings):
        part: Any = model.get_submodule(name)
        old = getattr(settings, name)
        if not isinstance(old, PartSource):
            continue
        if name in stored:
            config = {key: value for key, value in part.model.config.to_dict().items() if key not in NOT_SETTINGS}
            new = {"source": None, "config": config, "override": {}, "dtype": part_dtype(part)}
            if name == "language_model":
                new["quantize"] = None
            if name == "vision_tower":
                new |= {"layers": model.vision_tower.layers or "output", "image_size": None}
        else:  # a relative path would only hold in today's working directory
            source = old.source or ""
            new = {"source": str(Path(source).resolve()) if Path(source).is_dir() else source}
        changes[name] = type(old).model_validate(old.model_dump() | new)
    return settings.model_copy(update=changes)


def settings_with(manifest: AnyManifest, sources: Mapping[str, str]) -> AnyModelSettings:
    """The manifest's settings, with other sources for referenced parts."""
    changes = {}
    for name, source in sources.items():
        if name in manifest.parts and manifest.parts[name].rest:
            continue  # it is looked up when the weights are loaded
        if name not in manifest.parts or manifest.parts[name].file:
            referenced = [part for part, entry in manifest.parts.items() if not entry.file or entry.rest]
            raise CheckpointError(
                f"sources: '{name}' is not a referenced part; those are: {', '.join(referenced) or '-'}."
            )
        changes[name] = getattr(manifest.settings, name).model_copy(update={"source": source})
    return manifest.settings.model_copy(update=changes)


def check_files(folder: Path, manifest: AnyManifest) -> None:
    """Compare every stored file with its hash."""
    hashes = {f"{TOKENIZER}/{name}": sha256 for name, sha256 in manifest.tokenizer_files.items()}
    hashes |= {f"{CONNECTOR_TOKENIZER}/{name}": sha256 for name, sha256 in manifest.connector_tokenizer_files.items()}
    if isinstance(manifest, Manifest) and manifest.adapter:
        hashes |= {f"{ADAPTER}/{name}": sha256 for name, sha256 in manifest.adapter.files.items()}
    hashes |= {entry.file: entry.sha256 or "" for entry in manifest.parts.values() if entry.file}
    for name, sha256 in hashes.items():
        path = inner_path(folder, name)
        if not path.is_file():
            raise CheckpointError(f"{path}: the file is missing. Copy the whole folder, or save the model again.")
        if file_hash(path) != sha256:
            raise CheckpointError(
                f"{path}: the file is damaged or was exchanged: its SHA-256 is not the one in {MANIFEST}. "
                "Restore it from a copy, or save the model again."
            )


def _load_processor(folder: Path, manifest: AnyManifest) -> AnyProcessor:
    if isinstance(manifest, QFormerManifest):
        tokenizer = load_caption_tokenizer(str(folder / TOKENIZER))
        return QFormerProcessor(tokenizer, manifest.settings.text, manifest.settings.image)
    settings = manifest.settings
    return Processor(
        load_tokenizer(folder / TOKENIZER, settings.language_model.tokenizer_legacy),
        settings.prompt,
        settings.image,
        tokens_per_image=manifest.tokens_per_image,
        encoder_decoder=manifest.encoder_decoder,
        connector_text=open_connector_text(settings.connector, folder / CONNECTOR_TOKENIZER),
    )


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in ``folder``."""
    return {
        path.relative_to(folder).as_posix(): file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
