"""Requests a second and how long each takes, at 1, 4 and 16 clients: the engine beside answers given one by one.

python benchmarks/serving.py [--clients 1 4 16] [--requests 32] [--device cpu] [--dtype float32] [--large]

A client sends its next request when it has the answer to the last. One by one, a lock lets one client at a time call
``generation.answer``. Both ways take turns in one run on the same model, with the same requests: distinct pictures,
questions of several lengths, answers of 32 to 128 tokens. CPU seconds do not depend on what else the machine is doing.
Afterwards: questions about a picture that was asked about before, beside those about new ones; and four times as many
clients as there is room for, each of which is answered or refused.

The model has random weights. Its parts stand in about the proportions of BLIP-2 with OPT-2.7b: a ViT at 224 pixels, a
Q-Former of 32 queries, and a decoder of 42 million weights (``--large`` takes 1.1 billion, for a GPU).
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sightbridge.config.generation import GenerationSettings
from sightbridge.config.model import ImageSettings, ModelSettings, PromptSettings
from sightbridge.data.processor import Processor
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.generation.answer import answer
from sightbridge.models.build import build_model
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.serving.engines.engine import Engine, QueueFull
from sightbridge.serving.engines.request import Request
from sightbridge.text.turns import Turn

TOKENIZERS = Path(__file__).parents[1] / "tests" / "golden" / "llava" / "tokenizers"
QUESTIONS = (
    "What is it?",
    "Is the yellow dog near a bus?",
    "Describe the picture concisely: who rides the horse, and who sits behind the large tree with an umbrella?",
)
SMALL = {"tower": (384, 8, 6), "qformer": (384, 6, 6), "decoder": (512, 8, 8)}
LARGE = {"tower": (1024, 24, 16), "qformer": (768, 12, 12), "decoder": (2048, 20, 16)}
"""Width, layers and heads of every part."""

Ask = Callable[[Request], int]
"""Answers a request; returns how many characters it wrote."""


class Measured(NamedTuple):
    """Of one way at one number of clients: seconds of every request, of all, and of the processors."""

    each: list[float]
    wall: float
    cpu: float


def make_model(sizes: dict[str, tuple[int, int, int]], device: str, dtype: torch.dtype) -> VisionLanguageModel:
    """Random weights, the same in every run."""

    def shape(part: str) -> dict[str, int]:
        width, layers, heads = sizes[part]
        return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}

    tower = {**shape("tower"), "intermediate_size": 4 * sizes["tower"][0], "image_size": 224, "patch_size": 14}
    decoder = {**shape("decoder"), "intermediate_size": 11 * sizes["decoder"][0] // 4, "vocab_size": 32000}
    width, layers, heads = sizes["qformer"]
    qformer = {"num_queries": 32, "hidden_size": width, "num_layers": layers, "num_heads": heads}
    settings = {
        "vision_tower": {"config": {"model_type": "clip_vision_model", **tower}},
        "connector": {"kind": "qformer", **qformer, "intermediate_size": 4 * width},
        "language_model": {"config": {"model_type": "llama", **decoder, "tie_word_embeddings": True}},
        "prompt": {"template": "vicuna_v1"},
    }
    return build_model(ModelSettings.model_validate(settings)).eval().to(device, dtype)


def make_requests(count: int, *, seed: int, pictures: int | None = None, tokens: int | None = None) -> list[Request]:
    """Questions about so many pictures (by default one each); an answer ends at its greatest length alone."""
    rng, pixels = random.Random(seed), np.random.default_rng(seed)
    shown = [pixels.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(pictures or count)]
    requests = []
    for number in range(count):
        turns = (Turn("user", f"<image>\n{rng.choice(QUESTIONS)}"), Turn("assistant", None))
        length = tokens or rng.randint(32, 128)
        settings = GenerationSettings(max_new_tokens=length, min_new_tokens=length)
        requests.append(Request(turns, (shown[number % len(shown)],), settings=settings))
    return requests


def one_by_one(model: VisionLanguageModel, processor: Processor) -> Ask:
    """A server that handles a request when the last one is done."""
    lock = threading.Lock()

    def ask(request: Request) -> int:
        with lock:
            return len(answer(model, processor, request.images, request.turns[0].text or "", request.settings))

    return ask


def send(ask: Ask, requests: list[Request], clients: int) -> Measured:
    """Let so many clients share out the requests."""

    def timed(request: Request) -> float:
        start = time.perf_counter()
        ask(request)
        return time.perf_counter() - start

    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        each = list(pool.map(timed, requests))
    return Measured(each, time.perf_counter() - start, time.process_time() - cpu)


def compare(engine: Engine, single: Ask, clients: int, count: int, rounds: int) -> None:
    """Both ways at one number of clients, in turns; prints a row of each, with its ratio to answers one by one."""
    taken: dict[str, list[Measured]] = {"one by one": [], "engine": []}
    for number in range(rounds):
        requests = make_requests(count, seed=100 * clients + number)
        taken["one by one"].append(send(single, requests, clients))
        taken["engine"].append(send(lambda request: len(engine.submit(request).result()[0]), requests, clients))
    rates = {}
    for way, runs in taken.items():
        each = sorted(seconds for run in runs for seconds in run.each)
        rates[way] = len(each) / sum(run.wall for run in runs)
        cpu = sum(run.cpu for run in runs) / len(each)
        half, late = statistics.median(each), each[min(len(each) - 1, round(0.99 * len(each)))]
        ratio = rates[way] / rates["one by one"]
        print(
            f"| {clients} | {way} | {rates[way]:.2f} | {ratio:.2f}x | {half:.2f} | {late:.2f} | {cpu:.2f} |", flush=True
        )


def compare_pictures(engine: Engine, count: int) -> None:
    """Short answers about new pictures and about one that the engine has seen, in turns."""
    seconds: dict[str, list[float]] = {"new": [], "seen": []}
    known = make_requests(count, seed=1, pictures=1, tokens=4)
    engine.submit(known[0]).result()
    for new, seen in zip(make_requests(count, seed=2, tokens=4), known, strict=True):
        for name, request in (("new", new), ("seen", seen)):
            start = time.perf_counter()
            engine.submit(request).result()
            seconds[name].append(time.perf_counter() - start)
    new, seen = (statistics.median(seconds[name]) for name in ("new", "seen"))
    print(f"\nAnswers of 4 tokens, median: new picture {new:.3f} s, seen before {seen:.3f} s, ratio {new / seen:.2f}x")


def overload(model: VisionLanguageModel, processor: Processor) -> None:
    """Four times as many requests at once as may run and wait."""
    engine = Engine(model, processor, name="overload", max_batch=8, max_queue=8)
    requests, refusals = make_requests(64, seed=3, pictures=4, tokens=8), []

    def ask(request: Request) -> int:
        try:
            return len(engine.submit(request).result()[0])
        except QueueFull as error:
            refusals.append(error.retry_after)
            return 0

    send(ask, requests, len(requests))
    stats = engine.stats()
    engine.close()
    done = int(stats["finished"])
    print(f"\n{len(requests)} requests at once, room for 16: {done} answered, {len(refusals)} refused, ", end="")
    print(f"{len(requests) - done - len(refusals)} lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=32, help="in every round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--large", action="store_true")
    options: Any = parser.parse_args()
    model = make_model(LARGE if options.large else SMALL, options.device, getattr(torch, options.dtype))
    processor = Processor(
        load_tokenizer(TOKENIZERS / "llama"),
        PromptSettings(template="vicuna_v1"),
        ImageSettings(size=224),
        tokens_per_image=model.tokens_per_image,
        encoder_decoder=False,
    )
    weights = {
        name: sum(weight.numel() for weight in getattr(model, name).parameters()) / 1e6
        for name in ("vision_tower", "connector", "language_model")
    }
    told = ", ".join(f"{name} {millions:.0f} M" for name, millions in weights.items())
    threads = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {options.device}, {threads}; {told}\n")
    print("| clients | way | requests/s | ratio | p50 s | p99 s | CPU s a request |\n| ---: | --- |" + " ---: |" * 5)
    engine, single = Engine(model, processor, name="engine", max_batch=16), one_by_one(model, processor)
    for ask in (single, lambda request: len(engine.submit(request).result()[0])):
        send(ask, make_requests(2, seed=0, tokens=4), 2)  # first calls pay for more than themselves
    for clients in options.clients:
        compare(engine, single, clients, options.requests if clients > 1 else options.requests // 4, options.rounds)
    compare_pictures(engine, 8)
    engine.close()
    overload(model, processor)


if __name__ == "__main__":
    main()
