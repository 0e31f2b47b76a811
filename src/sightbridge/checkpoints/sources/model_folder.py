"""Our own model folder as named tensors: stored parts, referenced ones and adapters together, read one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from sightbridge.checkpoints.adapter import ADAPTER_WEIGHTS
from sightbridge.checkpoints.atomic import existing_folder
from sightbridge.checkpoints.folder import check_files, settings_with
from sightbridge.checkpoints.manifest import ADAPTER, AnyManifest, Manifest, PartEntry, inner_path, read_manifest
from sightbridge.checkpoints.merge import find_folder
from sightbridge.checkpoints.merge_shards import Adapter
from sightbridge.checkpoints.rest import find_place
from sightbridge.checkpoints.sources.base import Held, Stored, StoredWeights
from sightbridge.checkpoints.sources.weights import TensorInfo, Weights, open_weights
from sightbridge.checkpoints.weights import hash_samples, is_inside, sample
from sightbridge.config.model import LanguageModelSettings, ModelSettings, VisionTowerSettings
from sightbridge.errors import CheckpointError
from sightbridge.models.build import VISION_CLASSES, find_config
from sightbridge.models.language_model import build_with_own_head, wants_own_head
from sightbridge.models.vision_tower import FINAL_NORMS, POOLERS, VisionTower, resize_positions

EVERYTHING = ("vision_tower", "bridge", "language_model", "adapter")
"""What a model folder consists of."""
INNER = "model."
"""In front of every name in the file of a tower or a language model: the module that wraps it keeps it there."""


@dataclass(frozen=True)
class From:
    """A tensor of other weights."""

    weights: Weights
    name: str

    @property
    def info(self) -> TensorInfo:
        """Of the tensor there."""
        return self.weights.infos[self.name]

    def read(self) -> Tensor:
        """Read it there."""
        return self.weights.read(self.name)


@dataclass(frozen=True)
class WithAdapter:
    """A weight with what an adapter adds to it."""

    base: Stored
    adapter: Adapter
    module: str

    @property
    def info(self) -> TensorInfo:
        """Of the weight without it."""
        return self.base.info

    def read(self) -> Tensor:
        """Read the weight and add to it."""
        return self.adapter.merged(self.module, self.base.read())


@dataclass(frozen=True)
class Cast:
    """A tensor in another type."""

    base: Stored
    dtype: torch.dtype

    @property
    def info(self) -> TensorInfo:
        """Of the tensor, with the new type."""
        return replace(self.base.info, dtype=self.dtype)

    def read(self) -> Tensor:
        """Read it and cast it."""
        return self.base.read().to(self.dtype)


class FolderWeights(StoredWeights):
    """A model folder under canonical names: ``vision_tower.``, ``bridge.``, ``language_model.``, ``adapter.``.

    A tower or language model has the names of transformers' own model, each tensor once (T5 has one table under three
    names). The tower is whole, or as far as blocks are used if no more of it is stored and its source is gone.

    Attributes:
        manifest: of the folder, with the sources that were given in place of its own.
        vision_model: transformers' vision model, as large as the tensors are, without weights; ``None`` if it was not
            asked for.
        layers: which of its hidden states are taken, counted from the front; ``None`` for its output.
        language_model: transformers' language model, likewise; ``None`` also for a model of the first stage.
    """

    manifest: AnyManifest
    vision_model: Any = None
    layers: list[int] | None = None
    language_model: Any = None

    def in_type(self, dtype: torch.dtype) -> FolderWeights:
        """The same with all floating point tensors in ``dtype``, rounded once: merged ones come in float32."""
        bare = {name: s.base if isinstance(s, Cast) else s for name, s in self.stored.items()}
        return self.but({name: Cast(s, dtype) for name, s in bare.items() if s.info.dtype.is_floating_point})

    def merged(self, adapter: Adapter) -> FolderWeights:
        """The same with an adapter inside the language model instead of beside it."""
        lm = "language_model."
        names = {name.removeprefix(lm) for name in self.stored if name.startswith(lm)}
        places = adapter.places(names, self.path)
        changed = {}
        for name, module in places.items():
            base = self.stored[lm + name]
            changed[lm + name] = Cast(WithAdapter(Cast(base, torch.float32), adapter, module), base.info.dtype)
        return self.but(changed, drop=[name for name in self.stored if name.startswith("adapter.")])

    def but(self, changed: Mapping[str, Stored], drop: Iterable[str] = ()) -> FolderWeights:
        """The same with some tensors changed or left out."""
        left_out = set(drop)
        stored = {name: value for name, value in {**self.stored, **changed}.items() if name not in left_out}
        same = FolderWeights(self.path, self.kind, stored, self.config, self.extra)
        same.__dict__.update({name: value for name, value in self.__dict__.items() if name not in same.__dict__})
        return same


def open_model_folder(
    folder: str | Path, sources: Mapping[str, str] | None = None, parts: Collection[str] = EVERYTHING
) -> FolderWeights:
    """Open a model folder that training or ``convert`` wrote.

    Args:
        folder: with a ``sightbridge.json``.
        sources: part -> folder or hub name, for referenced parts that lie elsewhere now.
        parts: which to open; what is referenced by others need not be there.

    Raises:
        CheckpointError: the folder is damaged, or a part that it references is not found or is another one.
    """
    folder = existing_folder(Path(folder).expanduser().resolve())
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    sources = sources or {}
    manifest = manifest.model_copy(update={"settings": settings_with(manifest, sources)})
    weights = FolderWeights(folder, "sightbridge", {})
    weights.manifest, settings = manifest, manifest.settings
    stored: dict[str, Stored] = {}
    if "vision_tower" in parts:
        entry = manifest.parts["vision_tower"]
        found, weights.vision_model, weights.layers = _open_tower(folder, entry, settings.vision_tower)
        stored |= {f"vision_tower.{name}": tensor for name, tensor in found.items()}
    if "bridge" in parts:
        name = "connector" if isinstance(settings, ModelSettings) else "qformer"
        found = _open_bridge(folder, manifest.parts[name], sources.get(name))
        stored |= {f"bridge.{name}": tensor for name, tensor in found.items()}
    if "language_model" in parts and isinstance(settings, ModelSettings):
        entry = manifest.parts["language_model"]
        found, weights.language_model = _open_language_model(folder, entry, settings.language_model)
        stored |= {f"language_model.{name}": tensor for name, tensor in found.items()}
    if "adapter" in parts and isinstance(manifest, Manifest) and manifest.adapter:
        adapter = open_weights(folder / ADAPTER / ADAPTER_WEIGHTS)
        stored |= {f"adapter.{name}": From(adapter, name) for name in adapter.infos}
    return weights.but(stored)


def _open_tower(
    folder: Path, entry: PartEntry, settings: VisionTowerSettings
) -> tuple[dict[str, Stored], Any, list[int] | None]:
    """The tower's tensors, its model without weights, and the layers taken."""
    if not entry.file:
        return _referenced_tower(settings, entry, folder)
    model = empty_vision_model(find_config(settings, "vision_tower"))
    stored = _inner(open_weights(inner_path(folder, entry.file)))
    layers = VisionTower(empty_vision_model(model.config), settings.layers, settings.class_token).layers
    missing = [name for name in model.state_dict() if name not in stored]
    if not missing:
        return stored, model, layers
    if entry.source and not entry.trained:  # the blocks that were cut away are still there
        try:
            changes = {"source": entry.source, "config": None, "layers": layers or "output"}
            whole = VisionTowerSettings.model_validate(
                settings.model_dump() | changes | {"image_size": model.config.image_size}
            )
            return _referenced_tower(whole, entry, folder)
        except CheckpointError:
            pass
    return stored, model, layers


def _referenced_tower(
    settings: VisionTowerSettings, entry: PartEntry, folder: Path
) -> tuple[dict[str, Stored], Any, list[int] | None]:
    config = find_config(settings, "vision_tower")
    model = empty_vision_model(config)
    assert settings.source is not None, "the part is referenced"
    found = match_names(open_weights(find_folder(settings.source)), model, "vision tower")
    used = VisionTower(empty_vision_model(config), settings.layers, settings.class_token)
    used.hold_linear_layers_in(getattr(torch, settings.dtype))
    dtypes = {name.removeprefix(INNER): tensor.dtype for name, tensor in used.state_dict().items()}
    _check_same(found, dtypes, entry, folder, settings.source, "vision_tower")
    if settings.image_size not in (None, config.image_size):
        found |= resampled_positions(found, config, settings.image_size)
        model = empty_vision_model(type(config).from_dict({**config.to_dict(), "image_size": settings.image_size}))
    return found, model, used.layers


def resampled_positions(found: Mapping[str, Stored], config: Any, image_size: int) -> dict[str, Stored]:
    """The position table for pictures of another size, as ``resize_positions`` makes it for the model."""
    embeddings = {name: stored for name, stored in found.items() if name.startswith("embeddings.")}
    model = _build_vision_model(config, num_hidden_layers=0)
    model.load_state_dict({name: stored.read().float() for name, stored in embeddings.items()}, strict=False)
    resized = resize_positions(model, image_size).state_dict()
    return {
        name: Held(resized[name].to(stored.info.dtype), stored.info.file)
        for name, stored in embeddings.items()
        if stored.info.shape != resized[name].shape
    }


def _open_bridge(folder: Path, entry: PartEntry, place: str | None) -> dict[str, Stored]:
    """A connector or first-stage Q-Former; what a folder lacks of it is taken from the one that it started from."""
    assert entry.file is not None, "a bridge is always stored"
    weights = open_weights(inner_path(folder, entry.file))
    stored: dict[str, Stored] = {name: From(weights, name) for name in weights.infos}
    if not entry.rest:
        return stored
    rest_folder, file = find_place(entry, folder, place)
    rest = open_weights(file)
    kept = {name: From(rest, name) for name in rest.infos if not is_inside(name, entry.only)}
    stored = kept | stored
    if _fingerprint(stored, {name: tensor.info.dtype for name, tensor in stored.items()}) != entry.fingerprint:
        raise CheckpointError(
            f"{folder}: the connector in {rest_folder} is not the one that this model was trained with: its weights "
            "differ. Give the right one with --source connector=FOLDER."
        )
    return stored


def _open_language_model(
    folder: Path, entry: PartEntry, settings: LanguageModelSettings
) -> tuple[dict[str, Stored], Any]:
    if entry.file:
        model = empty_language_model(find_config(settings, "language_model"))
        return _inner(open_weights(inner_path(folder, entry.file))), model
    assert settings.source is not None, "the part is referenced"
    model = empty_language_model(find_config(settings, "language_model"))
    found = match_names(open_weights(find_folder(settings.source)), model, "language model")
    dtypes = types_held(model, getattr(torch, settings.dtype))
    _check_same(found, dtypes, entry, folder, settings.source, "language_model")
    return found, model


def empty_vision_model(config: Any) -> Any:
    """A vision model without weights, all blocks and pooler included."""
    with torch.device("meta"):
        return _build_vision_model(config)


def _build_vision_model(config: Any, **changes: Any) -> Any:
    vision_class = VISION_CLASSES.get(config.model_type, AutoModel)
    build = getattr(vision_class, "from_config", None) or vision_class._from_config
    return build(type(config).from_dict(config.to_dict() | changes), dtype=torch.float32)


def empty_language_model(config: Any) -> Any:
    """A language model without weights; T5, mT5 and umT5 with a head of their own where the released ones have one."""
    auto_class: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        if wants_own_head(config):
            return build_with_own_head(auto_class, config)
        return auto_class.from_config(config)


def types_held(model: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The types that ``from_pretrained`` loads a model's tensors in: some modules stay in float32 (T5's ``wo``)."""
    always = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    keep = {*always, *((getattr(model, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ())}
    return {name: torch.float32 if keep & set(name.split(".")) else dtype for name in model.state_dict()}


def _inner(weights: Weights) -> dict[str, Stored]:
    return {name.removeprefix(INNER): From(weights, name) for name in weights.infos}


def match_names(weights: Weights, model: Any, part: str) -> dict[str, Stored]:
    """The tensors that ``model`` has, under its own names and each once.

    Files may have a tower one level deeper (a whole CLIP), or without the norm behind its last block (LAVIS), or a bare
    model without its first level (GPT-2, BLOOM).

    Raises:
        CheckpointError: some are missing, or have another shape.
    """
    known = model.state_dict(keep_vars=True)
    base = model.base_model_prefix
    found: dict[str, Stored] = {}
    for name in weights.infos:
        spellings = name, name.removeprefix("vision_model."), f"{base}.{name}", name.removeprefix(f"{base}.")
        ours = next((spelling for spelling in spellings if spelling in known), None)
        if ours:
            found[ours] = From(weights, name)
    _drop_aliases(found, known)
    wrong = [name for name, stored in found.items() if stored.info.shape != tuple(known[name].shape)]
    if wrong:
        raise CheckpointError(
            f"{weights.path}: '{wrong[0]}' of the {part} has the shape {found[wrong[0]].info.shape}, its configuration "
            f"says {tuple(known[wrong[0]].shape)}. Is it the right folder?"
        )
    there = {id(known[name]) for name in found}
    head = getattr(model.get_output_embeddings(), "weight", None)
    missing = [
        name
        for name, tensor in known.items()
        if id(tensor) not in there and tensor is not head and name.split(".")[0] not in (*POOLERS, *FINAL_NORMS)
    ]
    if missing:
        raise CheckpointError(f"{weights.path}: lacks {len(missing)} weights of the {part}, such as '{missing[0]}'.")
    return found


def _drop_aliases(found: dict[str, Stored], known: Mapping[str, Tensor]) -> None:
    """Keep tensors that a model ties under their first name, unless a file has them apart after all."""
    first: dict[int, str] = {}
    for name, tensor in known.items():
        if name not in found:
            continue
        original = first.setdefault(id(tensor), name)
        if original != name and torch.equal(found[original].read(), found[name].read()):
            del found[name]


def _fingerprint(stored: Mapping[str, Stored], dtypes: Mapping[str, torch.dtype]) -> str:
    """``weights.fingerprint`` of a part whose tensors are held in ``dtypes``, without loading it."""
    names = [name for name in dtypes if name in stored and "position" not in name]
    return hash_samples(sample(stored[name].read(), dtypes[name]) for name in names)


def _check_same(
    stored: Mapping[str, Stored],
    dtypes: Mapping[str, torch.dtype],
    entry: PartEntry,
    folder: Path,
    source: str,
    part: str,
) -> None:
    if _fingerprint(stored, dtypes) != entry.fingerprint:
        raise CheckpointError(
            f"{folder}: the {part.replace('_', ' ')} at '{source}' is not the one that this model was trained with: "
            f"its weights differ. Give the right one with --source {part}=NAME_OR_PATH."
        )
