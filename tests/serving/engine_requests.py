"""Engines on small models, requests of all sorts for them, and the answers that they must give."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Semaphore
from typing import Any

import torch
from builders import LANGUAGE_MODELS
from pytest import MonkeyPatch
from score_models import T5, lively_model

from sightbridge.config.generation import GenerationSettings
from sightbridge.config.model import ModelSettings
from sightbridge.data.processor import Processor
from sightbridge.generation.answer import stream_batch
from sightbridge.models.build import build_model
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.serving.engines.engine import Engine
from sightbridge.serving.engines.request import Request
from sightbridge.serving.engines.slots import Prefilled, make_rows
from sightbridge.text.turns import Turn
from small_models import TOWER, make_processor, picture

LARGER = {"vocab_size": 900, "max_position_embeddings": 512}
WORDS = ["what", "left", "of", "a", "large", "tree", "near", "the", "yellow", "bus", "and", "who", "rides"]


@cache
def model_of(family: str) -> VisionLanguageModel:
    """A model with lively weights on a vocabulary that the test tokenizers know."""
    if family not in ("bart", "gemma2", "umt5", "mt5"):
        return lively_model(family)
    sizes = LANGUAGE_MODELS[family] | LARGER if family in ("bart", "gemma2") else T5 | {"decoder_start_token_id": 0}
    settings = {
        "vision_tower": {"config": TOWER, "class_token": "drop"},
        "connector": {"kind": "linear"},
        "language_model": {"config": {**sizes, "model_type": family}},
        "prompt": {"template": "plain"},
    }
    torch.manual_seed(5)
    model = build_model(ModelSettings.model_validate(settings)).eval()
    generator = torch.Generator().manual_seed(6)
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "vision_tower" not in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.5
    return model


def processor_of(family: str) -> Processor:
    is_t5 = family in ("t5", "mt5", "umt5", "bart")
    return make_processor("t5_v1" if is_t5 else "vicuna_v1", "t5" if is_t5 else "llama", encoder_decoder=is_t5)


@contextmanager
def engine_of(family: str, **options: Any) -> Iterator[Engine]:
    engine = Engine(model_of(family), processor_of(family), name=family, **options)
    try:
        yield engine
    finally:
        if isinstance(engine._rows, Gate):
            engine._rows.open()
        engine.close(drain=False)


def ask(text: str = "What is it?", images: int = 1, first: int = 0, **options: Any) -> Request:
    """A question about so many pictures from number ``first`` on; ``options`` are settings, and ``logprobs``."""
    logprobs = options.pop("logprobs", None)
    turns = (Turn("user", "<image> " * images + text), Turn("assistant", None))
    pictures = tuple(picture(first + number) for number in range(images))
    return Request(turns, pictures, settings=GenerationSettings(**options), logprobs=logprobs)


def random_request(rng: random.Random) -> Request:
    """Mixed lengths, pictures, turns and settings."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))
    ways: list[dict[str, Any]] = [
        {},
        {"sample": True, "seed": rng.randrange(99), "temperature": rng.choice([0.7, 3.0])},
        {"sample": True, "seed": rng.randrange(99), "top_p": 0.9, "top_k": 40, "temperature": 2.0},
        {"repetition_penalty": 1.5},
        {"stop": [rng.choice(["e", "th", " a"])]},
        {"min_new_tokens": 5},
    ]
    request = ask(
        text, rng.choice([0, 0, 1, 1, 2]), rng.randrange(4), max_new_tokens=rng.randint(5, 24), **rng.choice(ways)
    )
    if rng.random() < 0.3:
        earlier = (Turn("user", rng.choice(WORDS)), Turn("assistant", " ".join(rng.choices(WORDS, k=4))))
        return Request((*earlier, *request.turns), request.images, settings=request.settings)
    return request


def alone(family: str, request: Request) -> str:
    """What ``generation`` answers to it."""
    processor = processor_of(family)
    batch = processor([request.record], for_generation=True)
    return "".join(stream_batch(model_of(family), processor, batch, request.settings))


class Gate:
    """Rows whose steps wait until a test lets them go; ``size`` rows have joined and not left.

    ``is_shut``: whether the engine stands before it.
    """

    def __init__(self, monkeypatch: MonkeyPatch) -> None:
        self.size = self.steps = 0
        self.is_shut = False
        self.spoil: Callable[[torch.Tensor], None] | None = None
        self._open = Semaphore(0)
        monkeypatch.setattr("sightbridge.serving.engines.engine.make_rows", self._wrap)

    def _wrap(self, language_model: Any) -> Gate:
        self.size, self._rows = 0, make_rows(language_model)
        return self

    def add(self, row: Prefilled) -> None:
        self._rows.add(row)
        self.size += 1

    def drop(self, index: int) -> None:
        self._rows.drop(index)
        self.size -= 1

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        self.is_shut = True
        self._open.acquire()
        self.is_shut = False
        logits = self._rows.step(tokens)
        self.steps += 1
        if self.spoil:
            self.spoil(logits)
        return logits

    def let(self, steps: int = 1) -> None:
        """Let so many steps happen, and wait for them."""
        until = self.steps + steps
        for _ in range(steps):
            self._open.release()
        wait_until(lambda: self.steps >= until)

    def open(self) -> None:
        """Let all steps happen from now on."""
        self._open.release(100_000)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that other threads do; an error if they do not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)
