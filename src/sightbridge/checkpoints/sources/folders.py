"""Folders of weights: Hugging Face's shards, DeepSpeed's checkpoints, layers of a pipeline, several files at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from sightbridge.checkpoints.sources.base import LEFT_OUT, NoWeightsError, Stored
from sightbridge.checkpoints.sources.containers import read_container, read_json
from sightbridge.errors import CheckpointError

Content = tuple[str, dict[str, Stored], dict[str, Any]]
"""Kind of container, tensors by name, plain values beside them."""
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".pdparams")
"""Files of weights without an index; an index is preferred in the same order."""
NO_WEIGHTS = re.compile(
    r"training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state|optim_states|tokenizer|\.arrow"
    r"|sightbridge_extras"
)
"""In the names of what trainers save beside weights, and exports for transformers (``export/hf.py``)."""
LAYER = re.compile(r"layer_(\d+)(?:-model_(\d+))?-model_states\.pt")
STATES = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
MAX_FILES = 5000


def read_folder(folder: Path) -> Content:
    """Read the weights of a folder; raises ``CheckpointError`` if there are none, or it is not clear which."""
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    if layers := sorted(name for name in names if LAYER.fullmatch(name)):
        return _pipeline(folder, layers)
    if states := sorted(name for name in names if STATES.fullmatch(name)):
        return _deepspeed(folder, states)
    if index := _index(folder, names):
        return _sharded(folder, index)
    if files := _loose(names):
        return _joined(folder / name for name in files)
    if inner := _checkpoint_inside(folder):
        return read_folder(inner)
    seen = f" (it holds {', '.join(sorted(names)[:5])})" if names else " (it is empty)"
    raise NoWeightsError(f"{folder}: no files of weights in this folder{seen}; expected {', '.join(SUFFIXES)}.")


def _pipeline(folder: Path, names: list[str]) -> Content:
    """Each layer of a model trained in a pipeline lies in a file of its own, which may be an empty spacer.

    The tensors of ``layer_05-model_states.pt`` are named ``layer_05.`` and what they are called in there:
    ``layer_00.visionpipe.llm_proj.weight``, ``layer_05.layer.attn.c_attn.weight`` (MiniGPT4Qwen-14B).
    """
    tensors: dict[str, Stored] = {}
    found = [match for name in names if (match := LAYER.fullmatch(name))]
    if any(match[2] not in (None, "00") for match in found):
        raise CheckpointError(f"{folder}: its layers are split over several GPUs each, which is not put together here.")
    numbers = [int(match[1]) for match in found]
    if missing := sorted(set(range(max(numbers) + 1)) - set(numbers)):
        raise CheckpointError(f"{folder}: layer {missing[0]} of the pipeline is missing (layer_NN-model_states.pt).")
    extra: dict[str, Any] = {}
    for match in found:
        _, inner, values = read_container(folder / match[0], may_be_empty=True)
        tensors |= {f"layer_{match[1]}.{name}": tensor for name, tensor in inner.items()}
        extra |= values
    if not tensors:
        raise CheckpointError(f"{folder}: the layers of its pipeline hold no tensors.")
    return "pipeline", tensors, extra


def _deepspeed(folder: Path, names: list[str]) -> Content:
    """ZeRO 0 to 2 keep the whole model in ``mp_rank_00_model_states.pt``; ZeRO-3 keeps it in pieces."""
    if len(names) == 1 and names[0].startswith("mp_rank_"):
        _, tensors, extra = read_container(folder / names[0])
        return "deepspeed", tensors, extra
    if any(name.startswith("zero_pp_rank") for name in names):
        raise CheckpointError(
            f"{folder}: a checkpoint of DeepSpeed's ZeRO-3, whose weights lie in pieces. Make one file of it with the "
            "zero_to_fp32.py that DeepSpeed has put beside it, and give that."
        )
    raise CheckpointError(f"{folder}: a model split over {len(names)} GPUs, which is not put together here.")


def _index(folder: Path, names: list[str]) -> Path | None:
    """The index of shards, safetensors first; of several of one kind the one called as Hugging Face does."""
    for suffix in SUFFIXES:
        found = sorted(name for name in names if name.endswith(f"{suffix}.index.json"))
        usual = [name for name in found if name.partition(".")[0] in ("model", "pytorch_model", "model_state")]
        chosen = [name for name in usual if name.count(".") == 3] or usual or found
        if len(chosen) > 1:
            raise CheckpointError(
                f"{folder}: holds several indexes of weights ({', '.join(chosen)}); remove all but one."
            )
        if chosen:
            return folder / chosen[0]
        if "model.safetensors" in names:
            return None
    return None


def _sharded(folder: Path, index: Path) -> Content:
    """The files of an index, each of which must be there and hold what the index says."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: has no 'weight_map' that says which file each tensor is in.")
    files = list(dict.fromkeys(map(str, places.values())))
    if len(files) > MAX_FILES:
        raise CheckpointError(f"{index}: names {len(files):,} files; no model has that many.")
    for file in files:
        if Path(file).name != file or file in (".", "..") or "\\" in file:
            raise CheckpointError(f"{index}: names {file[:100]!r}, which is no file in this folder.")
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{index}: names '{file}', which is not in the folder. Is the download complete? If the files were "
                "renamed, give them their names back."
            )
    kind, tensors, extra = _joined(folder / file for file in files)
    misplaced = [name for name, file in places.items() if name in tensors and tensors[name].info.file.name != file]
    if names := sorted(places.keys() - tensors.keys()) or misplaced:
        raise CheckpointError(
            f"{index}: says that '{names[0][:100]}' is in '{places[names[0]]}', and it is not. Are these the files of "
            "another model, or renamed?"
        )
    return kind, tensors, extra


def _loose(names: list[str]) -> list[str]:
    """Files of weights by their names, without what trainers save beside and without what safetensors holds, too."""
    files = sorted(name for name in names if name.endswith(SUFFIXES) and not NO_WEIGHTS.search(name))
    stems = {_stem(name) for name in files if name.endswith(".safetensors")}
    return [name for name in files if name.endswith(".safetensors") or _stem(name) not in stems]


def _stem(name: str) -> str:
    """What a model is called in whichever container, whole or in shards."""
    return re.sub(r"-\d+-of-\d+$", "", name.rpartition(".")[0].removeprefix("pytorch_"))


def _joined(files: Iterable[Path]) -> Content:
    """Several files as one; a name that two of them have must stand for the same tensor."""
    kinds: list[str] = []
    tensors: dict[str, Stored] = {}
    extra: dict[str, Any] = {}
    for file in files:
        kind, inner, values = read_container(file)
        kinds.append(kind)
        for name in inner.keys() & tensors.keys():
            if not _equal(inner[name], tensors[name]):
                raise CheckpointError(
                    f"{file}: '{name}' is another tensor than in {tensors[name].info.file.name}; which one is meant? "
                    "Give one of the files instead of the folder."
                )
        tensors |= {name: tensor for name, tensor in inner.items() if name not in tensors}
        left_out = [*extra.get(LEFT_OUT, []), *values.get(LEFT_OUT, [])]
        extra |= values | ({LEFT_OUT: left_out} if left_out else {})
    return " and ".join(dict.fromkeys(kinds)), tensors, extra


def _equal(one: Stored, other: Stored) -> bool:
    alike = one.info.shape == other.info.shape and one.info.dtype == other.info.dtype
    return alike and torch.equal(one.read(), other.read())


def _checkpoint_inside(folder: Path) -> Path | None:
    """The folder of a DeepSpeed run's newest checkpoint, which a file ``latest`` names."""
    latest = folder / "latest"
    if not latest.is_file() or latest.stat().st_size > 200:
        return None
    name = latest.read_text(encoding="utf-8", errors="replace").strip()
    if not name or Path(name).name != name or not (folder / name).is_dir():
        raise CheckpointError(f"{latest}: names '{name[:100]}', which is no folder beside it.")
    return folder / name
