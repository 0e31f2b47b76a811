"""A step of BLIP-2's second stage with and without a feature cache: frozen ViT, trained Q-Former, frozen LM.

OMP_NUM_THREADS=1 python benchmarks/stage2_step.py [--batch-size 4] [--steps 5] [--dtype bfloat16]

Both are timed in one run, taking turns, from rows to the end of the optimiser step; the cache is one on disk. Prints a
Markdown table, the share of the work that is frozen as counted by torch.utils.flop_counter, and the speed-up that this
share allows at best. Sizes are those of a small BLIP-2 (about 1/30 of the real one in every part), so that it ends
within a minute on two cores. CPU seconds do not depend on what else the machine is doing.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from sightbridge.batch import Batch
from sightbridge.config.model import (
    ConnectorSettings,
    ImageSettings,
    LanguageModelSettings,
    ModelSettings,
    PromptSettings,
    VisionTowerSettings,
)
from sightbridge.config.training import OptimSettings, PartsSettings
from sightbridge.data.feature_cache import CacheKey, FeatureCache, write_key
from sightbridge.data.feature_cache_build import build_entries
from sightbridge.data.feature_store import View, Views
from sightbridge.models.build import build_model
from sightbridge.models.parts import set_trainable
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.training.loop import make_accelerator
from sightbridge.training.optim import build_optimizer
from sightbridge.training.step import training_step

IMAGE = ImageSettings(size=224)
QUERIES, TEXT = 32, 20
MODEL = ModelSettings(
    vision_tower=VisionTowerSettings(
        config={
            "model_type": "blip_2_vision_model",
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "image_size": 224,
            "patch_size": 14,
        },
        layers=[-1],
    ),
    connector=ConnectorSettings(
        kind="qformer",
        num_queries=QUERIES,
        hidden_size=256,
        num_layers=4,
        num_heads=4,
        intermediate_size=1024,
        dropout=0.0,
    ),
    language_model=LanguageModelSettings(
        config={
            "model_type": "opt",
            "vocab_size": 8000,
            "hidden_size": 512,
            "word_embed_proj_dim": 512,
            "ffn_dim": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "dropout": 0.0,
            "max_position_embeddings": 128,
        }
    ),
    prompt=PromptSettings(template="blip2_plain"),
    image=IMAGE,
)
"""Work is split about as with ViT-g and FlanT5-XL: three fifths of it are in the frozen tower."""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each kind, after one that is not")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16", "fp8"])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), chosen.batch_size, chosen.steps, chosen.dtype)


def measure(folder: Path, batch_size: int, steps: int, dtype: str) -> None:
    """Time both kinds of step, taking turns."""
    model = build_model(MODEL)
    set_trainable(model, PartsSettings())
    model.train()
    views = Views(IMAGE)
    pictures = [View(path) for path in draw(folder, batch_size)]
    cache = fill(folder / "cache", pictures, views, model, dtype)
    accelerator = make_accelerator("fp32")
    optimizer = build_optimizer(model, PartsSettings(), OptimSettings())
    seconds: dict[str, list[float]] = {"uncached": [], "cached": []}
    waits: dict[str, list[float]] = {"uncached": [], "cached": []}
    busy: dict[str, list[float]] = {"uncached": [], "cached": []}
    for _ in range(steps + 1):
        for kind in seconds:
            began, began_working = time.perf_counter(), time.process_time()
            batch = make_batch(pictures, views, cache if kind == "cached" else None)
            waits[kind].append(time.perf_counter() - began)
            training_step(accelerator, model, optimizer, [batch], 1.0)
            seconds[kind].append(time.perf_counter() - began)
            busy[kind].append(time.process_time() - began_working)
    work = {kind: count(accelerator, model, pictures, views, store) for kind, store in
            {"uncached": None, "cached": cache}.items()}  # fmt: skip
    show(seconds, busy, waits, work, batch_size, dtype)


def draw(folder: Path, number: int) -> list[Path]:
    """Write photographs' stand-ins: 640 x 480 JPEG files."""
    random = np.random.default_rng(0)
    paths = [folder / f"{index}.jpg" for index in range(number)]
    for path in paths:
        coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def fill(folder: Path, pictures: list[View], views: Views, model: VisionLanguageModel, dtype: str) -> FeatureCache:
    """Store the tower's output for all pictures."""
    key = CacheKey(prefix="tower", weights={}, parts={}, image={}, precision="fp32", dtype=dtype)  # type: ignore[arg-type]
    inner = write_key(folder, key, {})
    cache = FeatureCache(folder, key, views)
    build_entries(inner, cache.missing(cache.entries(pictures)), views, model.encode_images, key.dtype)
    cache.reload()
    return cache


def make_batch(pictures: list[View], views: Views, cache: FeatureCache | None) -> Batch:
    """A batch of captions of random words behind their pictures: open and transform these, or look them up."""
    rows = len(pictures)
    ids = torch.randint(4, 8000, (rows, QUERIES + TEXT), generator=torch.Generator().manual_seed(0))
    slots = torch.zeros_like(ids, dtype=torch.bool)
    slots[:, :QUERIES] = True
    return Batch(
        input_ids=ids.masked_fill(slots, 1),
        attention_mask=torch.ones_like(ids),
        image_slots=slots,
        images_per_row=torch.ones(rows, dtype=torch.long),
        pixel_values=torch.stack([views.open(view) for view in pictures]) if cache is None else None,
        image_features=None if cache is None else torch.stack([cache[view] for view in pictures]),
        labels=ids.masked_fill(slots, -100),
        n_target_tokens=rows * TEXT,
        ids=tuple(str(row) for row in range(rows)),
    )


def count(
    accelerator: Accelerator, model: VisionLanguageModel, pictures: list[View], views: Views, cache: FeatureCache | None
) -> int:
    """Floating-point operations of a step, forward and backward."""
    optimizer = build_optimizer(model, PartsSettings(), OptimSettings())
    with FlopCounterMode(display=False) as counter:
        training_step(accelerator, model, optimizer, [make_batch(pictures, views, cache)], 1.0)
    return counter.get_total_flops()


def show(
    seconds: dict[str, list[float]],
    busy: dict[str, list[float]],
    waits: dict[str, list[float]],
    work: dict[str, int],
    batch_size: int,
    dtype: str,
) -> None:
    """Print the table; the first step of each kind warms up and is left out."""
    machine = platform.processor() or platform.machine()
    print(
        f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch size {batch_size}, {dtype}\n"
    )
    print("| step | seconds (median) | of these: making the batch | ratio | CPU seconds | ratio | GFLOP | ratio |")
    print(f"|{' --- |' * 8}")
    measurements = (seconds, busy, waits)
    times, cpu, waited = (
        {kind: statistics.median(values[1:]) for kind, values in measured.items()} for measured in measurements
    )
    for kind in seconds:
        ratios = [f"{values['uncached'] / values[kind]:.2f}x" for values in (times, cpu, work)]
        print(
            f"| {kind} | {times[kind]:.3f} | {waited[kind]:.3f} | {ratios[0]} | {cpu[kind]:.3f} | {ratios[1]} "
            f"| {work[kind] / 1e9:.1f} | {ratios[2]} |"
        )
    frozen = 1 - work["cached"] / work["uncached"]
    print(f"\nFrozen share of the work: {frozen:.0%}, so at best {1 / (1 - frozen):.2f}x from work alone.")


if __name__ == "__main__":
    main()
