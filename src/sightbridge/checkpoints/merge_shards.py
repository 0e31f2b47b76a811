"""Adapters added to the weights of a Hugging Face folder, one file of weights in memory at a time."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sightbridge.checkpoints.adapter import ADAPTER_WEIGHTS, PREFIX, read_adapter_config
from sightbridge.errors import CheckpointError

INDEXES = {"model.safetensors.index.json": "model.safetensors", "pytorch_model.bin.index.json": "pytorch_model.bin"}
"""Index of several files -> name of the single file there is instead."""
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
PLAIN_START = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin adapters with that leave the model's own weights as they are; PiSSA, OLoRA and LoftQ change them."""
UNLIKE_LORA = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "use_qalora", "lora_bias")
UNLIKE_LORA += ("layer_replication", "trainable_token_indices", "target_parameters", "use_bdlora", "arrow_config")
UNLIKE_LORA += ("alora_invocation_tokens", "corda_config", "kasa_config", "velora_config", "monteclora_config")
"""Settings of ``peft`` with which a merged weight is not W + scale * B A, or other weights change too."""

Change = Callable[[str, Tensor], Tensor]
"""Key in a file of weights, and the weight -> the merged weight."""


class Adapter:
    """The matrices of a PEFT folder, which are small, by the module they adapt.

    Raises ``CheckpointError`` for a folder that is no LoRA, or one whose adapters are not simply added to weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = read_adapter_config(folder)
        check_plain(config, folder)
        rank = config["r"]
        self.scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self.transposed = bool(config.get("fan_in_fan_out"))
        weights = read_adapter_weights(folder)
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self.rounded_to: set[torch.dtype] = set()
        """Types of the weights merged so far."""
        for key in sorted(weights):
            module, _, rest = key.removeprefix(PREFIX).rpartition(".lora_A.")
            other = key.replace(".lora_A.", ".lora_B.")
            if rest == "weight" and key.startswith(PREFIX) and other in weights:
                self.pairs[module] = weights[key].float(), weights[other].float()
            elif ".lora_B.weight" not in key or key.replace(".lora_B.", ".lora_A.") not in weights:
                raise CheckpointError(
                    f"{folder / ADAPTER_WEIGHTS}: '{key}' is not one of a pair of LoRA matrices, and would be left out."
                )
            if rest == "weight" and weights[key].shape[0] != rank:
                raise CheckpointError(
                    f"{folder / ADAPTER_WEIGHTS}: '{key}' has rank {weights[key].shape[0]}, but the configuration says "
                    f"{rank}, so its scale is not known."
                )
        if not self.pairs:
            raise CheckpointError(f"{folder / ADAPTER_WEIGHTS}: holds no adapter.")

    def places(self, keys: set[str], where: Path) -> dict[str, str]:
        """Find the weight of every adapted module: key in the files -> module.

        Checkpoints of a bare model (GPT-2, BLOOM) lack the first part of the names that modules have.

        Raises:
            CheckpointError: one is not there.
        """
        places = {}
        for module in self.pairs:
            full = f"{module}.weight"
            key = next((key for key in (full, full.partition(".")[2]) if key in keys), None)
            if key is None:
                raise CheckpointError(
                    f"{where}: has no weight '{full}', which the adapters in {self.folder} belong to. Are they those "
                    "of another language model?"
                )
            places[key] = module
        return places

    def merged(self, module: str, weight: Tensor) -> Tensor:
        """Return W + scale * B A (arXiv 2106.09685), computed in float32, in the type of W."""
        a, b = self.pairs[module]
        change = self.scale * (b @ a)
        change = change.T if self.transposed else change
        if change.shape != weight.shape:
            raise CheckpointError(
                f"{self.folder}: the adapter of '{module}' is for a weight of {tuple(change.shape)}, but that of the "
                f"language model is {tuple(weight.shape)}. Are they those of another language model?"
            )
        self.rounded_to.add(weight.dtype)
        return (weight.float() + change).to(weight.dtype)


def check_plain(config: dict[str, Any], folder: Path) -> None:
    """Raise ``CheckpointError`` if an adapter's settings ask for more than W + scale * B A."""
    wrong = [f"{key} {config[key]}" for key in UNLIKE_LORA if config.get(key)]
    if config.get("bias", "none") != "none":
        wrong.append(f"bias {config['bias']}")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_START:
        wrong.append(f"init_lora_weights {start} (the base had been changed for it)")
    if wrong:
        raise CheckpointError(
            f"{folder}: cannot be merged rightly here, for its adapters are not simply added to weights: "
            f"{', '.join(wrong)}. Merge it with peft itself: PeftModel.merge_and_unload()."
        )


def read_adapter_weights(folder: Path) -> dict[str, Tensor]:
    """Read ``adapter_model.safetensors``, or the ``.bin`` of older folders; raises ``CheckpointError``."""
    path = folder / ADAPTER_WEIGHTS
    path = path if path.is_file() else path.with_suffix(".bin")
    return read_weights(path)[0]


def merge_shards(base: Path, adapter: Adapter, out: Path) -> None:
    """Write ``base`` with merged weights to ``out``: same files, same index, same configuration and tokenizer.

    Raises:
        CheckpointError: ``base`` holds no weights, quantised ones or others than the adapters belong to.
    """
    shards = find_shards(base)
    keys = {key for shard in shards for key in read_keys(shard)}
    places = adapter.places(keys, base)
    out.mkdir(exist_ok=True)
    for path in sorted(base.iterdir()):
        index_in_use = path.name in INDEXES and path.name.startswith(shards[0].name.partition("-")[0].partition(".")[0])
        if path.is_file() and (index_in_use or not path.name.endswith(WEIGHT_FILES)):
            shutil.copyfile(path, out / path.name)

    def change(key: str, weight: Tensor) -> Tensor:
        return adapter.merged(places[key], weight) if key in places else weight

    for shard in shards:
        merge_file(shard, change, out / shard.name)


def find_shards(base: Path) -> list[Path]:
    """The files that hold the weights of a Hugging Face folder, safetensors rather than ``.bin``."""
    config = base / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{base}: no config.json in it; expected the folder of a Hugging Face language model.")
    if json.loads(config.read_text(encoding="utf-8")).get("quantization_config"):
        raise CheckpointError(f"{base}: its weights are quantised; merge into the full language model they came from.")
    for index, single in INDEXES.items():
        if (base / index).is_file():
            names = sorted(set(json.loads((base / index).read_text(encoding="utf-8"))["weight_map"].values()))
            bad = [name for name in names if Path(name).name != name or not (base / name).is_file()]
            if bad:
                raise CheckpointError(f"{base / index}: names '{bad[0]}', which is no file in this folder.")
            return [base / name for name in names]
        if (base / single).is_file():
            return [base / single]
    raise CheckpointError(f"{base}: holds neither {' nor '.join(INDEXES.values())}, and no index of several files.")


def merge_file(path: Path, change: Change, out: Path) -> None:
    """Write one file of weights anew; its format stays, and so does what its tensors share (T5's embeddings)."""
    weights, metadata = read_weights(path)
    for key in weights:
        weights[key] = change(key, weights[key])
    if path.suffix == ".safetensors":
        save_file(weights, out, metadata=metadata)
    else:
        torch.save(weights, out)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Read a file of weights and a safetensors file's notes; never runs code that is in it."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            return load_file(path), metadata
        weights = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        if not all(isinstance(weight, Tensor) for weight in weights.values()):
            raise CheckpointError(f"{path}: holds more than tensors by name; expected the weights of a model.")
        return weights, None
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path}: not a readable file of weights ({reason}).") from error


def read_keys(path: Path) -> Iterator[str]:
    """Names of the tensors in a file of weights."""
    if path.suffix != ".safetensors":
        yield from read_weights(path)[0]
        return
    try:
        with safe_open(path, framework="pt") as file:
            yield from file.keys()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
