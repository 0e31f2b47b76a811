"""LAVIS' files, written as LAVIS writes them, give the values that were recorded with LAVIS."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from blip2_files import GOLDEN, assert_same, check, find, gap, model_of, slots_in_front
from torch import Tensor
from transformers import Blip2VisionConfig, Blip2VisionModel

from sightbridge.batch import IGNORE_INDEX, QFormerBatch
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import CheckpointError
from sightbridge.generation.generate import generate
from sightbridge.models.vision_tower import VisionTower, resize_positions

HEADS: dict[str, Any] = {"vision_tower": {"config": {"num_attention_heads": 4}}, "connector": {"num_heads": 4}}
"""What the shapes of a tiny model do not say."""
OPT_HEADS = HEADS | {"language_model": {"config": {"num_attention_heads": 4, "dropout": 0.0}}}
STAGE1_HEADS = {
    "vision_tower": HEADS["vision_tower"],
    "qformer": {"num_heads": 4, "dropout": 0.0, "hard_negatives": "hardest"},
}
WORDS = ("Qformer.bert.embeddings.word_embeddings.weight", "Qformer.cls.predictions.decoder.weight")


@cache
def golden(name: str) -> dict[str, Any]:
    return torch.load(GOLDEN / "lavis" / f"{name}.pt", weights_only=True)


def write(path: Path, state: dict[str, Tensor], wrapper: str | None = "model", prefix: str = "") -> Path:
    """A file as LAVIS' runner saves it."""
    state = {prefix + name: tensor for name, tensor in state.items()}
    others = {"optimizer": {"state": {}}, "config": {"run": {"lr": 1e-4}}, "scaler": {}, "epoch": 3}
    torch.save({wrapper: state, **others} if wrapper else state, path)
    return path


def test_parity_stage_2_with_opt(tmp_path: Path) -> None:
    recorded = golden("stage2_opt_prompt")
    found = find(write(tmp_path / "checkpoint_3.pth", recorded["state_dict"]))
    assert (found.format, found.kind) == ("lavis", "generation")
    assert found.settings["prompt"] == {"template": "blip2_plain", "switches": {"bos_target": True}}
    model = model_of(found, **OPT_HEADS)
    rest = {"pixel_values": recorded["image"], "labels": recorded["labels"]}
    batch = slots_in_front(recorded["input_ids"], recorded["text_attention_mask"], 6, padding_id=1, **rest)
    where = batch.attention_mask.bool()
    check("LAVIS stage 2, OPT, from its file", model, batch, recorded["logits"], where, recorded["loss"].item())


def test_parity_stage_2_with_t5(tmp_path: Path) -> None:
    recorded = golden("stage2_t5")
    found = find(write(tmp_path / "checkpoint_best.pth", recorded["state_dict"], prefix="module."))
    assert found.settings["language_model"]["config"]["dense_act_fn"] == recorded["dense_act_fn"] == "gelu"
    model = model_of(found, **HEADS)
    rest = {"pixel_values": recorded["image"], "labels": recorded["labels"]}
    batch = slots_in_front(recorded["input_ids"], recorded["text_attention_mask"], 6, padding_id=0, **rest)
    where = recorded["labels"] != IGNORE_INDEX
    check("LAVIS stage 2, T5, from its file", model, batch, recorded["logits"], where, recorded["loss"].item())


def test_parity_stage_1(tmp_path: Path) -> None:
    recorded = golden("stage1_loss_plain")
    found = find(write(tmp_path / "blip2_pretrained.pth", recorded["state_dict"]))
    assert (found.format, found.kind) == ("lavis", "qformer")
    model = model_of(found, **STAGE1_HEADS)
    assert model.qformer.temperature.item() == recorded["state_dict"]["temp"].item()
    ids = recorded["input_ids"]
    batch = QFormerBatch(ids, recorded["attention_mask"], torch.arange(len(ids)), pixel_values=recorded["image"])
    with torch.no_grad():
        losses = model(batch)
    ours = {name: (loss.sum / loss.count).item() for name, loss in losses.items()}
    for name in ("itc", "itg"):  # the matching loss draws its pairs, so it has a test of its own
        off = abs(ours[name] - recorded[{"itc": "loss_itc", "itg": "loss_lm"}[name]].item())
        print(f"parity LAVIS stage 1 from its file, {name}: {off:.2e}")
        assert off <= 1e-5
    false_images, false_texts = recorded["neg_image_idx_for_text"], recorded["neg_text_idx_for_image"]
    rows = list(range(len(ids)))
    texts = torch.tensor([*rows, *rows, *false_texts])
    pictures = torch.tensor([*rows, *false_images, *rows])
    with torch.no_grad():
        look = [part and part.pick(pictures) for part in model.qformer.look(model.encode_images(batch))]
        matched = model.qformer.itm_head(model.qformer.read_pairs(look, ids[texts], batch.text_mask[texts]))
    difference = gap(matched, recorded["itm_tokens"])
    print(f"parity LAVIS stage 1 from its file, matching logits: {difference:.2e}")
    assert difference <= 1e-5


@pytest.mark.parametrize("prefix", ["", "visual_encoder."])
def test_parity_tower_alone(tmp_path: Path, prefix: str) -> None:
    recorded = golden("posembed_56_84")
    found = find(write(tmp_path / "eva_vit_g.pth", recorded["state_dict_56"], wrapper=None, prefix=prefix))
    assert found.format == "lavis_tower"
    config = found.settings["vision_tower"]["config"] | {"num_attention_heads": 4}
    model: Any = Blip2VisionModel(Blip2VisionConfig(**{key: v for key, v in config.items() if key != "model_type"}))
    state = {name.removeprefix("vision_tower."): found.weights.read(name) for name in found.weights.infos}
    report = model.load_state_dict(state, strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["post_layernorm.weight", "post_layernorm.bias"], [])
    resized = VisionTower(resize_positions(model, 84), layers=found.settings["vision_tower"]["layers"]).eval()
    with torch.no_grad():
        difference = gap(resized(recorded["image84"]), recorded["vit_out"])
    print(f"parity LAVIS ViT at 84 pixels, from its file: {difference:.2e}")
    assert difference <= 1e-5


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("stage2_opt_prompt", ("lavis", "lavis_eva", "lavis_opt")),
        ("stage2_t5", ("lavis", "lavis_eva", "lavis_t5")),
        ("stage1_loss_plain", ("lavis", "lavis_eva")),
    ],
)
def test_there_and_back_is_bit_equal(name: str, tables: tuple[str, ...]) -> None:
    theirs = Weights.of(golden(name)["state_dict"])
    ours = KeyMap.named(*tables).to_ours(theirs)
    assert ours.dropped == ("Qformer.bert.embeddings.position_ids",)
    back = KeyMap.named(*tables).to_theirs(ours)
    assert_same(back, theirs, besides=ours.dropped)


def test_half_precision_stays(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in golden("stage2_t5")["state_dict"].items()}
    found = find(write(tmp_path / "half.pth", state, wrapper=None))
    weights = found.weights
    assert {info.dtype for info in weights.infos.values()} == {torch.float16}
    bias = weights.read("vision_tower.encoder.layers.0.self_attn.qkv.bias")
    assert torch.equal(bias[:48], state["visual_encoder.blocks.0.attn.q_bias"])
    assert not bias[48:96].any()


def test_tied_copies_may_be_missing_but_must_not_differ(tmp_path: Path) -> None:
    state = dict(golden("stage1_loss_plain")["state_dict"])
    del state[WORDS[1]], state["Qformer.cls.predictions.decoder.bias"], state["Qformer.bert.embeddings.position_ids"]
    found = find(write(tmp_path / "less.pth", state))
    assert torch.equal(found.weights.read("bridge.embeddings.word_embeddings.weight"), state[WORDS[0]])
    model_of(found, **STAGE1_HEADS)

    state[WORDS[1]] = state[WORDS[0]] + 1
    found = find(write(tmp_path / "other.pth", state))
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight: .* its two copies in the file differ"):
        found.weights.read("bridge.embeddings.word_embeddings.weight")


def test_a_first_stage_without_captioning_head_has_none() -> None:
    """As it is exported from a model that came from transformers' class."""
    state = {n: t for n, t in golden("stage1_loss_plain")["state_dict"].items() if not n.startswith("Qformer.cls.")}
    found = find(Weights.of(state))
    assert found.settings["qformer"]["captioning"] is False
    model_of(found, **STAGE1_HEADS)
    assert "captioning" not in find(Weights.of(golden("stage1_loss_plain")["state_dict"])).settings["qformer"]


def test_what_lavis_does_not_have_is_an_error(tmp_path: Path) -> None:
    state = golden("stage2_t5")["state_dict"] | {"Qformer.bert.pooler.dense.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"'Qformer\.bert\.pooler\.dense\.weight'"):
        find(write(tmp_path / "more.pth", state))
    state = golden("stage2_t5")["state_dict"] | {"opt_proj.weight": torch.zeros(2, 32)}
    with pytest.raises(CheckpointError, match="several language models: opt, t5"):
        find(write(tmp_path / "both.pth", state))
    state = {n: t for n, t in golden("stage2_t5")["state_dict"].items() if "layer.0.crossattention" not in n}
    with pytest.raises(CheckpointError, match=r"of 4 layers of the Q-Former the layers \[2\]"):
        find(write(tmp_path / "less.pth", state))


def test_blocks_that_lavis_does_not_build_are_left_out_and_told() -> None:
    tower = {
        "cls_token": torch.empty(1, 1, 1408, device="meta"),
        "pos_embed": torch.empty(1, 257, 1408, device="meta"),
        "patch_embed.proj.weight": torch.empty(1408, 3, 14, 14, device="meta"),
        "patch_embed.proj.bias": torch.empty(1408, device="meta"),
        "norm.weight": torch.empty(1408, device="meta"),
        "head.weight": torch.empty(1000, 1408, device="meta"),
    }
    shapes = {
        "norm1.weight": (1408,),
        "norm1.bias": (1408,),
        "attn.q_bias": (1408,),
        "attn.v_bias": (1408,),
        "attn.qkv.weight": (4224, 1408),
        "attn.proj.weight": (1408, 1408),
        "attn.proj.bias": (1408,),
        "norm2.weight": (1408,),
        "norm2.bias": (1408,),
        "mlp.fc1.weight": (6144, 1408),
        "mlp.fc1.bias": (6144,),
        "mlp.fc2.weight": (1408, 6144),
        "mlp.fc2.bias": (1408,),
    }
    tower |= {
        f"blocks.{n}.{name}": torch.empty(shape, device="meta") for n in range(40) for name, shape in shapes.items()
    }
    found = find(Weights.of(tower))
    config = found.settings["vision_tower"]["config"]
    assert (config["num_hidden_layers"], config["num_attention_heads"], config["image_size"]) == (39, 16, 224)
    assert len(found.weights.infos) == 4 + 39 * 12
    assert found.notes == ("left out, LAVIS does not build it: blocks.39, head, norm",)


def beams(
    name: str, prompt: list[int], new_tokens: int, pad_id: int, ends: list[int], **missing: Any
) -> list[list[str]]:
    """Beam search over the recorded pictures, in the words that LAVIS' tokenizer knows."""
    recorded = golden(name)
    model = model_of(find(Weights.of(recorded["state_dict"])), **missing)
    ids = torch.tensor([prompt] * len(recorded["image"]))
    batch = slots_in_front(ids, torch.ones_like(ids), 6, pad_id, pixel_values=recorded["image"])
    settings = GenerationSettings(num_beams=5, max_new_tokens=new_tokens, min_new_tokens=1)
    words = {number: word for word, number in recorded["vocab"].items()}
    answers = generate(model, batch, settings, eos_ids=ends, pad_id=pad_id).tolist()
    return [[words[i] for i in row if i in words and i not in (pad_id, *ends)] for row in answers]


def recorded_words(name: str) -> list[list[str]]:
    texts = [text.replace("?", " ?").split() for text in golden(name)["gen_beam5"]]
    return [[word for word in text if word not in ("<pad>", "</s>")] for text in texts]


def test_parity_beam_search() -> None:
    """Five beams from "a photo of": 8 new tokens with T5; 10 with OPT, whose BOS transformers 4 counted."""
    t5, opt = golden("stage2_t5")["vocab"], golden("stage2_opt_prompt")["vocab"]
    prompt = [t5[word] for word in ("a", "photo", "of", "</s>")]
    assert beams("stage2_t5", prompt, 8, t5["<pad>"], [t5["</s>"]], **HEADS) == recorded_words("stage2_t5")
    prompt = [opt[word] for word in ("</s>", "a", "photo", "of")]
    newline = [opt["\n"]]
    assert beams("stage2_opt_prompt", prompt, 9, 1, newline, **OPT_HEADS) == recorded_words("stage2_opt_prompt")
