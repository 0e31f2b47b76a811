"""The whole model against transformers' own vision-language classes with the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from builders import DECODERS, ENCODER_DECODERS, QFORMER, SIZE, VISION, make_batch, widest_difference
from torch import Tensor

from sightbridge.batch import IGNORE_INDEX, Batch
from sightbridge.config.model import ModelSettings
from sightbridge.models.build import build_model
from sightbridge.models.vlm import VisionLanguageModel

PLACEHOLDER = 60
"""The id that transformers' models read as an image position; our text never uses it here."""
CLIP = {**VISION["clip_vision_model"], "initializer_range": 0.2}


def build(tower: dict[str, Any], connector: dict[str, Any], language_model: dict[str, Any]) -> VisionLanguageModel:
    parts = {"vision_tower": tower, "connector": connector, "language_model": {"config": language_model}}
    return build_model(ModelSettings.model_validate({**parts, "prompt": {"template": "plain"}}))


def batch_for(model: VisionLanguageModel) -> Batch:
    """Rows with one, two and no pictures, right-padded."""
    batch = make_batch(model, [(1, 1, 6), (2, 2, 5), (3, 0, 7)])
    return replace(batch, input_ids=batch.input_ids.clamp(max=PLACEHOLDER - 1))


def check(name: str, ours: VisionLanguageModel, theirs: Any, batch: Batch, where: Tensor) -> None:
    """Compare logits (at ``where``) and mean losses, theirs fed with placeholders in the slots."""
    ids = batch.input_ids.masked_fill(batch.image_slots, PLACEHOLDER)
    inputs = {"input_ids": ids, "attention_mask": batch.attention_mask, "pixel_values": batch.pixel_values}
    with torch.no_grad():
        expected = theirs(**inputs, labels=batch.labels)
        logits, loss = ours.logits(batch), ours(batch)["lm"]
    difference = widest_difference(logits[where], expected.logits[where])
    off = abs(loss.sum.item() / loss.count - expected.loss.item())
    print(f"parity {name}: logits {difference:.2e} of {expected.logits.abs().max():.2f}, loss {off:.2e}")
    assert difference <= 1e-5
    assert off <= 1e-5


def blip2(family: str) -> tuple[VisionLanguageModel, Any]:
    """Our BLIP-2 and transformers', with the same random weights."""
    text = {"model_type": family, **(DECODERS | ENCODER_DECODERS)[family], "decoder_start_token_id": 0}
    if family == "opt":
        text |= {"word_embed_proj_dim": 24, "init_std": 0.2}  # Blip2's projection knows no other width
    names = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    vision = {**VISION["blip_2_vision_model"], "initializer_range": 0.2}
    config = transformers.Blip2Config(
        vision_config=vision, qformer_config=names, text_config=text, num_query_tokens=3, image_token_index=PLACEHOLDER
    )
    if family == "t5":
        config.text_config.tie_word_embeddings = False
    theirs = transformers.Blip2ForConditionalGeneration(config).eval()
    if family == "t5":
        theirs.language_model.set_input_embeddings(theirs.language_model.shared)
    torch.nn.init.normal_(theirs.query_tokens)
    torch.nn.init.normal_(theirs.vision_model.post_layernorm.weight)
    ours = build(
        {"config": {"model_type": "blip_2_vision_model", **vision}, "layers": [-1]},
        {"kind": "qformer", **QFORMER, "input_norm_eps": config.vision_config.layer_norm_eps},
        text,
    )
    ours.vision_tower.model.load_state_dict(theirs.vision_model.state_dict(), strict=False)
    connector = ours.connector
    connector.input_norm.load_state_dict(theirs.vision_model.post_layernorm.state_dict())
    connector.queries.data.copy_(theirs.query_tokens)
    connector.qformer.load_state_dict(theirs.qformer.state_dict())
    connector.output.load_state_dict(theirs.language_projection.state_dict())
    ours.language_model.model.load_state_dict(theirs.language_model.state_dict())
    return ours, theirs


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_parity_blip2(family: str) -> None:
    ours, theirs = blip2(family)
    batch = batch_for(ours)
    where = batch.labels != IGNORE_INDEX if family == "t5" else batch.attention_mask.bool()
    check(f"Blip2ForConditionalGeneration, {family}", ours, theirs, batch, where)


def llava(kind: str) -> tuple[VisionLanguageModel, Any]:
    """Our LLaVA or ViP-LLaVA and transformers', with the same random weights."""
    text = {"model_type": "llama", **DECODERS["llama"]}
    layers = [-2] if kind == "llava" else [-2, -4, 1]
    options: dict[str, Any] = {"vision_config": {"model_type": "clip_vision_model", **CLIP}, "text_config": text}
    options |= {"image_token_index": PLACEHOLDER, "vision_feature_layer": layers}
    config = transformers.AutoConfig.for_model(kind, **options)
    theirs = transformers.AutoModelForImageTextToText.from_config(config).eval()
    ours = build(
        {"config": {"model_type": "clip_vision_model", **CLIP}, "layers": layers, "class_token": "drop"},
        {"kind": "mlp", "layers": 2, "input_norm": kind == "vipllava"},
        text,
    )
    projector = theirs.model.multi_modal_projector
    ours.vision_tower.model.load_state_dict(theirs.model.vision_tower.state_dict(), strict=False)
    ours.connector.layers[0].load_state_dict(projector.linear_1.state_dict())
    ours.connector.layers[2].load_state_dict(projector.linear_2.state_dict())
    if kind == "vipllava":
        torch.nn.init.normal_(projector.projector_layernorm.weight)
        ours.connector.input_norm.load_state_dict(projector.projector_layernorm.state_dict())
    ours.language_model.model.model.load_state_dict(theirs.model.language_model.state_dict())
    ours.language_model.model.lm_head.load_state_dict(theirs.lm_head.state_dict())
    return ours, theirs


@pytest.mark.parametrize("kind", ["llava", "vipllava"])
def test_parity_llava(kind: str) -> None:
    ours, theirs = llava(kind)
    batch = batch_for(ours)
    assert batch.pixel_values.shape == (3, 3, SIZE, SIZE)
    check(f"{type(theirs).__name__}", ours, theirs, batch, batch.attention_mask.bool())
