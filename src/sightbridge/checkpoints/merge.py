"""A language model and its adapters made one: of a model folder, or of a bare PEFT folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from sightbridge.checkpoints.atomic import atomic_folder, existing_folder
from sightbridge.checkpoints.folder import check_files, load_model
from sightbridge.checkpoints.manifest import (
    ADAPTER,
    LANGUAGE_MODEL,
    MANIFEST,
    Manifest,
    PartEntry,
    inner_path,
    read_manifest,
    write_manifest,
)
from sightbridge.checkpoints.merge_shards import Adapter, merge_file, merge_shards
from sightbridge.checkpoints.rest import places_of
from sightbridge.checkpoints.weights import file_hash, fingerprint, load_part
from sightbridge.errors import CheckpointError
from sightbridge.models.build import build_language_model, quiet_transformers, resolve_source, telling_what_is_missing
from sightbridge.models.language_model import LanguageModel

SAMPLE = 16
"""Tokens of the row that the merged model is tried on."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.15}
"""Norm of the difference of logits as a share of their own norm, by the type that merged weights are rounded to."""


@dataclass(frozen=True)
class Merged:
    """What was written where: adapted ``layers``, and the largest ``difference`` of logits to those with adapters."""

    folder: Path
    layers: int
    difference: float


def merge_model(folder: str | Path, out: str | Path) -> Merged:
    """Write a model folder whose language model has its adapters inside, with all else as it was.

    A referenced language model is written beside the manifest, as the Hugging Face folder ``language_model``, which a
    recipe can name as a ``source``: one file of its weights is in memory at a time. Afterwards the merged model and
    the one with adapters answer the same row, and must give the same logits.

    Args:
        folder: a model with adapters.
        out: a new or empty folder.

    Raises:
        CheckpointError: there are no adapters, something is missing or damaged, or the merged model answers otherwise.
    """
    folder = existing_folder(Path(folder).expanduser().resolve())
    manifest = read_manifest(folder)
    if not isinstance(manifest, Manifest) or manifest.adapter is None:
        raise CheckpointError(f"{folder}: its language model has no adapters, so there is nothing to merge.")
    target = _new_folder(out)
    check_files(folder, manifest)
    adapter = Adapter(folder / ADAPTER)
    model, _ = load_model(folder, quantize="none")
    expected = _logits(model.language_model)
    del model
    with atomic_folder(target) as writing:
        for path in folder.iterdir():
            if path.name not in (ADAPTER, MANIFEST, "language_model.safetensors"):
                copy: Any = shutil.copytree if path.is_dir() else shutil.copyfile
                copy(path, writing / path.name)
        old = manifest.parts["language_model"]
        entry, settings, language_model = _merge_part(folder, manifest, adapter, writing)
        difference = _compare(expected, language_model, adapter, folder)
        parts = {
            name: part.model_copy(update={"rest": places_of(Path(part.rest[-1]), target)}) if part.rest else part
            for name, part in manifest.parts.items()
        }
        parts["language_model"] = old.model_copy(update=entry | {"fingerprint": fingerprint(language_model)})
        changes = {"language_model": settings, "lora": None}
        settings = manifest.settings.model_copy(update=changes)
        notes = manifest.provenance | {"merged": f"{manifest.adapter.layers} adapted layers"}
        update = {"settings": settings, "parts": parts, "adapter": None, "provenance": notes}
        write_manifest(manifest.model_copy(update=update), writing)
    return Merged(target, manifest.adapter.layers, difference)


def _merge_part(
    folder: Path, manifest: Manifest, adapter: Adapter, writing: Path
) -> tuple[dict[str, Any], Any, LanguageModel]:
    """Write the merged language model; returns what changes in its entry, its settings, and the model, loaded."""
    entry: PartEntry = manifest.parts["language_model"]
    settings = manifest.settings.language_model.model_copy(update={"quantize": None})
    if entry.file:
        path = inner_path(folder, entry.file)
        places = {f"model.{module}.weight": module for module in adapter.pairs}
        merge_file(path, lambda key, w: adapter.merged(places[key], w) if key in places else w, writing / path.name)
        language_model = build_language_model(settings)
        load_part(language_model, writing / path.name)
        return {"sha256": file_hash(writing / path.name), "trained": True}, settings, language_model
    assert settings.source is not None, "a part is stored or has a source"
    merge_shards(find_folder(settings.source), adapter, writing / LANGUAGE_MODEL)
    language_model = build_language_model(settings.model_copy(update={"source": str(writing / LANGUAGE_MODEL)}))
    inside = f"./{LANGUAGE_MODEL}"
    return {"source": inside, "trained": True}, settings.model_copy(update={"source": inside}), language_model


def merge_peft(base: str | Path, adapter_folder: str | Path, out: str | Path) -> Merged:
    """Write a Hugging Face language model with the adapters of a PEFT folder inside; the rest as ``merge_model``.

    Args:
        base: folder or hub name of the language model.
        adapter_folder: written by ``peft``, or the ``adapter`` of a model folder.
        out: a new or empty folder.
    """
    from peft import PeftModel

    adapter = Adapter(Path(adapter_folder))
    source, target = find_folder(str(base)), _new_folder(out)
    model = _load_language_model(source)
    with_adapters = LanguageModel(model)
    own_head = with_adapters.has_own_head
    PeftModel.from_pretrained(model, str(adapter_folder)).eval()  # puts them into the model in place
    expected = _logits(with_adapters)
    del model, with_adapters
    with atomic_folder(target) as writing:
        merge_shards(source, adapter, writing)
        merged = LanguageModel(_load_language_model(writing))
        assert merged.has_own_head == own_head, "a file of weights is written with all that was in it"
        difference = _compare(expected, merged, adapter, source)
    return Merged(target, len(adapter.pairs), difference)


def find_folder(source: str) -> Path:
    """Where a language model lies, in the file system or in the cache of the hub; raises ``CheckpointError``."""
    found = Path(resolve_source(source)).expanduser()
    if found.is_dir():
        return found
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"'{source}' is no folder here and is not in the cache of the hub; fetch it first."
        ) from error


def _new_folder(out: str | Path) -> Path:
    target = Path(out).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: is there already; choose a new or empty folder for the merged model.")
    return target


def _load_language_model(folder: Path) -> Any:
    with telling_what_is_missing(str(folder), "language_model"), quiet_transformers():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        return auto_class.from_pretrained(folder, dtype="auto", trust_remote_code=False).eval()


@torch.no_grad()
def _logits(language_model: LanguageModel) -> Tensor:
    """Logits (1, SAMPLE, V) of a fixed row."""
    vocabulary = language_model.model.get_input_embeddings().num_embeddings
    ids = (torch.arange(SAMPLE).view(1, -1) * 7 + 3) % vocabulary
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if language_model.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
    return language_model.model(**inputs).logits.float()


def _compare(expected: Tensor, language_model: LanguageModel, adapter: Adapter, where: Path) -> float:
    """The largest difference; raises ``CheckpointError`` if it is more than rounding, or a head was tied."""
    language_model.assert_heads_untied()
    found = _logits(language_model)
    share = ((expected - found).norm() / expected.norm()).item()
    held = {p.dtype for p in language_model.parameters()}  # in more or less than the files are
    allowed = max(TOLERANCE[dtype] for dtype in adapter.rounded_to | held)
    if not share <= allowed:
        raise CheckpointError(
            f"{where}: the merged language model answers otherwise than the one with adapters (logits differ by "
            f"{share:.1%}, rounding would be at most {allowed:.1%}); nothing was written."
        )
    return (expected - found).abs().max().item()
