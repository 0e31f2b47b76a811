"""Drop path: nothing at rate 0 and in evaluation, branches left out per picture and unbiased while training."""

from __future__ import annotations

import pytest
import torch
from builders import SIZE, VISION, widest_difference
from torch import nn

from sightbridge.config.model import VisionTowerSettings
from sightbridge.errors import SettingsError
from sightbridge.models.build import build_vision_tower
from sightbridge.models.drop_path import add_drop_path
from sightbridge.models.vision_tower import VisionTower, find_blocks


def tower(family: str, rate: float, depth: int = 4) -> VisionTower:
    config = {"model_type": family, **VISION[family], "num_hidden_layers": depth}
    if family != "siglip_vision_model":  # has no such key, and larger weights anyway
        config["initializer_range"] = 0.2
    settings = VisionTowerSettings.model_validate({"config": config, "layers": [-1], "drop_path": rate})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_vision_tower(settings)


@pytest.mark.parametrize("family", VISION)
def test_evaluation_and_rate_0_change_nothing(family: str) -> None:
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        plain = tower(family, 0.0).eval()(pictures)
        assert torch.equal(tower(family, 0.9).eval()(pictures), plain)
        assert torch.equal(tower(family, 0.0).train()(pictures), plain)
        assert widest_difference(tower(family, 0.9).train()(pictures), plain) > 1e-3


@pytest.mark.parametrize("family", VISION)
def test_names_of_weights_stay(family: str) -> None:
    assert list(tower(family, 0.5).state_dict()) == list(tower(family, 0.0).state_dict())


@pytest.mark.parametrize("family", VISION)
def test_the_rate_grows_linearly_over_the_blocks_and_rows_drop_apart(family: str) -> None:
    model = tower(family, 0.6).train()
    pictures = 4000
    dropped: list[list[float]] = []
    branches = [
        next(module for name, module in block.named_children() if name in names)
        for block in find_blocks(model.model)
        for names in (("self_attn", "attention"), ("mlp",))
    ]
    for branch in branches:  # behind the hook that drops
        branch.register_forward_hook(
            lambda module, inputs, output: dropped.append(
                (output[0] if isinstance(output, tuple) else output).flatten(1).abs().sum(1).eq(0).tolist()
            )
        )
    with torch.no_grad():
        model(torch.randn(pictures, 3, SIZE, SIZE))
    rates = torch.tensor(dropped).float().mean(dim=1)
    expected = torch.tensor([0.0, 0.2, 0.4, 0.6]).repeat_interleave(2)
    assert (rates - expected).abs().max() < 0.04  # five standard deviations of a mean over 4000 pictures
    assert dropped[4] != dropped[5]  # the two branches of a block draw apart


def test_the_mean_stays() -> None:
    block = nn.Module()
    block.mlp, block.attention = nn.Identity(), nn.Identity()
    first = nn.ModuleDict({"mlp": nn.Identity(), "self_attn": nn.Identity()})
    add_drop_path(nn.ModuleList([first, block]), 0.75)
    states = torch.randn(20000, 1, 2).abs() + 1
    kept = block.mlp.train()(states)
    assert kept.mean().item() == pytest.approx(states.mean().item(), rel=0.05)
    assert set((kept / states).flatten().round(decimals=4).tolist()) == {0.0, 4.0}


def test_a_tower_that_trains_drops_and_a_frozen_one_does_not() -> None:
    model = tower("blip_2_vision_model", 0.9).requires_grad_(False).eval()
    pictures = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(model(pictures), model(pictures))


def test_blocks_without_known_branches_are_refused() -> None:
    with pytest.raises(SettingsError, match="has no module self_attn or attention, so drop path cannot"):
        add_drop_path(nn.ModuleList([nn.ModuleDict({"mlp": nn.Identity()})]), 0.1)
