"""Memory that converting takes, against the largest file of the checkpoint that is converted. Prints a Markdown table.

python benchmarks/convert_memory.py [--layers 3] [--shards 3] [--folder /tmp/convert_memory]

Writes a checkpoint in LLaVA-1.5-7B's own layout with random numbers in half precision (CLIP-L/336, an MLP of two
layers, a Llama of width 4096; 32 layers are the whole 7B), converts it with ``sightbridge convert`` in a process of its
own, and watches that: its largest resident set as the system counts it (VmHWM; getrusage would count the process that
started it, too), and the memory that is its own and not a file's (anonymous, looked at 20 times a second). The folder
is removed at the end; it needs twice the checkpoint's size on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import sightbridge.parents
from sightbridge.checkpoints.sources.weights import TensorInfo, Weights, open_weights
from sightbridge.checkpoints.sources.writer import write_sharded

WIDTH, INNER, VOCABULARY = 4096, 11008, 32000
TOWER_WIDTH, TOWER_INNER, TOWER_LAYERS, PATCHES = 1024, 4096, 24, 576
CONFIG = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava_llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": TOWER_WIDTH,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_use_im_start_end": False,
    "image_aspect_ratio": "pad",
}
SAMPLES_A_SECOND = 20


class Random(Weights):
    """Random numbers under given names, made when they are read."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        infos = {name: TensorInfo(shape, torch.float16, Path("random")) for name, shape in shapes.items()}
        super().__init__(Path("random"), "memory", infos)

    def read(self, name: str) -> Tensor:
        """Draw a tensor."""
        return torch.empty(self.infos[name].shape, dtype=torch.float16).normal_(std=0.02)


class Watched(NamedTuple):
    """Largest resident set and largest anonymous memory, in bytes; seconds; exit status."""

    resident: int
    anonymous: int
    seconds: float
    status: int


def main() -> None:
    """Write, convert, watch, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--layers", type=int, default=3, help="of the language model; 32 are the 7B's")
    arguments.add_argument("--shards", type=int, default=3, help="files that the checkpoint is written in")
    arguments.add_argument("--folder", type=Path, default=Path("/tmp/convert_memory"))
    given = arguments.parse_args()
    weights = Random(shapes(given.layers))
    total = sum(info.bytes for info in weights.infos.values())
    given.folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(given.folder).free < 2.2 * total:
        sys.exit(f"{given.folder}: needs {2.2 * total / 2**30:.0f} GiB of free disk")
    try:
        source, out = given.folder / "source", given.folder / "out"
        files = write_source(source, weights, given.layers, -(-total // given.shards))
        baseline = watch([sys.executable, "-c", "import sightbridge.checkpoints.convert"])
        watched = watch([sys.executable, "-m", "sightbridge", "convert", str(source), str(out)])
        if watched.status:
            sys.exit(f"convert failed with status {watched.status}")
        check_equal(source, out)
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)
    largest, bar = max(files), 1.3 * max(files) + 2**30
    print("| checkpoint | files | largest | resident | anonymous | libraries alone | bar | minutes |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| {gib(total)} | {len(files)} | {gib(largest)} | {gib(watched.resident)} | {gib(watched.anonymous)} "
        f"| {gib(baseline.resident)} | {gib(bar)} | {watched.seconds / 60:.1f} |"
    )
    if watched.resident > bar:
        sys.exit("the bar of 1.3 x the largest file + 1 GiB is not met")


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LLaVA-1.5 in its own layout, tower included."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        names = f"model.layers.{layer}."
        found |= {f"{names}self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
        found |= {f"{names}mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
        found[f"{names}mlp.down_proj.weight"] = (WIDTH, INNER)
        found |= {f"{names}{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
    found |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}
    for layer, width in (("0", TOWER_WIDTH), ("2", WIDTH)):
        found |= {f"model.mm_projector.{layer}.weight": (WIDTH, width), f"model.mm_projector.{layer}.bias": (WIDTH,)}
    return found | {f"model.vision_tower.vision_tower.vision_model.{n}": s for n, s in tower_shapes().items()}


def tower_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of CLIP-L/336's vision model."""
    found: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (TOWER_WIDTH,),
        "embeddings.patch_embedding.weight": (TOWER_WIDTH, 3, 14, 14),
        "embeddings.position_embedding.weight": (PATCHES + 1, TOWER_WIDTH),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for layer in range(TOWER_LAYERS):
        names = f"encoder.layers.{layer}."
        norms += [f"{names}layer_norm1", f"{names}layer_norm2"]
        linear = {f"self_attn.{part}_proj": (TOWER_WIDTH, TOWER_WIDTH) for part in ("q", "k", "v", "out")}
        linear |= {"mlp.fc1": (TOWER_INNER, TOWER_WIDTH), "mlp.fc2": (TOWER_WIDTH, TOWER_INNER)}
        for part, shape in linear.items():
            found |= {f"{names}{part}.weight": shape, f"{names}{part}.bias": shape[:1]}
    return found | {f"{norm}.{part}": (TOWER_WIDTH,) for norm in norms for part in ("weight", "bias")}


def write_source(folder: Path, weights: Weights, layers: int, max_shard_bytes: int) -> list[int]:
    """Write the checkpoint, with the tokenizer of the shipped decoder; returns the bytes of its files."""
    files = write_sharded(folder, weights, max_shard_bytes=max_shard_bytes)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}), encoding="utf-8")
    for path in (Path(sightbridge.parents.__file__).parent / "decoder").glob("tokenizer*"):
        shutil.copy(path, folder)
    return [path.stat().st_size for path in files]


def watch(command: list[str]) -> Watched:
    """Run a command and look at its memory until it ends."""
    start = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    resident = anonymous = 0
    place = Path(f"/proc/{process.pid}")
    while process.poll() is None:
        try:
            resident = max(resident, kilobytes(place / "status", "VmHWM"))
            anonymous = max(anonymous, kilobytes(place / "smaps_rollup", "Anonymous"))
        except (OSError, KeyError):  # it has just ended
            pass
        time.sleep(1 / SAMPLES_A_SECOND)
    return Watched(resident * 1024, anonymous * 1024, time.monotonic() - start, process.returncode)


def kilobytes(path: Path, name: str) -> int:
    """A number that the system tells of a process."""
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0])


def check_equal(source: Path, out: Path) -> None:
    """Compare a weight of every twentieth name of the language model with the one it was made from."""
    before, after = open_weights(source), open_weights(out / "language_model")
    for name in list(after.infos)[::20]:
        assert torch.equal(before.read(name), after.read(name)), name


def gib(size: float) -> str:
    """Bytes for the table."""
    return f"{size / 2**30:.2f} GiB"


if __name__ == "__main__":
    main()
