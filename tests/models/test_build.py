"""From settings to a model: seeds, sources, and what is said when something is wrong or missing."""

from __future__ import annotations

import io
import json

import pytest
import torch
import transformers
from builders import LANGUAGE_MODELS, VISION, tiny_model, tiny_settings
from safetensors.torch import load_file, save_file

from sightbridge.config.model import LanguageModelSettings, ModelSettings, VisionTowerSettings
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models import build as build_module
from sightbridge.models.build import build_language_model, build_model, build_vision_tower, resolve_source

LLAMA = {"model_type": "llama", **LANGUAGE_MODELS["llama"]}


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_seed_decides_and_each_part_has_its_own_stream() -> None:
    before = torch.get_rng_state()
    first, again = weights_of(tiny_model()), weights_of(tiny_model())
    assert same(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(first, weights_of(build_model(tiny_settings(), seed=1)))
    other_tower = tiny_model(vision="vit")
    assert same(weights_of(tiny_model().language_model), weights_of(other_tower.language_model))


def test_models_come_in_evaluation_mode() -> None:
    assert not any(module.training for module in tiny_model().modules())


def test_random_vit_g_starts_at_a_usable_scale() -> None:
    settings = VisionTowerSettings(config={"model_type": "blip_2_vision_model", **VISION["blip_2_vision_model"]})
    weight = build_vision_tower(settings).model.encoder.layers[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_saved_language_models_come_back_bit_for_bit(family: str, dtype: str, tmp_path) -> None:
    config = {"model_type": family, **LANGUAGE_MODELS[family]}
    original = build_language_model(LanguageModelSettings(config=config, dtype=dtype))
    original.model.save_pretrained(tmp_path)
    loaded = build_language_model(LanguageModelSettings(source=str(tmp_path), dtype=dtype))
    assert loaded.model.dtype == getattr(torch, dtype)
    assert loaded.has_own_head == original.has_own_head
    assert same(weights_of(original), weights_of(loaded))


def test_the_type_asked_for_wins_over_the_files() -> None:
    settings = LanguageModelSettings(config=LLAMA, dtype="bfloat16")
    assert {parameter.dtype for parameter in build_language_model(settings).parameters()} == {torch.bfloat16}


def test_override_changes_the_sources_configuration(tmp_path) -> None:
    config = {"model_type": "t5", **LANGUAGE_MODELS["t5"]}
    build_language_model(LanguageModelSettings(config=config)).model.save_pretrained(tmp_path)
    plain = build_language_model(LanguageModelSettings(source=str(tmp_path)))
    exact = build_language_model(LanguageModelSettings(source=str(tmp_path), override={"dense_act_fn": "gelu"}))
    activations = [model.model.encoder.block[0].layer[1].DenseReluDense.act for model in (plain, exact)]
    assert type(activations[0]).__name__ == "NewGELUActivation"
    assert type(activations[1]).__name__ == "GELUActivation"
    with pytest.raises(SettingsError, match=r"'t5' configuration has no 'dense_act'\. Did you mean 'dense_act_fn'\?"):
        build_language_model(LanguageModelSettings(source=str(tmp_path), override={"dense_act": "gelu"}))


def test_image_size_of_a_source_resamples_the_positions(tmp_path) -> None:
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION["clip_vision_model"])).eval()
    model.save_pretrained(tmp_path)
    tower = build_vision_tower(VisionTowerSettings(source=str(tmp_path), image_size=42)).eval()
    pictures = torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        expected = model(pictures, interpolate_pos_encoding=True).last_hidden_state
        assert torch.allclose(tower(pictures), expected, atol=1e-6)


def test_a_missing_source_says_what_was_looked_for(tmp_path, monkeypatch) -> None:
    settings = LanguageModelSettings(source="nobody/no-such-model")
    monkeypatch.setattr(build_module, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"language model: 'nobody/no-such-model' is no folder .* HF_HUB_OFFLINE"):
        build_language_model(settings)
    monkeypatch.setattr(build_module, "HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match=r"could not be fetched from the Hugging Face hub"):
        build_language_model(settings)
    with pytest.raises(CheckpointError, match=rf"vision tower: The folder '{tmp_path}' does not hold a Hugging Face"):
        build_vision_tower(VisionTowerSettings(source=str(tmp_path)))


def test_weights_that_a_file_lacks_do_not_stay_random(tmp_path) -> None:
    build_language_model(LanguageModelSettings(config=LLAMA)).model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of the language model \(llama\), such as 'model.norm"):
        build_language_model(LanguageModelSettings(source=str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"model_type": "lama"}, "model_type", r"not 'lama'\. Did you mean 'llama'\?"),
        ({"hiden_size": 8}, "hiden_size", r"'llama' configuration has no 'hiden_size'\. Did you mean 'hidden_size'\?"),
        ({"hidden_size": "wide"}, None, "transformers refuses the configuration of 'llama'"),
    ],
)
def test_wrong_configurations_are_refused(change: dict, key: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        build_language_model(LanguageModelSettings(config={**LLAMA, **change}))
    assert caught.value.key == "model.language_model.config" + (f".{key}" if key else "")


def test_an_embedded_source_is_a_folder_of_the_package(tmp_path, monkeypatch) -> None:
    (tmp_path / "shapes-tower").mkdir()
    (tmp_path / "shapes-tower" / "config.json").write_text("{}")
    monkeypatch.setattr(build_module, "PARENTS", tmp_path)
    assert resolve_source("embedded:shapes-tower") == str(tmp_path / "shapes-tower")
    assert resolve_source("some/where") == "some/where"
    with pytest.raises(CheckpointError, match=r"no parent 'shapes-towr'; it has: shapes-tower\. Did you mean"):
        resolve_source("embedded:shapes-towr")


def test_connector_fits_between_tower_and_language_model() -> None:
    settings = tiny_settings("opt", layers=[-1, 0], class_token="drop")
    model = build_model(ModelSettings.model_validate(settings))
    assert model.vision_tower.channels == 64
    assert model.connector.layers[0].in_features == 64
    assert model.connector.layers[2].out_features == model.language_model.width == 20
    assert model.tokens_per_image == model.vision_tower.positions == 4


@pytest.mark.parametrize("part", ["language_model", "vision_tower"])
def test_code_in_a_models_folder_is_never_run(part, tmp_path, monkeypatch):
    names = dict.fromkeys(["AutoConfig", "AutoModel", "AutoModelForCausalLM"], "evil.Evil")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": names}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 5))
    settings = {"language_model": LanguageModelSettings, "vision_tower": VisionTowerSettings}[part]
    with pytest.raises(CheckpointError, match="contains custom code"):
        build_module.find_config(settings(source=str(tmp_path)), part)
    assert not (tmp_path / "ran").exists()
