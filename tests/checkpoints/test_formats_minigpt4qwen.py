"""Files of MiniGPT4Qwen and mBLIP: what trained is found, and Qwen-1 computes the same as a Qwen2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from blip2_files import GOLDEN, assert_same, find, gap
from torch import Tensor, nn
from torch.nn import functional

from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.config.model import LanguageModelSettings
from sightbridge.errors import CheckpointError
from sightbridge.models.build import build_language_model

WIDTH, HEADS, BLOCKS, WORDS = 32, 4, 3, 47
Q_FORMER_WIDTH = 16


class Qwen1(nn.Module):
    """Qwen-1 as its report (arXiv 2309.16609, section 2.3) describes it, with the names of its weights.

    Pre-norm blocks with RMSNorm, one matrix with a bias for query, key and value, rotary positions, SwiGLU with the
    gate in ``w2``, a head of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        block = lambda: nn.ModuleDict(  # noqa: E731
            {
                "ln_1": nn.RMSNorm(WIDTH, eps=1e-6),
                "attn": nn.ModuleDict(
                    {"c_attn": nn.Linear(WIDTH, 3 * WIDTH), "c_proj": nn.Linear(WIDTH, WIDTH, bias=False)}
                ),
                "ln_2": nn.RMSNorm(WIDTH, eps=1e-6),
                "mlp": nn.ModuleDict(
                    {
                        "w1": nn.Linear(WIDTH, 24, bias=False),
                        "w2": nn.Linear(WIDTH, 24, bias=False),
                        "c_proj": nn.Linear(24, WIDTH, bias=False),
                    }
                ),
            }
        )
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(WORDS, WIDTH),
                "h": nn.ModuleList(block() for _ in range(BLOCKS)),
                "ln_f": nn.RMSNorm(WIDTH, eps=1e-6),
            }
        )
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        for parameter in self.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        transformer: Any = self.transformer
        hidden = transformer["wte"](ids)
        for block in transformer["h"]:
            hidden = hidden + self._attend(block["attn"], block["ln_1"](hidden))
            inner, mlp = block["ln_2"](hidden), block["mlp"]
            hidden = hidden + mlp["c_proj"](mlp["w1"](inner) * functional.silu(mlp["w2"](inner)))
        return self.lm_head(transformer["ln_f"](hidden))

    def _attend(self, attention: Any, hidden: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in attention["c_attn"](hidden).split(WIDTH, dim=-1)
        )
        seen = functional.scaled_dot_product_attention(rotate(query), rotate(key), value, is_causal=True)
        return attention["c_proj"](seen.transpose(1, 2).flatten(2))


def rotate(states: Tensor) -> Tensor:
    """Rotary positions: the first half of a head's width is turned against the second."""
    half = states.shape[-1] // 2
    angles = torch.arange(states.shape[2])[:, None] * 10000.0 ** (-torch.arange(half) / half)
    first, second = states[..., :half], states[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def projection() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"llm_proj.weight": torch.randn(WIDTH, Q_FORMER_WIDTH), "llm_proj.bias": torch.randn(WIDTH)}


def whole(model: Qwen1) -> dict[str, Tensor]:
    """``unfreeze_llm_model.pth``."""
    return projection() | {f"llm_model.{name}": tensor for name, tensor in model.state_dict().items()}


def write_checkpoint(path: Path, state: dict[str, Tensor]) -> Path:
    buffers = {"Qformer.bert.embeddings.position_ids": torch.arange(512)[None]}
    torch.save({"model": state | buffers, "optimizer": {}, "config": {"run": {}}, "scaler": None, "epoch": 9}, path)
    return path


def test_projection_alone(tmp_path: Path) -> None:
    found = find(write_checkpoint(tmp_path / "checkpoint_9.pth", projection()))
    assert (found.format, found.kind) == ("minigpt4qwen", "generation")
    assert found.what == f"MiniGPT4Qwen: a projection to {WIDTH}, no vision tower, no language model"
    assert_same(
        found.weights, Weights.of({f"bridge.output.{n}": projection()[f"llm_proj.{n}"] for n in ("weight", "bias")})
    )
    assert found.settings["prompt"] == {"template": "minigpt4qwen"}
    assert found.settings["connector"] == {"kind": "qformer"}
    assert found.settings["image"]["size"] == 224


def test_adapters_get_their_names_and_their_settings(tmp_path: Path) -> None:
    layer = "llm_model.base_model.model.model.layers.0.self_attn."
    adapters = {
        f"{layer}{target}.lora_{side}.default.weight": torch.randn(shape)
        for target in ("q_proj", "v_proj")
        for side, shape in (("A", (8, WIDTH)), ("B", (WIDTH, 8)))
    }
    found = find(write_checkpoint(tmp_path / "checkpoint_0.pth", projection() | adapters))
    assert found.format == "minigpt4qwen"
    assert found.settings["lora"] == {"targets": ["q_proj", "v_proj"], "r": 8, "alpha": 32, "dropout": 0.05}
    name = "adapter.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(found.weights.read(name), adapters[f"{layer}q_proj.lora_A.default.weight"])
    assert sum(name.startswith("adapter.") for name in found.weights.infos) == 4
    assert any("alpha: 32" in note for note in found.notes)


def qwen2_of(settings: dict[str, Any], weights: Weights) -> Any:
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    config = settings["language_model"]["config"] | heads
    language_model = build_language_model(LanguageModelSettings(config=config))
    prefix = "language_model."
    state = {n.removeprefix(prefix): weights.read(n) for n in weights.infos if n.startswith(prefix)}
    language_model.model.load_state_dict(state)
    return language_model.model


def test_parity_qwen_1_as_qwen2(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = Qwen1().eval()
    torch.save(whole(theirs), tmp_path / "unfreeze_llm_model.pth")
    found = find(tmp_path / "unfreeze_llm_model.pth")
    config = found.settings["language_model"]["config"]
    assert config["model_type"] == "qwen2"
    assert "num_attention_heads" not in config  # 32 is no multiple of the width of Qwen's heads
    assert any("up to 2048 tokens" in note for note in found.notes)
    ids = torch.randint(WORDS, (2, 19))
    with torch.no_grad():
        wanted = theirs(ids)
        difference = gap(qwen2_of(found.settings, found.weights)(input_ids=ids).logits, wanted)
    print(f"parity Qwen-1 as a Qwen2: logits {difference:.2e} of {wanted.abs().max():.2f}")
    assert difference <= 2e-6
    tables = KeyMap.named("minigpt4qwen", "qwen1")
    assert_same(tables.to_theirs(found.weights), Weights.of(whole(theirs)))


def test_parity_a_published_qwen_1_by_itself(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(2)
    theirs = Qwen1().eval()
    save_file({name: tensor.clone() for name, tensor in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    options = {"num_attention_heads": HEADS, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "seq_length": 2048}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen", **options}))
    found = find(tmp_path)
    assert found.format == "qwen1" and any("--tokenizer" in note for note in found.notes)
    config = found.settings["language_model"]["config"]
    assert config["num_attention_heads"] == HEADS and config["max_position_embeddings"] == 2048
    ids = torch.randint(0, WORDS, (2, 9))
    with torch.no_grad():
        wanted = theirs(ids)
        difference = gap(qwen2_of(found.settings, found.weights)(input_ids=ids).logits, wanted)
    print(f"parity a published Qwen-1 as a Qwen2: logits {difference:.2e} of {wanted.abs().max():.2f}")
    assert difference < 1e-5


def test_qwen_of_full_size_has_heads_of_128() -> None:
    shapes = {
        "llm_proj.weight": (4096, 768),
        "llm_proj.bias": (4096,),
        "llm_model.transformer.wte.weight": (151936, 4096),
        "llm_model.transformer.ln_f.weight": (4096,),
        "llm_model.lm_head.weight": (151936, 4096),
    }
    for n in range(32):
        block = f"llm_model.transformer.h.{n}."
        shapes |= {f"{block}attn.c_attn.weight": (12288, 4096), f"{block}attn.c_attn.bias": (12288,)}
        shapes |= {f"{block}attn.c_proj.weight": (4096, 4096), f"{block}mlp.c_proj.weight": (4096, 11008)}
        shapes |= {f"{block}mlp.{w}.weight": (11008, 4096) for w in ("w1", "w2")}
        shapes |= {f"{block}{norm}.weight": (4096,) for norm in ("ln_1", "ln_2")}
    found = find(Weights.of({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}))
    config = found.settings["language_model"]["config"]
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["num_hidden_layers"]) == (32, 32, 32)
    from transformers import Qwen2Config, Qwen2ForCausalLM

    with torch.device("meta"):
        wanted = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in config.items() if k != "model_type"})).state_dict()
    ours = {n: info.shape for n, info in found.weights.infos.items() if n.startswith("language_model.")}
    assert ours == {f"language_model.{name}": tuple(tensor.shape) for name, tensor in wanted.items()}


def test_layers_of_a_pipeline_are_the_same_model(tmp_path: Path) -> None:
    """Layers 1 to 4 are empty, blocks begin at 5 (lavis/models/minigpt4qwen_models/minigpt4qwen_pipe.py)."""
    torch.manual_seed(1)
    model = Qwen1().eval()
    state = model.state_dict()
    first = {"wtepipe.word_embeddings.weight": state["transformer.wte.weight"], "rotary_emb.inv_freq": torch.ones(4)}
    first |= {f"visionpipe.{name}": tensor for name, tensor in projection().items()}
    layers: list[dict[str, Tensor]] = [first, {}, {}, {}, {}]
    for n in range(BLOCKS):
        block = f"transformer.h.{n}."
        layers.append({f"layer.{k.removeprefix(block)}": t for k, t in state.items() if k.startswith(block)})
    layers.append({"final_layernorm.weight": state["transformer.ln_f.weight"]})
    layers.append({"lm_head.weight": state["lm_head.weight"]})
    layers.append({"occupy.weight": torch.zeros(2, 2)})
    for n, layer in enumerate(layers):
        torch.save(layer, tmp_path / f"layer_{n:02d}-model_states.pt")
    torch.save({"module": None, "dp_world_size": 8}, tmp_path / "mp_rank_00_model_states.pt")
    found = find(tmp_path)
    assert found.format == "minigpt4qwen"
    assert_same(found.weights, find(Weights.of(whole(model))).weights)
    assert any("spacers" in note and "occupy" in note for note in found.notes)


def mblip_state() -> dict[str, Tensor]:
    """Queries, Q-Former and projection of LAVIS' recorded model under the names of mBLIP's Lightning module."""
    lavis = torch.load(GOLDEN / "lavis" / "stage2_t5.pt", weights_only=True)["state_dict"]
    ours = find(Weights.of(lavis)).weights
    theirs = KeyMap.named("hf_blip2").to_theirs(ours)
    trained = ("query_tokens", "qformer.", "language_projection.")
    return {f"model.{n}": theirs.read(n) for n in theirs.infos if n.startswith(trained)}


def write_lightning(path: Path, state: dict[str, Tensor]) -> Path:
    others = {"epoch": 1, "global_step": 60663, "pytorch-lightning_version": "1.9.4", "loops": {}, "callbacks": {}}
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 1e-5}, "optimizer_states": [], **others}, path)
    return path


def test_mblip_checkpoint(tmp_path: Path) -> None:
    found = find(write_lightning(tmp_path / "1-60663.ckpt", mblip_state()))
    assert (found.format, found.kind) == ("mblip", "generation")
    connector = found.settings["connector"]
    assert (connector["input_norm"], connector["input_norm_eps"]) == (True, 1e-5)
    assert not any(name.startswith(("vision_tower.", "bridge.input_norm")) for name in found.weights.infos)
    assert any("saves neither" in note for note in found.notes)
    doubled = {name.replace("model.", "model.model.", 1): tensor for name, tensor in mblip_state().items()}
    assert_same(find(write_lightning(tmp_path / "doubled.ckpt", doubled)).weights, found.weights)


def test_mblip_adapters_beside_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = write_lightning(tmp_path / "0-8000.ckpt", mblip_state())
    folder = tmp_path / "0-8000"
    folder.mkdir()
    options = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["wo", "q"]}
    (folder / "adapter_config.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match=r"none of adapter_model\.safetensors"):
        find(checkpoint)
    name = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
    torch.save({name: torch.ones(8, 40)}, folder / "adapter_model.bin")
    found = find(checkpoint)
    assert found.settings["prompt"] == {"template": "mblip"}
    assert found.settings["lora"] == {"targets": ["q", "wo"], "r": 8, "alpha": 16, "dropout": 0.05}
    assert torch.equal(found.weights.read(f"adapter.{name}"), torch.ones(8, 40))
    (tmp_path / "1-16000").mkdir()
    (tmp_path / "1-16000" / "adapter_config.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match=r"several folders of adapters \(0-8000, 1-16000\)"):
        find(checkpoint)


def test_a_tower_and_a_norm_complete_mblip() -> None:
    """The checkpoint together with what its training was given: no weight is missing, the values are LAVIS'."""
    lavis = torch.load(GOLDEN / "lavis" / "stage2_t5.pt", weights_only=True)["state_dict"]
    theirs = KeyMap.named("hf_blip2").to_theirs(find(Weights.of(lavis)).weights)
    nolm = {n: theirs.read(n) for n in theirs.infos if not n.startswith("language_model.")}
    merged = Weights.of({**nolm, **{n.removeprefix("model."): t for n, t in mblip_state().items()}})
    found = find(merged)
    assert found.format == "hf_blip2"
    assert set(found.weights.infos) == {
        n for n in find(Weights.of(lavis)).weights.infos if not n.startswith("language")
    }


def test_every_format_is_told_from_all_others(tmp_path: Path) -> None:
    lavis = {name: torch.load(GOLDEN / "lavis" / f"{name}.pt", weights_only=True)["state_dict"] for name in LAVIS}
    named = {
        "lavis": [*lavis.values()],
        "lavis_tower": [{n.removeprefix("visual_encoder."): t for n, t in lavis["stage2_t5"].items() if "visual" in n}],
        "minigpt4qwen": [projection(), whole(Qwen1())],
        "mblip": [mblip_state()],
        "hf_blip2": [{n.removeprefix("model."): t for n, t in mblip_state().items()}],
    }
    for name, states in named.items():
        for state in states:
            assert find(Weights.of(state)).format == name


LAVIS = ("stage1_loss_plain", "stage2_opt_prompt", "stage2_t5")
