"""VQAScores of every picture with every text, beside a plain restatement of t2v_metrics' loops, on the same model.

OMP_NUM_THREADS=1 python benchmarks/scoring.py [--pictures 3] [--texts 8] [--rounds 2] [--only NAME]

t2v_metrics takes the pictures one by one and hands its model each path as often as there are texts, so a file is
opened, fitted, and put through the tower once for every text. Its release of 2024 does that in batches of one
picture's texts, v3 one pair at a time; both are restated here, with our own transform and model, so that only the
order of the work differs. All ways take turns in one run and must give the same scores. Prints a Markdown table; CPU
seconds do not depend on what else the machine is doing, and FLOP (torch.utils.flop_counter) not on the machine.

The models have random weights and small widths, but 336-pixel pictures of 576 tokens, and in each the work is split
between tower and language model about as in the model it is named after.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sightbridge.config.model import ImageSettings, ModelSettings, PromptSettings
from sightbridge.data.processor import Processor, Row
from sightbridge.data.record import Record
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.images.load import load_image
from sightbridge.models.build import build_model
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.scoring import Scorer, make_backend
from sightbridge.text.turns import Turn

TOKENIZERS = Path(__file__).parents[1] / "tests" / "golden" / "llava" / "tokenizers"
IMAGE = ImageSettings(size=336, fit="pad")
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
SUBJECTS = ("a yellow dog", "two cats", "a man with an umbrella", "a large tree")
PLACES = ("near a bus", "on a horse", "behind a table, under a red lamp", "in the snow")


def tower(width: int, layers: int) -> dict[str, Any]:
    """CLIP with 14-pixel patches at 336 pixels; LLaVA's choice of the last layer but one."""
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers + 1}
    config = {
        "model_type": "clip_vision_model",
        "image_size": 336,
        "patch_size": 14,
        "num_attention_heads": width // 32,
    }
    return {"config": config | shape, "layers": [-2], "class_token": "drop"}


def t5(width: int, layers: int) -> dict[str, Any]:
    """An encoder-decoder in T5 1.1's shape."""
    shape = {"d_model": width, "d_ff": int(2.5 * width), "num_layers": layers, "num_heads": width // 32, "d_kv": 32}
    return {
        "model_type": "t5",
        "vocab_size": 600,
        "decoder_start_token_id": 0,
        "feed_forward_proj": "gated-gelu",
    } | shape


def llama(width: int, layers: int) -> dict[str, Any]:
    """A decoder-only model in Llama's shape."""
    shape = {"hidden_size": width, "intermediate_size": int(2.7 * width), "num_hidden_layers": layers}
    return {"model_type": "llama", "vocab_size": 900, "num_attention_heads": width // 32} | shape


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "encoder-decoder, the tower dominates": (tower(256, 8), t5(128, 2)),
    "encoder-decoder, CLIP-L : FlanT5-XL": (tower(128, 4), t5(256, 6)),
    "decoder-only, the tower dominates": (tower(256, 8), llama(128, 2)),
    "decoder-only, CLIP-L : 7B": (tower(128, 4), llama(320, 8)),
}


class Measured(NamedTuple):
    """One way to score: wall seconds and CPU seconds of every round, and floating-point operations."""

    seconds: list[float]
    busy: list[float]
    flop: int


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="timed rounds of each way, after a small one that is not")
    parser.add_argument("--only", help="run the cases whose name holds this")
    chosen = parser.parse_args()
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}; ", end="")
    print(f"{chosen.pictures} pictures of 640 x 480, {chosen.texts} texts\n")
    print(
        "| model | tower's share of a pair | way | seconds | CPU seconds | ratio | GFLOP | ratio |\n"
        + "| --- " * 8
        + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        pictures = draw(Path(folder), chosen.pictures)
        for name, parts in CASES.items():
            if not chosen.only or chosen.only in name:
                measure(name, *parts, pictures, make_texts(chosen.texts), chosen.rounds)


def make_texts(count: int) -> list[str]:
    """Different captions of several lengths."""
    return [f"{SUBJECTS[i % 4]} {PLACES[i // 4 % 4]}" + ", again" * (i // 16) for i in range(count)]


def draw(folder: Path, number: int) -> list[Path]:
    """Write photographs' stand-ins: 640 x 480 JPEG files."""
    random = np.random.default_rng(0)
    paths = [folder / f"{index}.jpg" for index in range(number)]
    for path in paths:
        coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def build(vision: dict[str, Any], language: dict[str, Any]) -> tuple[VisionLanguageModel, Processor]:
    """A model of random weights with a two-layer connector, and its processor."""
    is_t5 = language["model_type"] == "t5"
    prompt = {"template": "t5_v1" if is_t5 else "vicuna_v1"}
    connector = {"kind": "mlp", "layers": 2}
    parts = {"vision_tower": vision, "connector": connector, "language_model": {"config": language}, "prompt": prompt}
    model = build_model(ModelSettings.model_validate(parts)).eval()
    tokenizer = load_tokenizer(TOKENIZERS / ("t5" if is_t5 else "llama"))
    tokens = model.tokens_per_image
    return model, Processor(tokenizer, PromptSettings(**prompt), IMAGE, tokens_per_image=tokens, encoder_decoder=is_t5)


def one_by_one(model: VisionLanguageModel, processor: Processor, images: list[Path], texts: list[str]) -> Tensor:
    """t2v_metrics v3: everything for every pair."""
    return torch.stack([torch.cat([_forward(model, processor, [i], [t]) for t in texts]) for i in images])


def picture_by_picture(
    model: VisionLanguageModel, processor: Processor, images: list[Path], texts: list[str]
) -> Tensor:
    """t2v_metrics of 2024: a batch for every picture, which it holds once for every text."""
    return torch.stack([_forward(model, processor, [image] * len(texts), texts) for image in images])


@torch.no_grad()
def _forward(model: VisionLanguageModel, processor: Processor, images: list[Path], texts: list[str]) -> Tensor:
    """Open, fit and encode every picture, run the whole model, take the cross entropy row by row."""
    pixels = torch.stack([processor.transform(load_image(image)) for image in images])
    turns = [(Turn("user", f"<image>\n{QUESTION.format(text)}"), Turn("assistant", "Yes")) for text in texts]
    encoded = [processor.encode(Record("pair", ("",), pair)) for pair in turns]
    batch = processor.collate([Row("pair", row, one[None]) for row, one in zip(encoded, pixels, strict=True)])
    assert batch.labels is not None
    logits, labels = model.logits(batch), batch.labels
    if not processor.encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = [torch.nn.functional.cross_entropy(one, target) for one, target in zip(logits, labels, strict=True)]
    return (-torch.stack(losses)).exp()


def measure(
    name: str, vision: dict[str, Any], language: dict[str, Any], images: list[Path], texts: list[str], rounds: int
) -> None:
    """Let all ways take turns, check that they agree, and print their rows."""
    model, processor = build(vision, language)
    scorer = Scorer(make_backend(model, processor), batch_size=max(len(texts), 8))
    ways: dict[str, Callable[[list[Path], list[str]], Tensor]] = {
        "pair by pair (v3)": lambda i, t: one_by_one(model, processor, i, t),
        "picture by picture (2024)": lambda i, t: picture_by_picture(model, processor, i, t),
        "sightbridge": lambda i, t: scorer.score(i, t),
    }
    found: dict[str, Measured] = {}
    tables = {}
    for way, score in ways.items():
        with FlopCounterMode(display=False) as counter:
            tables[way] = score(images[:1], texts)
        found[way] = Measured([], [], counter.get_total_flops() * len(images))
    for way, table in tables.items():
        torch.testing.assert_close(table, tables["sightbridge"], rtol=1e-4, atol=1e-8, msg=f"{way} has other scores")
    for _ in range(rounds):
        for way, score in ways.items():
            began, working = time.perf_counter(), time.process_time()
            score(images, texts)
            found[way].seconds.append(time.perf_counter() - began)
            found[way].busy.append(time.process_time() - working)
    show(name, found, tower_share(model, processor, images[0], texts[0]))


def tower_share(model: VisionLanguageModel, processor: Processor, image: Path, text: str) -> float:
    """Share of a pair's floating-point operations that the tower has."""
    pixels = processor.transform(load_image(image))[None]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_images(pixels)
    seen = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        _forward(model, processor, [image], [text])
    return seen / counter.get_total_flops()


def show(name: str, found: dict[str, Measured], share: float) -> None:
    """Print a row for each way; ratios are against sightbridge."""
    own = found["sightbridge"]
    for way, measured in found.items():
        seconds, busy = statistics.median(measured.seconds), statistics.median(measured.busy)
        ratios = busy / statistics.median(own.busy), measured.flop / own.flop
        print(f"| {name} | {share:.0%} | {way} | {seconds:.2f} | {busy:.2f} | {ratios[0]:.1f}x ", end="")
        print(f"| {measured.flop / 1e9:.0f} | {ratios[1]:.1f}x |", flush=True)


if __name__ == "__main__":
    main()
