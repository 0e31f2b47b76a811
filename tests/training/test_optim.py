"""Parameter groups: every trained parameter once, norms and biases without decay, each part at its own pace."""

import pytest
import torch
from training_models import parts, tiny_model

from sightbridge.config.training import OptimSettings, PartsSettings
from sightbridge.errors import SettingsError
from sightbridge.models.parts import set_trainable
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
        is_norm_or_bias = name.endswith(".bias") or "norm" in name.lower()
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


def test_nothing_to_train_is_told():
    model = tiny_model().requires_grad_(False)
    with pytest.raises(SettingsError, match=r"nothing to train.*training\.parts\.connector\.train=full"):
        parameter_groups(model, parts(), OPTIM)
