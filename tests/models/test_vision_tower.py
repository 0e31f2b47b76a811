"""Feature selection against Hugging Face's own hidden states, and that nothing unused remains."""

from __future__ import annotations

import pytest
import torch
import transformers
from builders import PATCHES, SIZE, VISION, widest_difference

from sightbridge.config.model import VisionTowerSettings
from sightbridge.errors import SettingsError
from sightbridge.models.build import VISION_CLASSES, build_vision_tower
from sightbridge.models.vision_tower import VisionTower, find_blocks, resize_positions

PREFIX = {"siglip_vision_model": 0, "dinov2_with_registers": 4}
"""CLS and register positions, where there is not just a CLS."""


def reference(family: str):
    """The same weights as ``build``, uncut."""
    config = transformers.AutoConfig.for_model(family, initializer_range=0.2, **VISION[family])
    torch.manual_seed(1)
    if family in VISION_CLASSES:
        return VISION_CLASSES[family](config).eval()
    return transformers.AutoModel.from_config(config).eval()


def build(family: str, **settings) -> VisionTower:
    """A tower with the reference's weights."""
    model = reference(family)
    if "image_size" in settings:
        model = resize_positions(model, settings.pop("image_size")).eval()
    return VisionTower(model, **settings).eval()


@pytest.mark.parametrize("layers", [[-1], [-2], [0], [-2, -3, 1, 4], [2, 2]])
@pytest.mark.parametrize("family", VISION)
def test_parity_hidden_states(family: str, layers: list[int]) -> None:
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        states = reference(family)(pictures, output_hidden_states=True).hidden_states
        tower = build(family, layers=layers, class_token="drop")
        features = tower(pictures)
    expected = torch.cat([states[index] for index in layers], dim=-1)[:, PREFIX.get(family, 1) :]
    assert features.shape == (2, tower.positions, tower.channels) == (2, PATCHES, 32 * len(layers))
    difference = widest_difference(features, expected)
    print(f"parity {family} {layers}: {difference:.2e}")
    assert difference <= 1e-6


@pytest.mark.parametrize("family", VISION)
def test_parity_output_keeps_the_final_norm(family: str) -> None:
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = reference(family)(pictures).last_hidden_state
        tower = build(family)
        features = tower(pictures)
    difference = widest_difference(features, expected)
    print(f"parity {family} output: {difference:.2e}")
    assert difference <= 1e-6
    assert tower.positions == PATCHES + PREFIX.get(family, 1)


@pytest.mark.parametrize("family", VISION)
def test_blocks_above_the_highest_used_are_gone(family: str) -> None:
    calls = []
    whole = reference(family)
    for index, block in enumerate(find_blocks(whole)):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    tower = VisionTower(whole, layers=[1, -3])  # hidden states 1 and 2 of 0..4
    tower(torch.randn(1, 3, SIZE, SIZE))
    assert calls == [0, 1]
    size, full = (sum(p.numel() for p in model.parameters()) for model in (tower, reference(family)))
    block = sum(p.numel() for p in find_blocks(reference(family))[0].parameters())
    assert size <= full - 2 * block


@pytest.mark.parametrize("layers", ["output", [-1], [0, -2]])
@pytest.mark.parametrize("family", VISION)
def test_every_parameter_left_takes_part(family: str, layers) -> None:
    tower = build(family, layers=layers)
    tower(torch.randn(2, 3, SIZE, SIZE)).square().sum().backward()
    assert [name for name, parameter in tower.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("family", ["blip_2_vision_model", "clip_vision_model", "siglip_vision_model", "vit"])
def test_parity_resampled_positions(family: str) -> None:
    pictures = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = reference(family)(pictures, interpolate_pos_encoding=True).last_hidden_state
        tower = build(family, image_size=56)
        features = tower(pictures)
    difference = widest_difference(features, expected)
    print(f"parity {family} at 56 pixels: {difference:.2e}")
    assert difference <= 1e-6
    assert tower.image_size == 56
    assert tower.positions == 16 + PREFIX.get(family, 1)


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers"])
def test_parity_resampled_positions_dino(family: str) -> None:
    pictures = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        difference = widest_difference(
            build(family, image_size=56)(pictures), reference(family)(pictures).last_hidden_state
        )
    print(f"parity {family} at 56 pixels: {difference:.2e}")
    assert difference <= 1e-6


def test_a_picture_of_the_wrong_size_says_what_to_set() -> None:
    with pytest.raises(SettingsError, match=r"takes pictures of 28x28 pixels but was given 42x56") as caught:
        build("dinov2")(torch.randn(1, 3, 42, 56))
    assert caught.value.key == "model.image.size"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": [5]}, "Hidden state 5 does not exist: the vision tower has 4 blocks, so indices run from -5 to 4"),
        ({"layers": []}, "'layers' is empty"),
        ({"image_size": 30}, "image_size 30 is no multiple of the vision tower's patch size 14"),
    ],
)
def test_impossible_settings(settings: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build("clip_vision_model", **settings)


@pytest.mark.parametrize("family", ["clip", "siglip", "blip-2"])
def test_whole_models_lend_their_tower(family: str, tmp_path) -> None:
    text = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = {"initializer_range": 0.2, **VISION["clip_vision_model"]}
    if family == "blip-2":
        opt = {**text, "model_type": "opt", "ffn_dim": 8, "word_embed_proj_dim": 32}
        config = transformers.Blip2Config(vision_config=vision, qformer_config=text, text_config=opt)
        model = transformers.Blip2ForConditionalGeneration(config).eval()
    else:
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = transformers.AutoConfig.for_model(family, vision_config=vision, text_config={**text, **ids})
        model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tower = build_vision_tower(VisionTowerSettings(source=str(tmp_path), layers=[-2])).eval()
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        vision_model = model.base_model.vision_model
        expected = vision_model(pictures, output_hidden_states=True).hidden_states[-2]
        assert torch.equal(tower(pictures), expected)
