"""PaddleMIX' files give the values that were recorded with PaddleMIX."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blip2_files import GOLDEN, assert_same, find, gap, model_of, slots_in_front
from torch import Tensor
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration

from sightbridge.batch import IGNORE_INDEX, QFormerBatch
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.errors import CheckpointError

PADDLE = GOLDEN / "paddle"
OPT_HEADS = {"language_model": {"config": {"num_attention_heads": 4}}}
DROPPED = {
    "Qformer.bert.embeddings.position_ids",
    "Qformer.bert.embeddings.token_type_embeddings.weight",
}


@cache
def recorded() -> dict[str, Tensor]:
    arrays = np.load(PADDLE / "ref_stage2.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@cache
def golden() -> dict[str, Tensor]:
    with open_weights(PADDLE / "tiny_blip2_full.pdparams") as weights:
        return {name: weights.read(name) for name in weights.infos}


def config() -> dict[str, Any]:
    return json.loads((PADDLE / "config.json").read_text())


def test_parity_stage_2() -> None:
    found = find(PADDLE)
    assert (found.format, found.kind) == ("paddle", "generation")
    assert found.settings["connector"]["num_queries"] == 32
    assert found.settings["prompt"] == {"template": "blip2_plain", "switches": {"bos_target": True}}
    assert len(found.notes) == 2
    model, golden = model_of(found, **OPT_HEADS), recorded()
    with torch.no_grad():
        seen = model.encode_images(golden["x"])
        gaps = {
            "tower": gap(seen, golden["vit"]),
            "norm": gap(model.connector.input_norm(seen), golden["ln_vision"]),
            "Q-Former": gap(model.connector.read(seen), golden["qformer"]),
            "projection": gap(model.connect(seen), golden["proj"]),
        }
    print("parity PaddleMIX:", ", ".join(f"{name} {value:.2e}" for name, value in gaps.items()))
    assert max(gaps.values()) <= 1e-5
    mask = golden["att"]
    labels = golden["ids"].masked_fill(mask == 0, IGNORE_INDEX)
    labels = torch.cat([torch.full((len(mask), 32), IGNORE_INDEX), labels], dim=1)
    batch = slots_in_front(golden["ids"], mask, 32, padding_id=1, pixel_values=golden["x"], labels=labels)
    with torch.no_grad():
        logits = model.logits(batch)
    difference = gap(logits[batch.attention_mask.bool()], golden["logits"][batch.attention_mask.bool()])
    # PaddleNLP's OPT does not shift labels, and divides by the number of all positions.
    unshifted = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.numel()
    print(
        f"parity PaddleMIX stage 2, OPT: logits {difference:.2e}, their loss {(unshifted - golden['loss']).item():.2e}"
    )
    assert difference <= 2e-6
    assert abs(unshifted - golden["loss"]) <= 1e-5


def test_a_head_that_is_not_the_embeddings_stays_one() -> None:
    """The recorded file's head has weights of its own, which transformers' OPT would tie without a word."""
    found = find(PADDLE)
    assert found.settings["language_model"]["config"]["tie_word_embeddings"] is False
    tied = dict(golden())
    tied["language_model.lm_head.decoder_weight"] = tied["language_model.opt.embeddings.word_embeddings.weight"].clone()
    assert find(Weights.of(tied)).settings["language_model"]["config"]["tie_word_embeddings"] is True


def test_square_matrices_are_turned_by_name() -> None:
    name = "Qformer.bert.encoder.layer.0.attention.self.query.weight"
    ours = find(PADDLE).weights.read("bridge.qformer.encoder.layer.0.attention.attention.query.weight")
    assert golden()[name].shape == (16, 16)
    assert torch.equal(ours, golden()[name].t())


def test_there_and_back_is_bit_equal() -> None:
    theirs = Weights.of(golden())
    tables = KeyMap.named("paddle", "paddle_opt")
    ours = tables.to_ours(theirs)
    assert set(ours.dropped) == DROPPED
    assert_same(tables.to_theirs(ours), theirs, besides=ours.dropped)


def part(prefix: str) -> Weights:
    """One of the parts as it is saved alone, without its prefix."""
    return Weights.of({n.removeprefix(prefix): tensor for n, tensor in golden().items() if n.startswith(prefix)})


def test_parts_alone_have_bare_names() -> None:
    whole = find(PADDLE).weights
    tower, qformer = find(part("visual_encoder.")), find(part("Qformer."))
    assert tower.format == qformer.format == "paddle"
    assert tower.what == "PaddleMIX BLIP-2, the tower: a vision tower of 2 blocks for 28 pixels, no language model"
    assert "connector" not in tower.settings
    assert "config" not in qformer.settings["vision_tower"]
    assert_same(tower.weights, Weights.of(read_all(whole, "vision_tower.")))
    assert_same(qformer.weights, Weights.of(read_all(whole, "bridge.")))
    # A tower's own file may keep its prefix.
    kept = {name: tensor for name, tensor in golden().items() if name.startswith("visual_encoder.")}
    assert find(Weights.of(kept)).what == tower.what


def read_all(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name: weights.read(name) for name in weights.infos if name.startswith(prefix)}


def test_what_pictures_are_without_a_tower_is_read_from_the_configuration() -> None:
    weights = Weights.of({n: t for n, t in golden().items() if n.startswith("Qformer.")}, config=config())
    found = find(weights)
    assert found.settings["image"]["size"] == 28
    assert found.settings["prompt"]["template"] == "blip2_plain"
    assert "language_model" not in found.settings
    assert found.settings["connector"]["num_heads"] == 2


def test_other_language_models_are_refused() -> None:
    bloom = golden() | {"language_model.bloom.word_embeddings.weight": torch.zeros(2, 2)}
    bloom = {name: tensor for name, tensor in bloom.items() if ".opt." not in name}
    with pytest.raises(CheckpointError, match="neither OPT nor T5"):
        find(Weights.of(bloom))


def paddle_matrix(name: str, tensor: Tensor) -> Tensor:
    """A torch weight as Paddle keeps it: linear layers turned, tables of embeddings not."""
    table = "embed" in name or "shared" in name or "relative_attention_bias" in name
    return tensor.t().contiguous() if tensor.ndim == 2 and not table else tensor


def test_parity_t5_inside() -> None:
    """A T5 with a head of its own, turned matrix by matrix, computes what transformers' computes."""
    options: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
    options |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "relative_attention_num_buckets": 8}
    options["decoder_start_token_id"] = 0
    torch.manual_seed(0)
    reference = T5ForConditionalGeneration(T5Config(**options)).eval()
    reference.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))
    theirs = {
        n: t for n, t in golden().items() if not n.startswith(("language_model.", "Qformer.language_projection."))
    }
    theirs |= {
        "Qformer.language_projection.weight": torch.randn(16, 16),
        "Qformer.language_projection.bias": torch.zeros(16),
    }
    for name, tensor in reference.state_dict().items():
        inner = name if name.startswith("lm_head") else f"t5.{name}"
        theirs[f"language_model.{inner}"] = paddle_matrix(name, tensor)
    weights = Weights.of(theirs, config=config() | {"text_config": options, "use_decoder_only_language_model": False})
    found = find(weights)
    language = found.settings["language_model"]["config"]
    assert (language["dense_act_fn"], language["num_heads"], language["d_kv"]) == ("gelu_new", 4, 4)
    assert found.settings["prompt"] == {"template": "blip2_plain_t5"}
    model = model_of(found)
    ids, labels = torch.randint(2, 40, (2, 6)), torch.randint(2, 40, (2, 5))
    with torch.no_grad():
        ours = model.language_model.model(input_ids=ids, labels=labels).logits
        reference_logits = reference(input_ids=ids, labels=labels).logits
    difference = gap(ours, reference_logits)
    print(f"parity PaddleMIX' T5: {difference:.2e}")
    assert difference <= 1e-6
    tables = KeyMap.named("paddle", "paddle_t5")
    assert_same(tables.to_theirs(found.weights), weights, besides=tuple(DROPPED))


def stage1_as_paddle_has_it() -> dict[str, Tensor]:
    """LAVIS' recorded first stage in PaddleMIX' layout."""
    lavis = torch.load(GOLDEN / "lavis" / "stage1_loss_plain.pt", weights_only=True)["state_dict"]
    names: dict[str, Tensor] = {}
    for name, tensor in lavis.items():
        inner = name.startswith(("ln_vision.", "query_tokens", "vision_proj.", "text_proj.", "itm_head."))
        if name.endswith("q_bias"):
            value = lavis[name.replace("q_bias", "v_bias")]
            names[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
        elif name == "temp":
            names[name] = tensor.reshape(1)
        elif not name.endswith("v_bias"):
            names[f"Qformer.{name}" if inner else name] = paddle_matrix(name, tensor)
    # A table that PaddleMIX makes and never looks at.
    return names | {"Qformer.cls.predictions.decoder.weight": torch.randn(32, 33)}


def test_parity_stage_1() -> None:
    theirs = stage1_as_paddle_has_it()
    found = find(Weights.of(theirs))
    assert (found.format, found.kind) == ("paddle", "qformer")
    assert any("captioning head uses the word embeddings" in note for note in found.notes)
    heads = {"num_heads": 4, "dropout": 0.0}
    model = model_of(found, vision_tower={"config": {"num_attention_heads": 4}}, qformer=heads)
    golden = torch.load(GOLDEN / "lavis" / "stage1_loss_plain.pt", weights_only=True)
    ids = golden["input_ids"]
    batch = QFormerBatch(ids, golden["attention_mask"], torch.arange(len(ids)), pixel_values=golden["image"])
    with torch.no_grad():
        losses = model(batch)
    for name, key in (("itc", "loss_itc"), ("itg", "loss_lm")):
        off = abs((losses[name].sum / losses[name].count).item() - golden[key].item())
        print(f"parity PaddleMIX stage 1, {name}: {off:.2e}")
        assert off <= 1e-5
    back = KeyMap.named("paddle").to_theirs(found.weights)
    assert_same(back, Weights.of(theirs), besides=tuple(n for n in theirs if n not in back.infos))
    assert set(theirs) - set(back.infos) == {
        "Qformer.cls.predictions.decoder.weight",
        "Qformer.bert.embeddings.position_ids",
    }


def test_a_file_without_its_configuration_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "model_state.pdparams"
    path.write_bytes((PADDLE / "tiny_blip2_full.pdparams").read_bytes())
    found = find(path)
    assert "num_heads" not in found.settings["connector"]  # 16 wide: nobody knows
    assert found.weights.infos.keys() == find(PADDLE).weights.infos.keys()
