"""Small models with random weights on real tokenizers, and records for them, for tests of several rooms."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sightbridge.config.model import ImageSettings, ModelSettings, PromptSettings
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.models.build import build_model
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.text.turns import Turn

TOKENIZERS = Path(__file__).parent / "golden" / "llava" / "tokenizers"
IMAGE = ImageSettings(size=28, fit="pad")
SLOTS = 4
"""Tokens per picture of ``small_model``."""

TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 900,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 600,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {"llama": LLAMA, "t5": T5 | {"feed_forward_proj": "gated-gelu"}}


@cache
def small_model(language_model: str = "llama") -> VisionLanguageModel:
    """A tower of four patches, one linear layer, and a language model; the same for all who ask."""
    settings = {
        "vision_tower": {"config": TOWER, "class_token": "drop"},
        "connector": {"kind": "linear"},
        "language_model": {"config": LANGUAGE_MODELS[language_model]},
        "prompt": {"template": "plain"},
    }
    return build_model(ModelSettings.model_validate(settings))


def make_processor(
    template: str = "vicuna_v1",
    tokenizer: str = "llama",
    image: ImageSettings = IMAGE,
    encoder_decoder: bool = False,
    seed: int = 0,
    **prompt: Any,
) -> Processor:
    """A processor for ``small_model``; ``prompt`` are more of its prompt settings."""
    return Processor(
        load_tokenizer(TOKENIZERS / tokenizer),
        PromptSettings(template=template, **prompt),
        image,
        tokens_per_image=SLOTS,
        encoder_decoder=encoder_decoder,
        seed=seed,
    )


def picture(seed: int, width: int = 20, height: int = 30) -> np.ndarray:
    """Noise (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def record(name: str, *texts: str | None, images: int = 0, where: str = "") -> Record:
    """A conversation of ``texts``, the user's and the assistant's in turn, about so many pictures."""
    turns = tuple(Turn(role, text) for role, text in zip(["user", "assistant"] * 5, texts, strict=False))
    return Record(name, tuple(picture(n) for n in range(images)), turns, where=where)
