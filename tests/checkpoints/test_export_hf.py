"""Exports for transformers: loaded by ``from_pretrained`` alone, they compute what our models compute."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from export_models import CLIP, CLIP_DEEP, EVA, KINDS, clip_folder, save, save_stage1
from sightbridge.batch import Batch
from sightbridge.checkpoints.export import export_model
from sightbridge.checkpoints.export.tokens import end_ids
from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import CheckpointError
from sightbridge.generation.generate import generate
from small_models import TOKENIZERS, picture

QUESTION = "What is in the picture?"


def load_strictly(folder: Path) -> Any:
    """By the class that ``config.json`` names; every weight must be there and have a place."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, dtype="auto")
    problems = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(problems.values()), problems
    return model.eval()


def as_ids(batch: Batch, image_token: int) -> dict[str, Tensor]:
    """Our row in the words of transformers: ``<image>`` in the slots."""
    assert batch.pixel_values is not None
    ids = batch.input_ids.masked_fill(batch.image_slots, image_token)
    return {"input_ids": ids, "attention_mask": batch.attention_mask, "pixel_values": batch.pixel_values}


def compare(model: Any, processor: Any, folder: Path) -> float:
    """The largest difference of logits; the greedy answer must be the same, too."""
    theirs = load_strictly(folder)
    batch = processor.prompt(picture(1), QUESTION)
    inputs = as_ids(batch, theirs.config.image_token_index)
    extra: dict[str, Any] = {}
    if batch.connector_ids is not None:
        extra = {"qformer_input_ids": batch.connector_ids, "qformer_attention_mask": batch.connector_mask}
    with torch.no_grad():
        if processor.encoder_decoder:
            labelled = replace(batch, labels=torch.tensor([[7, 11, 5, 1]]))
            ours = model.logits(labelled)
            extra["decoder_input_ids"] = model.language_model.decoder_input_ids(labelled.labels)
        else:
            ours = model.logits(batch)
        logits = theirs(**inputs, **extra).logits
        extra.pop("decoder_input_ids", None)
        written = theirs.generate(**inputs, **extra, max_new_tokens=8, do_sample=False)[0].tolist()
    settings = GenerationSettings(max_new_tokens=8)
    answer = generate(model, batch, settings, eos_ids=end_ids(processor), pad_id=processor.tokenizer.pad_token_id)
    expected = answer[0].tolist()
    print("greedy ids", expected, "theirs", written)
    assert written[-len(expected) :] == expected and len(set(expected)) > 1
    assert not logits.isnan().any()
    rows = ours.shape[-1]
    if logits.shape[-1] > rows:  # a row that was added can never be the answer
        assert (logits[..., rows:].amax(-1) < logits[..., :rows].amax(-1)).all()
    return (logits[..., :rows] - ours).abs().max().item()


@pytest.mark.parametrize("kind", ["blip2-opt", "blip2-t5", "llava", "vip"])
def test_parity_with_transformers(kind: str, tmp_path: Path) -> None:
    model, processor = save(kind, tmp_path / "m")
    done = export_model(tmp_path / "m", tmp_path / "hf", "hf")
    difference = compare(model, processor, done.folder)
    print(f"{kind}: logits differ from {done.written.what} by at most {difference:.1e}")
    assert difference < (5e-4 if "blip2" in kind else 2e-5)
