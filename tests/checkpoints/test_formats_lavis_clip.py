"""LAVIS' CLIP ViT-L: the tower of openai/CLIP without its last block, as transformers' CLIPVisionModel."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from blip2_files import GOLDEN, assert_same, find, gap, model_of
from torch import Tensor, nn

from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.config.model import VisionTowerSettings
from sightbridge.models.build import build_vision_tower

WIDTH, HEADS, BLOCKS, SIDE = 48, 4, 3, 28


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """CLIP's residual block (arXiv 2103.00020, section 2.4), with torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        layers = [("c_fc", nn.Linear(WIDTH, 4 * WIDTH)), ("gelu", QuickGELU()), ("c_proj", nn.Linear(4 * WIDTH, WIDTH))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.ln_1(x)
        x = x + self.attn(inner, inner, inner, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Clip(nn.Module):
    """The tower: patches without a bias, CLS, positions, a norm in front of the blocks and none behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 14, 14, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn((SIDE // 14) ** 2 + 1, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block() for _ in range(BLOCKS))})

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.conv1(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        blocks: Any = self.transformer["resblocks"]
        for block in blocks:
            x = block(x)
        return x


def clip() -> Clip:
    torch.manual_seed(0)
    model = Clip().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def test_parity_clip_tower() -> None:
    theirs = clip()
    found = find(Weights.of(theirs.state_dict()))
    assert found.format == "lavis_tower"
    config = found.settings["vision_tower"]["config"]
    assert (config["hidden_act"], config["layer_norm_eps"]) == ("quick_gelu", 1e-5)
    options = {"config": config | {"num_attention_heads": HEADS}, "layers": found.settings["vision_tower"]["layers"]}
    tower = build_vision_tower(VisionTowerSettings.model_validate(options))
    state = {name.removeprefix("vision_tower."): found.weights.read(name) for name in found.weights.infos}
    tower.model.load_state_dict(state)
    pictures = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        difference = gap(tower(pictures), theirs(pictures))
    print(f"parity LAVIS' CLIP tower: {difference:.2e}")
    assert difference <= 2e-6
    prefixed = Weights.of({f"visual_encoder.{name}": tensor for name, tensor in theirs.state_dict().items()})
    tables = KeyMap.named("lavis_clip_l")
    assert_same(tables.to_theirs(tables.to_ours(prefixed)), prefixed)


def test_a_whole_model_with_a_clip_tower() -> None:
    recorded = torch.load(GOLDEN / "lavis" / "stage2_opt_prompt.pt", weights_only=True)["state_dict"]
    state = {name: tensor for name, tensor in recorded.items() if not name.startswith("visual_encoder.")}
    state |= {f"visual_encoder.{name}": tensor for name, tensor in clip().state_dict().items()}
    found = find(Weights.of(state))
    assert found.settings["vision_tower"]["config"]["model_type"] == "clip_vision_model"
    assert found.settings["vision_tower"]["layers"] == [-1]
    heads: dict[str, Any] = {"config": {"num_attention_heads": HEADS}}
    model_of(found, vision_tower=heads, language_model=heads, connector={"num_heads": 4})


def test_what_follows_the_last_block_is_left_out_and_told() -> None:
    """openai/CLIP's own tower has a norm and a projection behind its blocks."""
    state = clip().state_dict() | {"ln_post.weight": torch.ones(WIDTH), "proj": torch.ones(WIDTH, 8)}
    found = find(Weights.of(state))
    assert found.notes == ("left out, LAVIS does not build it: ln_post, proj",)
    assert_same(found.weights, find(Weights.of(clip().state_dict())).weights)
