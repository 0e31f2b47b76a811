"""What a model is put together from: files in foreign formats, model folders, and Hugging Face models by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from sightbridge.checkpoints.formats import Found, detect
from sightbridge.checkpoints.formats.blip2_parts import STAGE1_PARTS
from sightbridge.checkpoints.formats.views import RenamedWeights
from sightbridge.checkpoints.key_map import JoinedWeights
from sightbridge.checkpoints.manifest import MANIFEST, TOKENIZER, Manifest, inner_path, read_manifest
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.checkpoints.text_branch import TEXT_BRANCH
from sightbridge.config.model import ModelSettings
from sightbridge.errors import CheckpointError
from sightbridge.models.build import EMBEDDED, first_line, resolve_source
from sightbridge.models.connectors.qformer import QFormerOptions

PREFIXES = {
    "vision_tower": "vision_tower.",
    "connector": "bridge.",
    "qformer": "bridge.",
    "language_model": "language_model.",
}
"""Beginnings of the canonical names of each part's weights."""
FLAGS = {
    "vision_tower": "--vision",
    "connector": "--bridge",
    "qformer": "--bridge",
    "language_model": "--language-model",
}
"""What names a supplier of each part on the command line."""
WORDS = {
    "vision_tower": "vision tower",
    "connector": "connector",
    "qformer": "Q-Former",
    "language_model": "language model",
}
"""What each part is called in messages."""


@dataclass(frozen=True)
class Supply:
    """Something that gives parts of a model.

    Attributes:
        named: as the user named it.
        found: what it holds; ``None`` for a Hugging Face model.
        reference: folder or name of a Hugging Face model, which is referenced and not copied.
    """

    named: str
    found: Found | None = None
    reference: str | None = None

    def gives(self, part: str) -> bool:
        """Whether weights of the part are in it."""
        return self.found is not None and has_part(self.found.weights, part)


def has_part(weights: Weights, part: str) -> bool:
    """Whether canonical ``weights`` hold some of a part."""
    return any(name.startswith(PREFIXES[part]) for name in weights.infos)


def open_supply(named: str, part: str) -> Supply:
    """Open what a flag names: something that holds ``part``.

    A Hugging Face model of that part alone, or one with its tower inside, is referenced; the same goes for a name that
    is no file here. All else is a file or folder in a foreign format.

    Raises:
        CheckpointError: there is no such file, it is of no known format, or it lacks the part.
    """
    path = Path(named).expanduser()
    if part in ("vision_tower", "language_model"):
        if named.startswith(EMBEDDED) or (not path.exists() and _could_be_a_name(named)):
            return Supply(named, reference=named)
        if path.is_dir() and is_huggingface(path, part):
            return Supply(named, reference=str(path.resolve()))
    found = read_bridge(path) if part in ("connector", "qformer") else read_any(path)
    if not has_part(found.weights, part):
        raise CheckpointError(f"{FLAGS[part]} {named}: holds no {WORDS[part]}; it is: {found.what}.")
    return Supply(named, found)


def open_several(named: list[str], part: str, later_wins: bool) -> Supply:
    """Open all that one flag names. A weight that two of them hold is an error unless the later one is to win.

    Raises:
        CheckpointError: as ``open_supply``, or they contradict each other.
    """
    supplies = [open_supply(name, part) for name in named]
    if len(supplies) == 1:
        return supplies[0]
    if references := [supply.named for supply in supplies if supply.found is None]:
        raise CheckpointError(
            f"{FLAGS[part]}: '{references[0]}' is a whole {WORDS[part]} that is only referenced; nothing can be added."
        )
    founds = [supply.found for supply in supplies if supply.found]
    views = [part_of(found.weights, PREFIXES[part], keep=True) for found in founds]
    if not later_wins:
        _refuse_doubled(views, part)
    joined = JoinedWeights(*reversed(views), first_wins=True) if later_wins else JoinedWeights(*views)
    main = max(founds, key=lambda found: sum(name.startswith(PREFIXES[part]) for name in found.weights.infos))
    what = " and ".join(found.what for found in founds)
    notes = tuple(note for found in founds for note in found.notes)
    return Supply(" and ".join(named), replace(main, weights=joined, what=what, notes=notes))


def _refuse_doubled(views: list[Weights], part: str) -> None:
    places: dict[str, list[str]] = {}
    for view in views:
        for name in view.infos:
            places.setdefault(name, []).append(str(view.path))
    doubled = [f"{name} ({' and '.join(where)})" for name, where in places.items() if len(where) > 1]
    if doubled:
        more = f" and {len(doubled) - 5} more" if len(doubled) > 5 else ""
        raise CheckpointError(
            f"{FLAGS[part]}: {len(doubled)} weights of the {WORDS[part]} are in two of the files: "
            f"{', '.join(doubled[:5])}{more}. Leave one away, or let the later file win: --later-wins."
        )


def read_any(path: Path) -> Found:
    """Say what a file or folder of any kind holds, our own model folder among them; raises ``CheckpointError``."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder.")
    if (path / MANIFEST).is_file():
        return _read_model_folder(path)
    weights = open_weights(path)
    return detect(weights).read(weights)


def read_bridge(path: Path) -> Found:
    """Like ``read_any``, but of a model folder only the bridge is opened: its other parts may be gone, or large."""
    if not (path / MANIFEST).is_file():
        return read_any(path)
    manifest = read_manifest(path)
    part = "connector" if isinstance(manifest, Manifest) else "qformer"
    entry = manifest.parts[part]
    assert entry.file is not None, "a bridge is always stored"
    if entry.only:
        raise CheckpointError(
            f"{path}: holds only {', '.join(entry.only)} of its connector, the rest is in {entry.rest[-1]}. Save the "
            "model with self_contained=True first."
        )
    weights = open_weights(inner_path(path, entry.file))
    names = {f"bridge.{name}": name for name in weights.infos}
    dumped = manifest.settings.model_dump(mode="json")
    tower = {key: dumped["vision_tower"][key] for key in ("layers", "class_token")}
    settings = {key: dumped[key] for key in ("connector", "qformer", "text", "prompt", "image") if key in dumped}
    what = f"the {WORDS[part]} of a model folder"
    return Found("sightbridge", what, RenamedWeights(weights, names), manifest.kind, settings | {"vision_tower": tower})


def _read_model_folder(path: Path) -> Found:
    from sightbridge.checkpoints.sources.model_folder import open_model_folder

    weights = open_model_folder(path)
    settings = weights.manifest.settings.model_dump(mode="json")
    settings["vision_tower"] |= _own_config(weights.vision_model) | {"layers": weights.layers or "output"}
    if isinstance(weights.manifest.settings, ModelSettings):
        settings["language_model"] |= _own_config(weights.language_model)
    kind = weights.manifest.kind
    return Found("sightbridge", "a model folder", weights, kind, settings, path / TOKENIZER)  # type: ignore[arg-type]


def _own_config(model: Any) -> dict[str, Any]:
    from sightbridge.checkpoints.folder import NOT_SETTINGS

    config = {key: value for key, value in model.config.to_dict().items() if key not in NOT_SETTINGS}
    return {"source": None, "config": config, "override": {}}


def as_second_stage(found: Found) -> Found:
    """What a second stage goes on with of a first stage's Q-Former; anything else as it is."""
    if found.kind != "qformer":
        return found
    left = tuple(PREFIXES["qformer"] + part for part in STAGE1_PARTS)
    bridge = part_of(found.weights, PREFIXES["qformer"], keep=True)
    names = [
        name
        for name in bridge.infos
        if not name.startswith(left) and not TEXT_BRANCH.match(name.removeprefix(PREFIXES["qformer"]))
    ]
    options = {
        key: value
        for key, value in found.settings.get("qformer", {}).items()
        if key in QFormerOptions.model_fields and not key.startswith("text_")
    }
    settings = {key: value for key, value in found.settings.items() if key not in ("qformer", "text")}
    settings["connector"] = {"kind": "qformer", **options}
    weights = RenamedWeights(bridge, {name: name for name in names})
    return replace(found, weights=weights, settings=settings, kind="generation")


def is_huggingface(folder: Path, part: str) -> bool:
    """Whether transformers itself can load ``part`` from a folder: told by its configuration and names of weights."""
    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError):
        return False  # PaddleMIX's 'text_config' is a name, where transformers wants a table
    if part == "language_model":
        known: list[Any] = [*MODEL_FOR_CAUSAL_LM_MAPPING, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING]
        # A LLaVA has a language model's type in its original layout, but a projector among its weights.
        return type(config) in known and not any("mm_projector." in name for name in open_weights(folder).infos)
    if not hasattr(getattr(config, "vision_config", config), "patch_size"):
        return False
    return any(name.startswith(("vision_model.embeddings.", "embeddings.")) for name in open_weights(folder).infos)


def weights_folder(source: str) -> Path:
    """The folder of a Hugging Face model with its weights, fetched from the hub if it is not in the cache.

    Raises:
        CheckpointError: it is nowhere, or holds no weights.
    """
    found = Path(resolve_source(source)).expanduser()
    if found.is_dir():
        return found
    # Most repositories have both; of those with old files alone the second attempt fetches them.
    for weights in ("model*.safetensors", "pytorch_model*.bin"):
        wanted = ["*.json", "*.model", "*.txt", weights]
        try:
            found = Path(snapshot_download(source, allow_patterns=wanted))
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
            raise CheckpointError(
                f"'{source}' is no folder here, is not in the cache of the hub and could not be fetched "
                f"({first_line(error)})."
            ) from error
        if any(found.glob(weights)):
            return found
    raise CheckpointError(f"'{source}': there are no weights in {found}. Fetch the model whole, or give a folder.")


def _could_be_a_name(named: str) -> bool:
    """Whether it is written as on the hub, ``owner/name``, and not as a path."""
    looks_like_a_file = Path(named).suffix in (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".pdparams")
    return not named.startswith(("/", ".", "~")) and named.count("/") <= 1 and not looks_like_a_file


def part_of(weights: Weights, prefix: str, keep: bool = False) -> Weights:
    """The weights whose canonical names begin with ``prefix``, without it unless it is to ``keep``."""
    names = [name for name in weights.infos if name.startswith(prefix)]
    return RenamedWeights(weights, {name if keep else name.removeprefix(prefix): name for name in names})
