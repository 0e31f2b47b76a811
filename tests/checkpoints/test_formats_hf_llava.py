"""Llava and VipLlava of transformers, in all their spellings, against transformers' own models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_files import (
    GREEDY_LENGTH,
    batch_at_markers,
    check_logits,
    found_in,
    model_of,
    original,
    recorded,
    write_folder,
)
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from sightbridge.checkpoints.convert import convert
from sightbridge.checkpoints.folder import load_model
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.sources.weights import Weights
from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import CheckpointError
from sightbridge.generation.generate import generate
from small_models import TOKENIZERS

WORDS, PLACEHOLDER = 60, 59
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "initializer_range": 0.3,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "eos_token_id": None,
}
QWEN = LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True}
SIGLIP = VISION | {"model_type": "siglip_vision_model"}
MODELS: dict[str, dict[str, Any]] = {
    "llava": {"model_type": "llava"},
    "llava with CLS": {"model_type": "llava", "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
    "llava of two layers": {"model_type": "llava", "vision_feature_layer": [-2, 1]},
    "llava without biases": {"model_type": "llava", "multimodal_projector_bias": False},
    "llava on Qwen 2": {"model_type": "llava", "text_config": QWEN},
    "llava on Phi-3": {"model_type": "llava", "text_config": LLAMA | {"model_type": "phi3", "pad_token_id": 0}},
    "llava with SigLIP": {
        "model_type": "llava",
        "vision_config": SIGLIP,
        "vision_feature_select_strategy": "full",
    },
    "vipllava": {"model_type": "vipllava", "vision_feature_layer": [-1, -2, 1, 0]},
    "vipllava, another epsilon": {"model_type": "vipllava", "vision_feature_layer": -2, "projector_layernorm_eps": 0.5},
}


def make(name: str) -> Any:
    """One of transformers' models, its tower and text lively enough to tell one layer from another."""
    torch.manual_seed(3)
    options = {"text_config": LLAMA, "vision_config": VISION, "image_token_index": PLACEHOLDER} | MODELS[name]
    config = AutoConfig.for_model(**options)
    config.initializer_range = 0.3
    return AutoModelForImageTextToText.from_config(config).eval()


def check_against(theirs: Any, folder: Path, what: str) -> None:
    """Compare logits and greedy ids of two rows, one with two pictures, with those of transformers' model."""
    found = found_in(folder)
    known = "template" in found.settings["prompt"]
    assert known != any("no prompt template is known" in note for note in found.notes)
    model = model_of(found, {"prompt": {"template": "plain"}})
    tokens = model.tokens_per_image
    ids = torch.randint(3, PLACEHOLDER, (2, 9))
    ids[0, [2, 5]] = ids[1, 1] = -200
    pictures = torch.randn(3, 3, 56, 56)
    batch = batch_at_markers(ids, torch.ones_like(ids), pictures, tokens=tokens, padding_side="left")
    spread = batch.input_ids.masked_fill(batch.image_slots, PLACEHOLDER)
    inputs = {"input_ids": spread, "attention_mask": batch.attention_mask, "pixel_values": pictures}
    with torch.no_grad():
        own, expected = model.logits(batch), theirs(**inputs).logits
    real = batch.attention_mask.bool()
    difference = (own - expected)[real].abs().max().item() / expected[real].abs().max().item()
    settings = GenerationSettings(max_new_tokens=GREEDY_LENGTH)
    answers = generate(model, batch, settings, eos_ids=[], pad_id=0)
    asked = {"do_sample": False, "max_new_tokens": GREEDY_LENGTH, "eos_token_id": None, "pad_token_id": 0}
    theirs_ids = theirs.generate(**inputs, **asked)[:, spread.shape[1] :]
    print(f"parity {what}: logits {difference:.2e} of their largest, {(answers != theirs_ids).sum()} ids differ")
    assert difference <= 1e-5
    assert answers.tolist() == theirs_ids.tolist()
    assert len(set(answers.flatten().tolist())) > 4


@pytest.mark.parametrize("name", MODELS)
def test_parity_with_what_save_pretrained_writes(name: str, tmp_path: Path) -> None:
    theirs = make(name)
    theirs.save_pretrained(tmp_path)
    check_against(theirs, tmp_path, name)


HUB = [(r"^model\.language_model\.", "language_model.model."), (r"^lm_head\.", "language_model.lm_head.")]
HUB += [(r"^model\.vision_tower\.", "vision_tower.vision_model."), (r"^model\.multi", "multi")]


def spelt_as_on_the_hub(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names in memory of transformers 5 as transformers 4 wrote them."""
    for pattern, name in HUB:
        state = {re.sub(pattern, name, key): weight for key, weight in state.items()}
    return state


@pytest.mark.parametrize("name", ["llava", "vipllava", "llava with SigLIP"])
@pytest.mark.parametrize("spelling", ["hub", "memory"])
def test_parity_of_older_and_of_unsaved_spellings(name: str, spelling: str, tmp_path: Path) -> None:
    theirs = make(name)
    state = theirs.state_dict()
    weights = spelt_as_on_the_hub(state) if spelling == "hub" else state
    write_folder(tmp_path, weights, theirs.config.to_dict(), "safetensors in two" if spelling == "hub" else "bin")
    check_against(theirs, tmp_path, f"{name}, spelt as {spelling}")


def test_parity_of_recorded_weights_in_the_hubs_layout(tmp_path: Path) -> None:
    """The recorded ViP-LLaVA as the conversion for the hub writes it: a word more, the tower's own names inside."""
    weights, config = original("vip_tiny")
    names = [
        (r"^model\.vision_tower\.vision_tower\.", "vision_tower."),
        (r"^model\.mm_projector\.clip_layernorm", "multi_modal_projector.projector_layernorm"),
        (r"^model\.mm_projector\.final_linear\.0", "multi_modal_projector.linear_1"),
        (r"^model\.mm_projector\.final_linear\.2", "multi_modal_projector.linear_2"),
        (r"^(?=model\.|lm_head\.)", "language_model."),
    ]
    for pattern, name in names:
        weights = {re.sub(pattern, name, key): weight for key, weight in weights.items()}
    for key in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        weights[key] = torch.cat([weights[key], torch.randn(1, 48)])
    text = {key: config[key] for key in config if "mm_" not in key} | {"model_type": "llama"}  # still says 900 words
    vision = VISION | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 12}
    whole = {"model_type": "vipllava", "text_config": text, "vision_config": vision, "image_token_index": 900}
    found = found_in(write_folder(tmp_path, weights, whole, "safetensors"))
    assert found.settings["language_model"]["config"]["vocab_size"] == 901
    assert (found.settings["prompt"]["template"], found.settings["image"]["fit"]) == ("llava_v1", "pad")
    check_logits("ViP-LLaVA in the hub's layout", model_of(found), recorded("logits", "vip_v1_legacy"), 900)
    shutil.copytree(TOKENIZERS / "llama", tmp_path, dirs_exist_ok=True)
    model, _ = load_model(convert(tmp_path, tmp_path / "ours").folder)
    check_logits("ViP-LLaVA in the hub's layout, converted", model, recorded("logits", "vip_v1_legacy"), 900)


def test_a_configuration_as_short_as_on_the_hub(tmp_path: Path) -> None:
    """What equals the defaults of the day is left out there: sizes of Vicuna, the whole tower, the projector."""
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "torch_dtype": "float16",
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    }
    weights = spelt_as_on_the_hub(make("llava").state_dict())
    weights["language_model.model.embed_tokens.weight"] = torch.empty(32064, 1)
    settings = found_in(Weights.of(weights, tmp_path, config)).settings
    language_model, tower = settings["language_model"]["config"], settings["vision_tower"]
    assert (language_model["hidden_size"], language_model["num_hidden_layers"]) == (4096, 32)
    assert (language_model["vocab_size"], language_model["rms_norm_eps"]) == (32064, 1e-05)
    assert language_model["hidden_act"] == "silu" and tower["config"]["hidden_act"] == "quick_gelu"
    assert (tower["layers"], tower["class_token"]) == ([-2], "drop")
    assert settings["prompt"]["template"] == "vicuna_v1"
    assert not {"double_bos", "lost_newline"} & settings["prompt"]["switches"].keys()


@pytest.mark.parametrize(
    ("file", "content", "image"),
    [
        ("preprocessor_config.json", {"do_center_crop": True, "crop_size": {"height": 56}}, {"fit": "crop"}),
        ("preprocessor_config.json", {"do_pad": True, "do_center_crop": True}, {"fit": "pad"}),
        ("processor_config.json", {"image_processor": {"do_center_crop": True}}, {"fit": "crop"}),
        (
            "preprocessor_config.json",
            {"size": {"height": 56, "width": 56}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            {"fit": "squash", "mean": [0.5] * 3, "std": [0.5] * 3},
        ),
    ],
)
def test_how_pictures_are_prepared_is_read_from_the_folder(
    file: str, content: dict[str, Any], image: dict[str, Any], tmp_path: Path
) -> None:
    make("llava").save_pretrained(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    found = found_in(tmp_path)
    assert found.settings["image"] == image
    assert any("image.fit=pad" in note for note in found.notes) == (image["fit"] != "pad")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava_next"}, r"config.json is of type 'llava_next'; what can be read are llava and vipllava"),
        ({"projector_hidden_act": "relu"}, "activation is relu, not gelu"),
        ({"text_config": {"model_type": "nonsense"}}, "transformers refuses its config.json"),
    ],
)
def test_models_that_would_silently_be_others_are_refused(change: dict[str, Any], message: str) -> None:
    theirs = make("llava")
    with pytest.raises(CheckpointError, match=message):
        found_in(Weights.of(theirs.state_dict(), config=theirs.config.to_dict() | change))


def test_a_head_that_is_neither_there_nor_shared() -> None:
    theirs = make("llava")
    weights = {name: weight for name, weight in theirs.state_dict().items() if name != "lm_head.weight"}
    with pytest.raises(CheckpointError, match=r"output head is missing; config\.json ties none"):
        found_in(Weights.of(weights, config=theirs.config.to_dict()))


@pytest.mark.parametrize("name", ["llava", "vipllava", "llava with SigLIP"])
def test_there_and_back_not_a_bit_changes(name: str) -> None:
    """Whatever the spelling that was read, the hub's is written; it is what transformers 4 and 5 read."""
    state = make(name).state_dict()
    wanted = spelt_as_on_the_hub(state)
    key_map = KeyMap.named("hf_llava")
    for weights in (state, wanted):
        back = key_map.to_theirs(key_map.to_ours(Weights.of(weights)))
        assert set(back.infos) == set(wanted) and not back.unexpected
        assert all(torch.equal(back.read(key), weight) for key, weight in wanted.items())
