"""Converting: files in any format become a model folder, one tensor in memory at a time.

    OUT/sightbridge.json         manifest, as every model folder has one
    OUT/connector.safetensors    the bridge, in float32; qformer.safetensors of BLIP-2's first stage
    OUT/vision_tower/            the tower as a Hugging Face folder, if a file holds it
    OUT/language_model/          the language model likewise
    OUT/adapter/                 adapters of the language model, for ``peft``
    OUT/tokenizer/

Names and shapes are compared with the model that the settings describe before a weight is read, nothing is random, and
a part that no file holds is referenced by name. An interrupted conversion leaves no OUT behind and goes on when it is
started again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sightbridge
from sightbridge.checkpoints.adapter import write_adapter
from sightbridge.checkpoints.atomic import Resumable, identity_of, resumable_folder
from sightbridge.checkpoints.convert_text import open_tokenizers
from sightbridge.checkpoints.fit import COUNTED, EmptyModel, EmptyPart, build_empty, check_names
from sightbridge.checkpoints.folder import NOT_SETTINGS, hash_files
from sightbridge.checkpoints.manifest import (
    ADAPTER,
    CONNECTOR_TOKENIZER,
    TOKENIZER,
    AdapterEntry,
    Manifest,
    PartEntry,
    QFormerManifest,
    write_manifest,
)
from sightbridge.checkpoints.plan import Flags, Plan, make_plan
from sightbridge.checkpoints.sources.base import StoredWeights, Weights
from sightbridge.checkpoints.sources.model_folder import Cast, From, match_names
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.checkpoints.sources.writer import write_safetensors, write_sharded
from sightbridge.checkpoints.supply import WORDS, weights_folder
from sightbridge.checkpoints.weights import file_hash, hash_samples, parameter_count, part_dtype, sample
from sightbridge.config.model import ModelSettings, PartSource
from sightbridge.errors import CheckpointError
from sightbridge.models.language_model import T5_FAMILY, wants_own_head

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and the name of a weight."""


@dataclass(frozen=True)
class Converted:
    """What was written: the folder, its manifest, what it was made of, and what there is to tell about it."""

    folder: Path
    manifest: Manifest | QFormerManifest
    what: tuple[str, ...]
    notes: tuple[str, ...]
    resumed: int


def convert(
    source: str | Path | None,
    out: str | Path,
    *,
    vision: str | Sequence[str] | None = None,
    bridge: str | Sequence[str] | None = None,
    language_model: str | Sequence[str] | None = None,
    tokenizer: str | None = None,
    settings: Sequence[str] = (),
    self_contained: bool = False,
    later_wins: bool = False,
    allow_nan: bool = False,
    max_shard_bytes: int = 5 << 30,
    progress: Progress | None = None,
) -> Converted:
    """Write a model folder from a file or folder in any format that is known.

    Args:
        source: LAVIS, PaddleMIX, Hugging Face, LLaVA, ... (``formats.FORMATS``); ``None`` = from the parts below.
        out: a new or empty folder.
        vision: what gives the vision tower if ``source`` lacks it: a Hugging Face name or folder, which is referenced,
            or any file that holds one, which is copied; several may complete each other.
        bridge: the same for the connector, or the first stage's Q-Former; a model folder of ours too.
        language_model: the same for the language model.
        tokenizer: folder or hub name, if it is neither beside the file nor the language model.
        settings: of the model, as ``key=value``, where the files do not say; what the user says wins over what the
            family's code says, never over shapes.
        self_contained: copy what would be referenced.
        later_wins: of a weight that two files of one part hold, take the later file's.
        allow_nan: write also weights that are not finite.
        max_shard_bytes: size of the files that towers and language models are written in.
        progress: is told how far it is.

    Raises:
        CheckpointError: a file is missing, damaged, of no known format or of another model; a part is missing or there
            twice; ``out`` is there.
        SettingsError: settings are missing, wrong or contradict each other.
    """
    target = _new_folder(out)
    flags = Flags(_several(vision), _several(bridge), _several(language_model), later_wins)
    plan = make_plan(str(source) if source is not None else None, flags, settings)
    empty = build_empty(plan)
    if self_contained:
        plan = _with_referenced(plan, empty)
    check_names(plan, empty)
    tokenizers = open_tokenizers(plan.settings, [tokenizer] if tokenizer else plan.tokenizer, empty.vocabulary)
    with resumable_folder(target, _job(plan, max_shard_bytes)) as work:
        resumed = work.resumed
        for name, opened in tokenizers.items():
            opened.save_pretrained(work.folder / name)
        writer = _Writer(plan, empty, work, allow_nan, max_shard_bytes, progress)
        entries = {name: writer.write(name) for name in empty.parts}
        adapter = writer.write_adapter(entries)
        manifest = _manifest(plan, empty, entries, adapter, work.folder)
        write_manifest(manifest, work.folder)
    what = tuple(f"{supply.named}: {supply.found.what if supply.found else 'referenced'}" for supply in plan.supplies)
    return Converted(target, manifest, what, tuple(plan.notes), resumed)


class Sampled(Weights):
    """Weights that keep a sample of everything read of them, for a fingerprint.

    Args:
        source: where they are read.
        dtypes: the types they will be held in once they are loaded, by name.
    """

    def __init__(self, source: Weights, dtypes: Mapping[str, torch.dtype]) -> None:
        super().__init__(source.path, source.kind, source.infos, source.config, source.extra)
        self._source = source
        self._dtypes = dtypes
        self._samples: dict[str, bytes] = {}

    def read(self, name: str) -> Tensor:
        """Read it, and keep a sample."""
        tensor = self._source.read(name)
        if name in self._dtypes and "position" not in name:
            self._samples[name] = sample(tensor, self._dtypes[name])
        return tensor

    def fingerprint(self, on_tensor: Callable[[str], None] | None = None) -> str:
        """``weights.fingerprint`` of the part once it is loaded; reads what has not been read yet."""
        for name in self._dtypes:
            if name not in self._samples and name in self.infos and "position" not in name:
                self.read(name)
                if on_tensor:
                    on_tensor(name)
        return hash_samples(self._samples.values())


class _Writer:
    """Writes the parts of a plan into a folder under way."""

    def __init__(
        self,
        plan: Plan,
        empty: EmptyModel,
        work: Resumable,
        allow_nan: bool,
        max_shard_bytes: int,
        progress: Progress | None,
    ) -> None:
        self.plan, self.empty, self.work = plan, empty, work
        self.allow_nan, self.max_shard_bytes = allow_nan, max_shard_bytes
        self.progress = progress
        self.weights = dict(plan.weights)
        for name, part in empty.parts.items():
            if name not in plan.weights:
                self.weights[name] = matched(getattr(plan.settings, name).source, part, name)
        self.total = sum(_bytes(weights) for weights in self.weights.values())
        self.done = 0

    def write(self, name: str) -> PartEntry:
        """Write one part, or read what is needed to know the referenced one again; returns its entry."""
        part, weights = self.empty.parts[name], self.weights[name]
        before = self.done
        if name not in self.plan.weights:
            entry = self._refer(name, part, weights)
        elif part.model is None:
            entry = self._write_bridge(name, part, weights)
        else:
            entry = self._write_folder(name, part, weights)
        self.done = before + _bytes(weights)  # what an earlier run had written, too
        return entry

    def write_adapter(self, entries: Mapping[str, PartEntry]) -> AdapterEntry | None:
        """Write adapters as ``peft`` does, if the file holds some."""
        if self.plan.adapter is None:
            return None
        assert self.empty.adapted is not None, "checked with their names"
        base = entries["language_model"].source
        return write_adapter(self.empty.adapted, self.plan.adapter, base, self.work.folder / ADAPTER, trained=False)

    def _write_bridge(self, name: str, part: EmptyPart, weights: Weights) -> PartEntry:
        path = self.work.folder / f"{name}.safetensors"
        names = _chosen(weights, part)
        # In float32, which holds every value of the file's type and is what training goes on with.
        stored = {key: Cast(From(weights, key), torch.float32) for key in names}
        sampled = Sampled(StoredWeights(weights.path, weights.kind, stored), part.dtypes)
        if not self.work.has(path):
            write_safetensors(path, sampled, names, on_tensor=self._tell(weights), allow_nan=self.allow_nan)
            self.work.finish(path)
        entry = self._entry(part, sampled.fingerprint(), None, "float32")
        return entry.model_copy(update={"file": path.name, "sha256": file_hash(path)})

    def _write_folder(self, name: str, part: EmptyPart, weights: Weights) -> PartEntry:
        folder = self.work.folder / name
        sampled = Sampled(weights, _once(part))
        own = part.model.state_dict()
        names = [key for key in weights.infos if key in own]
        write_sharded(
            folder, sampled, names, self.max_shard_bytes, self._tell(weights), self.work, allow_nan=self.allow_nan
        )
        write_config(part.model, folder, getattr(self.plan.settings, name).dtype)
        return self._entry(part, sampled.fingerprint(), f"./{name}", part_dtype(part.module))

    def _refer(self, name: str, part: EmptyPart, weights: Weights) -> PartEntry:
        source = getattr(self.plan.settings, name).source
        fingerprint = Sampled(weights, _once(part)).fingerprint(self._tell(weights))
        return self._entry(part, fingerprint, source, part_dtype(part.module))

    def _entry(self, part: EmptyPart, fingerprint: str, source: str | None, dtype: str) -> PartEntry:
        count = parameter_count(part.module)
        return PartEntry(
            file=None, sha256=None, source=source, trained=False, parameters=count, dtype=dtype, fingerprint=fingerprint
        )

    def _tell(self, weights: Weights) -> Callable[[str], None]:
        def tell(name: str) -> None:
            self.done += weights.infos[name].bytes
            if self.progress:
                self.progress(self.done, self.total, name)

        return tell


def _bytes(weights: Weights) -> int:
    return sum(info.bytes for info in weights.infos.values())


def _chosen(weights: Weights, part: EmptyPart) -> list[str]:
    """What of the weights at hand belongs to the part; the rest is counted out anew."""
    return [name for name in weights.infos if name in part.dtypes or not COUNTED.search(name)]


def _once(part: EmptyPart) -> dict[str, torch.dtype]:
    """The types that a part's weights are held in, each tensor once, as ``weights.unique_tensors`` finds them."""
    tensors = part.model.state_dict(keep_vars=True)
    seen: set[int] = set()
    once = {}
    for name, dtype in part.dtypes.items():
        if id(tensors[name]) not in seen:
            seen.add(id(tensors[name]))
            once[name] = dtype
    return once


def matched(source: str, part: EmptyPart, name: str) -> Weights:
    """The weights of a referenced Hugging Face model under the names its module has."""
    folder = weights_folder(source)
    stored = match_names(open_weights(folder), part.model, WORDS[name])
    return StoredWeights(folder, "safetensors", stored)


def _with_referenced(plan: Plan, empty: EmptyModel) -> Plan:
    """The plan with everything that would be referenced at hand."""
    weights = dict(plan.weights)
    for name, part in empty.parts.items():
        if name not in weights:
            weights[name] = matched(getattr(plan.settings, name).source, part, name)
    return replace(plan, weights=weights)


def write_config(model: Any, folder: Path, dtype: str) -> None:
    """Write the ``config.json`` of a Hugging Face folder with every value in it, so that no default can change it."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in NOT_SETTINGS}
    if model.config.model_type in T5_FAMILY:
        # transformers 5 forces the flag on in memory; in a file, false is what tells FlanT5 and mT0 from T5.
        config["tie_word_embeddings"] = not wants_own_head(model.config)
    config |= {"architectures": [type(model).__name__], "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _manifest(
    plan: Plan, empty: EmptyModel, entries: dict[str, PartEntry], adapter: AdapterEntry | None, folder: Path
) -> Manifest | QFormerManifest:
    changes: dict[str, Any] = {}
    for name, entry in entries.items():
        settings = getattr(plan.settings, name)
        if isinstance(settings, PartSource) and entry.source:
            changes[name] = settings.model_copy(update={"source": entry.source, "config": None})
    if "qformer" in entries:
        changes["qformer"] = plan.settings.qformer.model_copy(update={"source": None})  # type: ignore[union-attr]
    common: dict[str, Any] = {
        "settings": plan.settings.model_copy(update=changes),
        "parts": entries,
        "tokenizer_files": hash_files(folder / TOKENIZER),
        "connector_tokenizer_files": hash_files(folder / CONNECTOR_TOKENIZER),
        "versions": {"sightbridge": sightbridge.__version__} | {n: version(n) for n in ("torch", "transformers")},
        "tokens_per_image": empty.tokens_per_image,
        "provenance": _provenance(plan),
    }
    if not isinstance(plan.settings, ModelSettings):
        return QFormerManifest(**common)
    return Manifest(encoder_decoder=empty.encoder_decoder, adapter=adapter, **common)


def _provenance(plan: Plan) -> dict[str, Any]:
    made_of = []
    for supply in plan.supplies:
        if supply.found is None:
            made_of.append({"source": supply.named})
        else:
            found = supply.found
            size = sum(file.stat().st_size for file in _files(found.weights))
            made_of.append({"source": supply.named, "format": found.format, "what": found.what, "bytes": size})
    return {"converted_from": made_of, "notes": list(plan.notes)}


def _job(plan: Plan, max_shard_bytes: int) -> dict[str, Any]:
    """Everything that the written files depend on."""
    files = [file for supply in plan.supplies if supply.found for file in _files(supply.found.weights)]
    return {
        "files": [identity_of(file) for file in files],
        "settings": plan.settings.model_dump(mode="json"),
        "stored": sorted(plan.weights),
        "max_shard_bytes": max_shard_bytes,
    }


def _files(weights: Weights) -> list[Path]:
    """The files that weights lie in."""
    return sorted(file for file in {info.file for info in weights.infos.values()} if file.is_file())


def _new_folder(out: str | Path) -> Path:
    target = Path(out).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: is there already; choose a new or empty folder for the model.")
    return target


def _several(named: str | Sequence[str] | None) -> list[str]:
    return [named] if isinstance(named, str) else [str(name) for name in named or ()]
