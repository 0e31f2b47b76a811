"""Parameter groups: every trained parameter once, norms and biases without decay, each part at its own pace."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from training_models import batches_of, parts, tiny_model

from sightbridge.config.model import VisionTowerSettings
from sightbridge.config.training import OptimSettings, PartsSettings, TrainingSettings
from sightbridge.errors import SettingsError
from sightbridge.models.build import build_vision_tower
from sightbridge.models.parts import set_trainable
from sightbridge.training.loop import train
from sightbridge.training.optim import build_optimizer, parameter_groups

OPTIM = OptimSettings(lr=1e-3, weight_decay=0.05)
ALL = ("vision_tower", "connector", "language_model")


@pytest.mark.parametrize("language_model", ["llama", "t5"])
def test_every_trained_parameter_is_in_one_group(language_model):
    model = tiny_model(*ALL, language_model=language_model)
    grouped = [id(p) for group in parameter_groups(model, parts(*ALL), OPTIM) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("language_model", ["llama", "t5"])
def test_norms_and_biases_are_not_decayed(language_model):
    model = tiny_model(*ALL, language_model=language_model)
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {
        names[id(p)]: group["weight_decay"]
        for group in parameter_groups(model, parts(*ALL), OPTIM)
        for p in group["params"]
    }
    for name, value in decay.items():
        is_norm_or_bias = name.endswith((".bias", "relative_attention_bias.weight")) or "norm" in name.lower()
        is_vector = model.get_parameter(name).ndim < 2  # CLIP's class embedding
        assert value == (0.0 if is_norm_or_bias or is_vector else 0.05), name
    # the rule finds what it is about: CLIP's LayerNorm, RMSNorms that no name rule for "LayerNorm" would find, biases
    undecayed = [name for name, value in decay.items() if value == 0]
    norm = {"llama": "input_layernorm.weight", "t5": "layer_norm.weight"}[language_model]
    for ending in (norm, "layer_norm1.weight", "layer_norm1.bias", "q_proj.bias"):
        assert any(name.endswith(ending) for name in undecayed), ending


def test_frozen_parts_have_no_group():
    groups = parameter_groups(tiny_model(), parts(), OPTIM)
    assert [group["name"] for group in groups] == ["connector", "connector/no_decay"]


def test_a_part_has_its_own_rate_and_decay():
    settings = PartsSettings.model_validate(
        {"language_model": {"train": "full", "lr": 1e-5, "weight_decay": 0.3}, "vision_tower": {"weight_decay": 0.0}}
    )
    model = tiny_model()
    set_trainable(model, settings)
    groups = {group["name"]: group for group in parameter_groups(model, settings, OPTIM)}
    assert {name: (group["peak_lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "connector": (1e-3, 0.05),
        "connector/no_decay": (1e-3, 0.0),
        "language_model": (1e-5, 0.3),
        "language_model/no_decay": (1e-5, 0.0),
    }


def test_a_decay_of_zero_is_a_setting_too():
    settings = PartsSettings.model_validate({"connector": {"train": "full", "weight_decay": 0.0}})
    assert {group["weight_decay"] for group in parameter_groups(tiny_model(), settings, OPTIM)} == {0.0}


def test_adamw_gets_the_settings():
    optimizer = build_optimizer(tiny_model(), parts(), OptimSettings(betas=(0.8, 0.95), eps=1e-6))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["betas"] == (0.8, 0.95) and group["eps"] == 1e-6 for group in optimizer.param_groups)


class Lavis(nn.Module):
    """LAVIS' tower of three layers in transformers' naming, and beside it what LAVIS' groups have in odd shapes."""

    def __init__(self):
        super().__init__()
        config = {"model_type": "blip_2_vision_model", "hidden_size": 16, "intermediate_size": 24}
        config |= {"num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        self.vision_tower = build_vision_tower(VisionTowerSettings(config=config, layers=[-1]))
        self.connector = nn.Module()
        self.connector.query_tokens = nn.Parameter(torch.zeros(1, 6, 8))
        self.connector.temp = nn.Parameter(torch.tensor(0.07))
        self.connector.vision_proj = nn.Linear(8, 4, bias=False)
        self.connector.ln_vision = nn.RMSNorm(8)
        self.language_model = nn.Identity()


NAMES = {
    r"^connector\.": "",
    r"^vision_tower\.model\.": "visual_encoder.",
    r"embeddings\.class_embedding": "cls_token",
    r"embeddings\.position_embedding": "pos_embed",
    r"embeddings\.patch_embedding": "patch_embed.proj",
    r"encoder\.layers": "blocks",
    r"self_attn\.qkv\.bias": "attn.q_bias",  # theirs is in two pieces
    r"self_attn\.projection": "attn.proj",
    r"self_attn": "attn",
    r"layer_norm": "norm",
}


def test_parity_with_lavis_groups():
    golden = json.loads((Path(__file__).parents[1] / "golden" / "lavis" / "optim_groups.json").read_text())
    theirs = {name: (group["weight_decay"], group["lr_scale"]) for group in golden for name in group["names"]}
    model, found = Lavis(), {}
    settings = PartsSettings.model_validate(
        {"vision_tower": {"train": "full", "layer_decay": 0.95}, "connector": {"train": "full"}}
    )
    names = {id(p): name for name, p in model.named_parameters()}
    for group in parameter_groups(model, settings, OPTIM):
        for parameter in group["params"]:
            name = names[id(parameter)]
            for ours, lavis in NAMES.items():
                name = re.sub(ours, lavis, name)
            found[name] = group["weight_decay"], group["lr_scale"]
    assert found.keys() == {name for name in theirs if not name.endswith("v_bias")}
    difference = max(abs(found[name][1] - theirs[name][1]) for name in found)
    print(f"parity lr_scale of LAVIS' layers: {difference:.1e}")
    assert difference < 1e-12 and all(found[name][0] == theirs[name][0] for name in found)


def test_layer_decay_reaches_the_weights(tmp_path):
    settings = PartsSettings.model_validate({"vision_tower": {"train": "full", "layer_decay": 0.1}})
    model = tiny_model("vision_tower", layers=[-1])
    layers = model.vision_tower.model.encoder.layers
    before = [layer.mlp.fc1.weight.clone() for layer in layers]
    training = TrainingSettings(steps=1, parts=settings, log_every=1)
    (line,) = train(model, batches_of([(0, 1)]), training, OptimSettings(lr=1e-2), tmp_path)
    moved = [(layer.mlp.fc1.weight - old).abs().max().item() for layer, old in zip(layers, before, strict=True)]
    assert moved == pytest.approx([1e-4, 1e-3], rel=0.05), "AdamW's first step is a learning rate long"
    assert line["lr/vision_tower"] == pytest.approx(1e-3), "the last layer's: CLIP's norm behind it is not used"


def test_layer_decay_needs_layers():
    settings = PartsSettings.model_validate({"connector": {"train": "full", "layer_decay": 0.9}})
    with pytest.raises(SettingsError, match="the connector has no numbered layers") as caught:
        parameter_groups(Lavis(), settings, OPTIM)
    assert caught.value.key == "training.parts.connector.layer_decay"


def test_eight_bits_without_the_package_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(SettingsError, match=r"pip install 'sightbridge\[quant\]'"):
        build_optimizer(tiny_model(), parts(), OptimSettings(kind="adamw_8bit"))


def test_nothing_to_train_is_told():
    model = tiny_model().requires_grad_(False)
    with pytest.raises(SettingsError, match=r"nothing to train.*training\.parts\.connector\.train=full"):
        parameter_groups(model, parts(), OPTIM)
