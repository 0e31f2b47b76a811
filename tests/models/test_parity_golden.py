"""The whole model against values recorded with the reference implementations, from their original weights.

LAVIS (BLIP-2 stage 2 with OPT and FlanT5), ViP-LLaVA and CLIP-FlanT5, each a tiny random model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import widest_difference
from foreign_keys import from_lavis, from_llava, load_exactly, pick
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, Blip2VisionModel

from sightbridge.batch import IGNORE_INDEX, Batch
from sightbridge.config.model import ModelSettings
from sightbridge.models.build import build_model
from sightbridge.models.vision_tower import VisionTower, resize_positions
from sightbridge.models.vlm import VisionLanguageModel

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE_MARKER = -200

EVA = {  # LAVIS: blocks with 1e-6, the norm behind them with PyTorch's default of 1e-5
    "model_type": "blip_2_vision_model",
    "hidden_size": 48,
    "intermediate_size": 209,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
QFORMER = {
    "kind": "qformer",
    "num_queries": 6,
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "intermediate_size": 64,
    "input_norm_eps": 1e-5,
}
OPT_KEYS = ("vocab_size", "hidden_size", "ffn_dim", "num_hidden_layers", "num_attention_heads", "word_embed_proj_dim")
LLAMA_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
T5_KEYS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "feed_forward_proj",
    "dense_act_fn",
    "tie_word_embeddings",
)


def build(tower: dict[str, Any], connector: dict[str, Any], language_model: dict[str, Any]) -> VisionLanguageModel:
    parts = {"vision_tower": tower, "connector": connector, "language_model": {"config": language_model}}
    return build_model(ModelSettings.model_validate({**parts, "prompt": {"template": "plain"}}))


def slots_in_front(ids: Tensor, mask: Tensor, tokens: int, padding_id: int, **rest: Any) -> Batch:
    """BLIP-2's layout: a picture's slots, then the row."""
    rows = len(ids)
    front = torch.ones(rows, tokens, dtype=torch.long)
    return Batch(
        input_ids=torch.cat([front * padding_id, ids], dim=1),
        attention_mask=torch.cat([front, mask], dim=1),
        image_slots=torch.cat([front.bool(), torch.zeros_like(ids, dtype=torch.bool)], dim=1),
        images_per_row=torch.ones(rows, dtype=torch.long),
        **rest,
    )


def slots_at_markers(golden: dict[str, Tensor], tokens: int) -> Batch:
    """LLaVA's layout: each marker becomes a picture's slots; pictures of rows without a marker are stand-ins."""
    rows = []
    for ids, mask in zip(golden["input_ids"], golden["attention_mask"], strict=True):
        row = ids[mask]
        rows.append(row.repeat_interleave(torch.where(row == IMAGE_MARKER, tokens, 1)))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    slots = ids == IMAGE_MARKER
    pictures_per_row = slots.sum(dim=1) // tokens
    return Batch(
        input_ids=ids.masked_fill(slots, 0),
        attention_mask=mask,
        image_slots=slots,
        images_per_row=pictures_per_row,
        pixel_values=golden["pixel_values"][pictures_per_row > 0],
        labels=golden.get("spliced_labels", golden["labels"]),
    )


def check(name: str, model: VisionLanguageModel, batch: Batch, golden: dict[str, Tensor], where: Tensor) -> None:
    """Compare logits (at ``where``) and the mean loss with the recorded ones."""
    with torch.no_grad():
        logits, loss = model.logits(batch), model(batch)["lm"]
    scale = golden["logits"].abs().max().item()
    difference = widest_difference(logits[where], golden["logits"][where]) / scale
    off = abs(loss.sum.item() / loss.count - golden["loss"].item())
    print(f"parity {name}: logits {difference:.2e} of their largest ({scale:.2f}), loss {off:.2e}")
    assert difference <= 2e-5
    assert off <= 1e-5


def test_parity_lavis_opt() -> None:
    golden = torch.load(GOLDEN / "lavis" / "stage2_opt_prompt.pt", weights_only=True)
    opt = {"model_type": "opt", "dropout": 0.0, **pick(golden["opt_config"], *OPT_KEYS, "max_position_embeddings")}
    model = build({"config": EVA, "layers": [-1]}, QFORMER, opt)
    load_exactly(model, from_lavis(golden["state_dict"]), unused=r"position_ids$")
    rest = {"pixel_values": golden["image"], "labels": golden["labels"]}
    batch = slots_in_front(golden["input_ids"], golden["text_attention_mask"], 6, padding_id=1, **rest)
    assert torch.equal(batch.attention_mask, golden["attention_mask"])
    check("LAVIS stage 2, OPT", model, batch, golden, batch.attention_mask.bool())


def lavis_t5(golden: dict[str, Any], **changes: Any) -> tuple[VisionLanguageModel, Batch]:
    t5 = {"model_type": "t5", **pick(golden["t5_config"], *T5_KEYS), "dropout_rate": 0.0, **changes}
    model = build({"config": EVA, "layers": [-1]}, QFORMER, t5)
    load_exactly(model, from_lavis(golden["state_dict"]), unused=r"position_ids$")
    rest = {"pixel_values": golden["image"], "labels": golden["labels"]}
    return model, slots_in_front(golden["input_ids"], golden["text_attention_mask"], 6, padding_id=0, **rest)


def test_parity_lavis_t5() -> None:
    golden = torch.load(GOLDEN / "lavis" / "stage2_t5.pt", weights_only=True)
    assert golden["t5_config"]["dense_act_fn"] == "gelu"
    model, batch = lavis_t5(golden)
    assert torch.equal(batch.attention_mask, golden["attention_mask"])
    check("LAVIS stage 2, T5", model, batch, golden, golden["labels"] != IGNORE_INDEX)


def test_the_golden_values_tell_the_gelus_apart() -> None:
    golden = torch.load(GOLDEN / "lavis" / "stage2_t5.pt", weights_only=True)
    model, batch = lavis_t5(golden, dense_act_fn="gelu_new")
    with torch.no_grad():
        assert widest_difference(model.logits(batch), golden["logits"]) > 1e-4


def test_parity_lavis_positions_at_another_size() -> None:
    golden = torch.load(GOLDEN / "lavis" / "posembed_56_84.pt", weights_only=True)
    state = {f"visual_encoder.{key}": value for key, value in golden["state_dict_56"].items()}
    weights = {key.removeprefix("vision_tower.model."): value for key, value in from_lavis(state).items()}
    model = Blip2VisionModel(AutoConfig.for_model(**EVA)).eval()
    left = model.load_state_dict(weights, strict=False)
    assert left.missing_keys == ["post_layernorm.weight", "post_layernorm.bias"]
    tower = VisionTower(resize_positions(model, 84), layers=[-1]).eval()
    assert torch.equal(tower.model.embeddings.position_embedding, golden["pos_embed_84"])
    with torch.no_grad():
        difference = widest_difference(tower(golden["image84"]), golden["vit_out"])
    print(f"parity LAVIS ViT at 84 pixels: {difference:.2e} of {golden['vit_out'].abs().max():.2f}")
    assert difference <= 1e-5


def read_llava(name: str) -> dict[str, Tensor]:
    recorded = np.load(GOLDEN / "llava" / "logits" / f"{name}.npz")
    return {key: torch.from_numpy(recorded[key]) for key in recorded.files}


def vip_llava() -> VisionLanguageModel:
    folder = GOLDEN / "llava" / "models" / "vip_tiny"
    config = json.loads((folder / "original_config.json").read_text())
    picked = pick(config, *LLAMA_KEYS, "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta")
    model = build(
        {"config": CLIP, "layers": [-2, -5, -8, -11, 6], "class_token": "drop"},
        {"kind": "mlp", "layers": 2, "input_norm": True},
        {"model_type": "llama", **picked},
    )
    weights = from_llava(load_file(folder / "original_state_dict.safetensors"))
    load_exactly(model, weights, unused=r"^vision_tower\.model\.(encoder\.layers\.11\.|post_layernorm)")
    return model


def check_spliced(name: str, model: VisionLanguageModel, batch: Batch, golden: dict[str, Tensor]) -> None:
    """Compare what the language model reads, text and pictures, with the recorded embeddings; padding may differ."""
    mask = golden["spliced_mask"]
    assert torch.equal(batch.attention_mask.bool(), mask)
    with torch.no_grad():
        embeddings = model.embed(batch)[mask]
    largest = golden["spliced_embeds"].abs().max().item()
    difference = widest_difference(embeddings, golden["spliced_embeds"][mask]) / largest
    print(f"parity {name}: spliced embeddings {difference:.2e} of their largest ({largest:.2f})")
    assert difference <= 1e-5


def test_parity_vip_llava_pretraining() -> None:
    golden, model = read_llava("vip_plain"), vip_llava()
    with torch.no_grad():
        features = model.encode_images(golden["pixel_values"])
        tokens = model.connect(features)
    gaps = [
        widest_difference(ours, theirs) / theirs.abs().max().item()
        for ours, theirs in [(features, golden["clip_features"]), (tokens, golden["projected"])]
    ]
    print(f"parity ViP-LLaVA: features {gaps[0]:.2e}, image tokens {gaps[1]:.2e} of their largest")
    assert max(gaps) <= 1e-5
    batch = slots_at_markers(golden, tokens=16)
    check_spliced("ViP-LLaVA, captions", model, batch, golden)
    check("ViP-LLaVA, captions", model, batch, golden, golden["spliced_mask"])


def test_parity_vip_llava_conversations() -> None:
    golden, model = read_llava("vip_v1_legacy"), vip_llava()
    batch = slots_at_markers(golden, tokens=16)
    assert batch.images_per_row.tolist() == [1, 1, 0, 1, 1]
    check_spliced("ViP-LLaVA, conversations", model, batch, golden)
    with torch.no_grad():
        loss, logits = model(batch)["lm"], model.logits(batch)
    predicting = torch.zeros_like(batch.image_slots)
    predicting[:, :-1] = batch.labels[:, 1:] != IGNORE_INDEX
    difference = widest_difference(logits[predicting], golden["target_logits"])
    relative, off = (
        difference / golden["target_logits"].abs().max().item(),
        abs(loss.sum.item() / loss.count - golden["loss"].item()),
    )
    print(f"parity ViP-LLaVA, conversations: logits {relative:.2e} of their largest, loss {off:.2e}")
    assert relative <= 2e-5
    assert off <= 1e-5


def clip_flant5() -> VisionLanguageModel:
    folder = GOLDEN / "llava" / "models" / "clipt5_tiny"
    config = json.loads((folder / "original_config.json").read_text())
    model = build(
        {"config": CLIP, "layers": [-2], "class_token": "drop"},
        {"kind": "mlp", "layers": 2},
        {"model_type": "t5", **pick(config, *T5_KEYS)},
    )
    weights = from_llava(load_file(folder / "original_state_dict.safetensors"))
    load_exactly(model, weights, unused=r"^vision_tower\.model\.(encoder\.layers\.11\.|post_layernorm)|^embed_tokens")
    return model


@pytest.mark.parametrize("name", ["t5_plain", "t5_plain_split_seed7", "t5_v1", "t5_v1_flat"])
def test_parity_clip_flant5(name: str) -> None:
    golden, model = read_llava(name), clip_flant5()
    batch = slots_at_markers(golden, tokens=16)
    has_picture = batch.images_per_row > 0
    with torch.no_grad():
        tokens = model.connect(model.encode_images(golden["pixel_values"]))
    difference = widest_difference(tokens, golden["projected"]) / golden["projected"].abs().max().item()
    print(f"parity CLIP-FlanT5, {name}: image tokens {difference:.2e} of their largest")
    assert difference <= 1e-5
    assert has_picture.all() == (not name.startswith("t5_v1"))  # conversations have one about text alone
    check_spliced(f"CLIP-FlanT5, {name}", model, batch, golden)
    check(f"CLIP-FlanT5, {name}", model, batch, golden, golden["labels"] != IGNORE_INDEX)
