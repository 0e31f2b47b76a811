"""Generated ids against transformers' own vision-language classes, and against the reference implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_batch
from lively import PAD
from test_parity_golden import IMAGE_MARKER, clip_flant5, slots_at_markers, vip_llava
from test_parity_transformers import PLACEHOLDER, blip2, llava

from sightbridge.config.generation import GenerationSettings
from sightbridge.generation.generate import generate
from sightbridge.models.vlm import VisionLanguageModel

GOLDEN = Path(__file__).parents[1] / "golden" / "llava" / "generate"
PAIRS: dict[str, Any] = {
    "Blip2, OPT": lambda: blip2("opt"),
    "Blip2, T5": lambda: blip2("t5"),
    "Llava": lambda: llava("llava"),
    "VipLlava": lambda: llava("vipllava"),
}
LENGTH = 10


def sharpen(ours: VisionLanguageModel, theirs: Any) -> None:
    """Make the weights of both language models large enough for answers that are not one token over and over."""
    own = ours.language_model.model
    generator = torch.Generator().manual_seed(4)
    weights = {
        name: torch.randn(weight.shape, generator=generator) * (0.2 if "embed" in name or "shared" in name else 0.7)
        for name, weight in own.state_dict().items()
        if weight.dim() == 2
    }
    own.load_state_dict(weights, strict=False)
    if hasattr(theirs, "language_model"):
        theirs.language_model.load_state_dict(own.state_dict())
    else:
        theirs.model.language_model.load_state_dict(own.model.state_dict())
        theirs.lm_head.load_state_dict(own.lm_head.state_dict())


@pytest.mark.parametrize("name", PAIRS)
def test_parity_generate_transformers(name: str) -> None:
    ours, theirs = PAIRS[name]()
    sharpen(ours, theirs)
    # transformers' models write the placeholder like any other token; ours has no such token to leave out
    batch = make_batch(ours, [(1, 1, 6), (2, 2, 5), (3, 0, 7)], padding="left")
    batch.input_ids.clamp_(max=PLACEHOLDER - 1)
    ids = batch.input_ids.masked_fill(batch.image_slots, PLACEHOLDER)
    inputs = {"input_ids": ids, "attention_mask": batch.attention_mask, "pixel_values": batch.pixel_values}
    skipped = 1 if ours.language_model.is_encoder_decoder else ids.shape[1]
    free = generate(ours, batch, GenerationSettings(max_new_tokens=LENGTH), eos_ids=[], pad_id=PAD)
    eos = int(free[0, 4])
    ways: list[dict[str, Any]] = [
        {},
        {"min_new_tokens": 6},
        {"num_beams": 4, "length_penalty": -1.0},
        {"num_beams": 4, "length_penalty": 2.0, "num_answers": 3, "min_new_tokens": 2},
    ]
    compared = 0
    for way in ways:
        own = generate(ours, batch, GenerationSettings(max_new_tokens=LENGTH, **way), eos_ids=[eos], pad_id=PAD)
        options = {("num_return_sequences" if key == "num_answers" else key): value for key, value in way.items()}
        common = {"do_sample": False, "eos_token_id": eos, "pad_token_id": PAD, "max_new_tokens": LENGTH}
        if ours.language_model.is_encoder_decoder:
            common["decoder_start_token_id"] = ours.language_model.config.decoder_start_token_id
        expected = theirs.generate(**inputs, **common, **options)[:, skipped:]
        is_eos = expected == eos
        expected = expected.masked_fill(is_eos.cumsum(dim=1) > is_eos.long(), PAD)  # beam search pads with EOS
        assert own.tolist() == expected.tolist(), way
        compared += own.numel()
    print(
        f"parity generate, {name}: {compared} ids equal, difference {0:.2e}; {len(set(free.flatten().tolist()))} kinds"
    )
    assert len(set(free.flatten().tolist())) >= 5


@pytest.mark.parametrize("picture", ["land", "port"])
@pytest.mark.parametrize("name", ["vip", "t5"])
def test_parity_generate_golden(name: str, picture: str) -> None:
    recorded = np.load(GOLDEN / f"{name}_generate.npz")
    model, eos, prompt, pixels, answer = {
        "vip": (vip_llava, 2, "prompt_ids", "pixel_values", "out_ids"),
        "t5": (clip_flant5, 1, "ids", "pv", "out"),
    }[name]
    ids, images, expected = (torch.from_numpy(recorded[f"{picture}_{key}"]) for key in (prompt, pixels, answer))
    assert (ids == IMAGE_MARKER).sum() == 1
    golden = {"input_ids": ids, "attention_mask": torch.ones_like(ids).bool(), "pixel_values": images, "labels": None}
    batch = slots_at_markers(golden, tokens=16)  # type: ignore[arg-type]
    # the reference's ids begin with BOS (a Llama) or the decoder's start token (a T5)
    settings = GenerationSettings(max_new_tokens=expected.shape[1] - 1)
    own = generate(model(), batch, settings, eos_ids=[eos], pad_id=PAD)
    print(f"parity generate, golden {name}, {picture}: {own.numel()} ids, {(own != expected[:, 1:]).sum()} differ")
    assert own.tolist() == expected[:, 1:].tolist()
