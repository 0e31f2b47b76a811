"""Models of the LLaVA family in their original layouts: read, told apart, refused, and equal to what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llava_files import (
    TWO_HEADS,
    batch_at_markers,
    check_logits,
    found_in,
    model_of,
    original,
    recorded,
    write_folder,
)
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from sightbridge.checkpoints.formats.llava_parts import tower_config
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.sources.weights import Weights
from sightbridge.config.generation import GenerationSettings
from sightbridge.config.load import load_recipe
from sightbridge.errors import CheckpointError
from sightbridge.generation.generate import generate
from sightbridge.models.vlm import VisionLanguageModel

VIP, FLANT5 = "vip_tiny", "clipt5_tiny"
CONTAINERS = ["bin", "safetensors", "bin in two", "safetensors in two"]
TOWER = "vision_tower.vision_tower."
LEFTOVERS = {
    "model.image_newline": torch.ones(48),
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
    "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None],
}
"""What older versions of transformers and LLaVA also put into such files."""


def check_generated(what: str, model: VisionLanguageModel, name: str) -> None:
    """Compare greedy ids for two pictures with the recorded ones, which begin with BOS or the start token."""
    golden, eos = recorded("generate", f"{name}_generate"), {"vip": 2, "t5": 1}[name]
    keys = {"vip": ("prompt_ids", "pixel_values", "out_ids"), "t5": ("ids", "pv", "out")}[name]
    for picture in ("land", "port"):
        ids, pixels, expected = (golden[f"{picture}_{key}"] for key in keys)
        batch = batch_at_markers(ids, torch.ones_like(ids), pixels)
        settings = GenerationSettings(max_new_tokens=expected.shape[1] - 1)
        own = generate(model, batch, settings, eos_ids=[eos], pad_id=0)
        print(f"parity {what}: {own.numel()} generated ids, {(own != expected[:, 1:]).sum()} differ")
        assert own.tolist() == expected[:, 1:].tolist()


# --- whole models, in every container ---


@pytest.mark.parametrize("container", CONTAINERS)
def test_parity_vip_llava_in_every_container(container: str, tmp_path: Path) -> None:
    weights, config = original(VIP)
    found = found_in(write_folder(tmp_path, weights, config, container))
    assert (found.format, found.settings["vision_tower"]["layers"]) == ("llava", [-2, -5, -8, -11, 6])
    model = model_of(found, TWO_HEADS)
    check_logits(f"ViP-LLaVA, {container}", model, recorded("logits", "vip_v1_legacy"), 900)
    if container == "bin":
        check_generated("ViP-LLaVA", model, "vip")


@pytest.mark.parametrize("container", CONTAINERS)
def test_parity_clip_flant5_in_every_container(container: str, tmp_path: Path) -> None:
    weights, config = original(FLANT5)
    if "safetensors" in container:  # as transformers writes them: a shared table once
        weights = {name: tensor for name, tensor in weights.items() if not name.endswith("embed_tokens.weight")}
    model = model_of(found_in(write_folder(tmp_path, weights, config, container)), TWO_HEADS)
    assert not model.language_model.config.tie_word_embeddings
    check_logits(f"CLIP-FlanT5, {container}", model, recorded("logits", "t5_v1"), 640)
    if container == "bin":
        check_generated("CLIP-FlanT5", model, "t5")


@pytest.mark.parametrize(("name", "golden", "vocabulary"), [(VIP, "vip_v1_legacy", 900), (FLANT5, "t5_v1", 640)])
def test_parity_with_the_tower_from_elsewhere(name: str, golden: str, vocabulary: int, tmp_path: Path) -> None:
    """The tower is frozen, and often not in the file: the configuration names it, and that one is referenced."""
    weights, config = original(name)
    in_tower = {key: weight for key, weight in weights.items() if TOWER in key}
    rest = {key: weight for key, weight in weights.items() if key not in in_tower}
    found = found_in(write_folder(tmp_path, rest, config, "safetensors"))
    names = {VIP: "openai/clip-vit-large-patch14-336", FLANT5: "models/clip_tiny"}
    assert found.settings["vision_tower"]["source"] == names[name] and "config" not in found.settings["vision_tower"]
    assert found.settings["image"] == {"fit": "pad"}
    save_tower({key.rpartition("vision_model.")[2]: weight for key, weight in in_tower.items()}, tmp_path / "tower")
    elsewhere = {"vision_tower": {"source": str(tmp_path / "tower")}, "image": {"size": 56}}
    model = model_of(found, elsewhere, given="vision_tower")
    check_logits(f"{name}, tower from elsewhere", model, recorded("logits", golden), vocabulary)


def save_tower(weights: dict[str, Tensor], folder: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=2, image_size=56, patch_size=14
    )
    tower = CLIPVisionModel(config)
    tower.load_state_dict(weights)
    tower.save_pretrained(folder)


@pytest.mark.parametrize("name", [VIP, FLANT5])
def test_leftovers_and_second_names_are_left_out_and_said(name: str, tmp_path: Path) -> None:
    weights, config = original(name)
    more = (
        LEFTOVERS if name == VIP else {"vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.ones(1)}
    )
    found = found_in(write_folder(tmp_path, weights | more, config, "bin"))
    plain = found_in(Weights.of(weights, tmp_path, config))
    assert list(found.weights.infos) and set(found.weights.infos) == set(plain.weights.infos)
    said = "\n".join(found.notes)
    for word in {VIP: ("image_newline", "inv_freq", "position_ids"), FLANT5: ("embed_tokens, 3 times", "position_ids")}[
        name
    ]:
        assert f"left out: {word}" in said


def test_names_of_t5s_one_table_must_agree(tmp_path: Path) -> None:
    weights, config = original(FLANT5)
    weights["decoder.embed_tokens.weight"] = weights["decoder.embed_tokens.weight"] + 1
    found = found_in(write_folder(tmp_path, weights, config, "bin"))
    with pytest.raises(CheckpointError, match=r"'decoder.embed_tokens.weight' and 'shared.weight' differ"):
        found.weights.read("language_model.shared.weight")


def test_t5s_table_under_any_of_its_names(tmp_path: Path) -> None:
    weights, config = original(FLANT5)
    table = weights.pop("shared.weight")
    del weights["encoder.embed_tokens.weight"], weights["decoder.embed_tokens.weight"]
    found = found_in(Weights.of(weights, tmp_path, config))
    assert torch.equal(found.weights.read("language_model.shared.weight"), table)
    assert not torch.equal(found.weights.read("language_model.lm_head.weight"), table)
    del weights["embed_tokens.weight"]
    with pytest.raises(CheckpointError, match=r"'shared.weight', T5's table of embeddings, is missing"):
        found_in(Weights.of(weights, tmp_path, config))


def test_flant5_without_its_head_is_no_flant5(tmp_path: Path) -> None:
    weights, config = original(FLANT5)
    del weights["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is missing, FlanT5's own output head"):
        found_in(Weights.of(weights, tmp_path, config))
    del config["tie_word_embeddings"]  # T5's own default: the original T5, of the ablation, has one table for all
    assert found_in(Weights.of(weights, tmp_path, config)).settings["language_model"]["config"]["tie_word_embeddings"]


# --- what the files say, in our settings ---


def test_settings_are_those_that_the_recipes_train_with(tmp_path: Path) -> None:
    """Sizes apart, a released model is read as the recipe of its last stage has it."""
    for name, recipe, changes in (
        (VIP, "vip_llava/stage3", {}),
        (VIP, "vip_llava/stage2-llama3", {"vocab_size": 128_256}),
        (VIP, "vip_llava/stage2-phi3", {"model_type": "llava_phi3"}),
        (FLANT5, "clip_flant5/finetune", {}),
    ):
        weights, config = original(name)
        if "vocab_size" in changes:
            weights["model.embed_tokens.weight"] = torch.empty(128_256, 1)
        settings = found_in(Weights.of(weights, tmp_path, config | changes)).settings
        wanted = load_recipe(recipe).model.model_dump(mode="json")
        assert {key: settings["vision_tower"][key] for key in ("layers", "class_token")} == {
            key: wanted["vision_tower"][key] for key in ("layers", "class_token")
        }
        assert settings["connector"].items() <= (wanted["connector"] | {"input_norm": name == VIP}).items()
        assert settings["image"]["fit"] == wanted["image"]["fit"]
        own, theirs = settings["prompt"], wanted["prompt"]
        assert own["template"] == theirs["template"]
        assert [own["max_length"], own.get("max_answer_length")] == [theirs["max_length"], theirs["max_answer_length"]]
        assert own["switches"].items() >= theirs["switches"].items()
        assert own["switches"].get("lost_newline", False) == ("llama3" in recipe)


@pytest.mark.parametrize(
    ("said", "settings"),
    [
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, {"layers": [-2], "class_token": "drop"}),
        ({"mm_vision_tower": "x/y", "mm_vision_select_layer": -1}, {"layers": [-1]}),
        ({"mm_vision_tower": "x/y", "mm_vision_select_feature": "cls_patch"}, {"class_token": "keep"}),
        ({"mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch"}, {"class_token": "drop"}),
    ],
)
def test_which_features_the_tower_gives(said: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    """The last: ViP-LLaVA's five layers come without CLS whatever its configuration says."""
    weights, config = original(VIP)
    tower = found_in(Weights.of(weights, tmp_path, config | said)).settings["vision_tower"]
    assert settings.items() <= tower.items()
    if "mm_vision_tower" not in said:
        assert tower["layers"] == [-2, -5, -8, -11, 6]


def test_a_vip_llava_with_a_linear_projector_has_no_layer_norm(tmp_path: Path) -> None:
    weights, config = original(VIP)
    weights = {key: weight for key, weight in weights.items() if "mm_projector" not in key}
    weights |= {"model.mm_projector.weight": torch.ones(48, 160), "model.mm_projector.bias": torch.ones(48)}
    found = found_in(Weights.of(weights, tmp_path, config))
    assert found.settings["connector"] == {"kind": "linear"} and "bridge.output.bias" in found.weights.infos
    assert found.settings["prompt"]["template"] == "llava_v1" and found.what.startswith("ViP-LLaVA")


@pytest.mark.parametrize(
    ("tower", "activation", "noted"),
    [("openai/clip-vit-large-patch14", "quick_gelu", 0), ("laion/CLIP-ViT-H-14", "gelu", 0), ("mine", "quick_gelu", 1)],
)
def test_a_towers_activation(tower: str, activation: str, noted: int, tmp_path: Path) -> None:
    weights, config = original(VIP)
    found = found_in(Weights.of(weights, tmp_path, config | {"mm_vision_tower": tower}))
    assert found.settings["vision_tower"]["config"]["hidden_act"] == activation
    assert sum("activation" in note for note in found.notes) == noted


def test_attention_heads_are_known_of_published_widths_alone() -> None:
    assert "num_attention_heads" not in tower_config(tower_of_width(32), "quick_gelu")
    assert tower_config(tower_of_width(1024), "quick_gelu")["num_attention_heads"] == 16


def tower_of_width(width: int) -> Weights:
    shapes = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "embeddings.position_embedding.weight": (577, width),
        "encoder.layers.0.mlp.fc1.weight": (4 * width, width),
    }
    return Weights.of({f"vision_tower.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()})


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_use_im_start_end": True}, "words <im_start> and <im_end> around each picture"),
        ({"image_aspect_ratio": "anyres"}, "trained on tiles of pictures .image_aspect_ratio anyres"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "tiles of pictures .* mm_patch_merge_type spatial_unpad"),
        ({"model_type": "llava_nonsense"}, "transformers has no model of type 'nonsense'"),
        ({"model_type": None}, "has no 'model_type', expected llava_llama"),
        ({"num_attention_heads": "many"}, "config.json: transformers refuses the configuration of 'llama'"),
    ],
)
def test_models_that_would_silently_be_others_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    weights, config = original(VIP)
    with pytest.raises(CheckpointError, match=message):
        found_in(Weights.of(weights, tmp_path, config | change))


def test_unknown_weights_and_missing_files_are_told(tmp_path: Path) -> None:
    weights, config = original(VIP)
    with pytest.raises(CheckpointError, match=r"weights that no model of this layout has: 'model.vision_resampler.q'"):
        found_in(Weights.of(weights | {"model.vision_resampler.q": torch.ones(1)}, tmp_path, config))
    with pytest.raises(CheckpointError, match=r"there is no config.json beside it"):
        found_in(Weights.of(weights, tmp_path))
    del weights["model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"]
    with pytest.raises(
        CheckpointError, match=r"'vision_tower.embeddings.class_embedding' \(our name\) is missing there"
    ):
        found_in(Weights.of(weights, tmp_path, config))


# --- there and back ---


@pytest.mark.parametrize(("name", "tables"), [(VIP, ("llava", "mm_projector_vip")), (FLANT5, ("clip_flant5",))])
def test_there_and_back_not_a_bit_changes(name: str, tables: tuple[str, ...]) -> None:
    weights, _ = original(name)
    key_map = KeyMap.named(*tables)
    ours = key_map.to_ours(Weights.of(weights))
    back = key_map.to_theirs(ours)
    assert set(weights) == set(back.infos) | set(ours.dropped) and not back.unexpected
    assert all(torch.equal(back.read(key), weights[key]) for key in back.infos)
