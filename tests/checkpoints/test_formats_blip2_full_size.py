"""Every name and shape of the released BLIP-2 files, without their weights: all are known, none is missing."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from blip2_files import find
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.models.connectors.qformer import QFormerConnector, QFormerOptions
from sightbridge.models.qformer_pretraining import QFormerForPretraining, QFormerPretrainingOptions

Shapes = dict[str, tuple[int, ...]]
OPT = {"model_type": "opt", "hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10240}
OPT_2_7B = OPT | {"num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 50272, "eos_token_id": 50118}
T5 = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "feed_forward_proj": "gated-gelu"}
FLAN_T5_XL = T5 | {"model_type": "t5", "vocab_size": 32128, "dense_act_fn": "gelu", "tie_word_embeddings": False}
MT0_XL = T5 | {"model_type": "mt5", "vocab_size": 250112}


def both(name: str, weight: tuple[int, ...], bias: tuple[int, ...] | None = None) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1] if bias is None else bias}


def eva(pixels: int, blocks: int = 39) -> Shapes:
    names = {
        "cls_token": (1, 1, 1408),
        "pos_embed": (1, (pixels // 14) ** 2 + 1, 1408),
        **both("patch_embed.proj", (1408, 3, 14, 14)),
    }
    for n in range(blocks):
        block = f"blocks.{n}."
        names |= {
            f"{block}attn.q_bias": (1408,),
            f"{block}attn.v_bias": (1408,),
            f"{block}attn.qkv.weight": (4224, 1408),
        }
        names |= (
            both(f"{block}norm1", (1408,)) | both(f"{block}norm2", (1408,)) | both(f"{block}attn.proj", (1408, 1408))
        )
        names |= both(f"{block}mlp.fc1", (6144, 1408)) | both(f"{block}mlp.fc2", (1408, 6144))
    return names


def clip_l(blocks: int = 23) -> Shapes:
    names = {
        "class_embedding": (1024,),
        "positional_embedding": (257, 1024),
        "conv1.weight": (1024, 3, 14, 14),
        **both("ln_pre", (1024,)),
    }
    for n in range(blocks):
        block = f"transformer.resblocks.{n}."
        names |= {f"{block}attn.in_proj_weight": (3072, 1024), f"{block}attn.in_proj_bias": (3072,)}
        names |= (
            both(f"{block}attn.out_proj", (1024, 1024)) | both(f"{block}ln_1", (1024,)) | both(f"{block}ln_2", (1024,))
        )
        names |= both(f"{block}mlp.c_fc", (4096, 1024)) | both(f"{block}mlp.c_proj", (1024, 4096))
    return names


def inside(prefix: str, names: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in names.items()}


def qformer(text: bool, width: int = 1408) -> Shapes:
    bert = "Qformer.bert."
    names = {"query_tokens": (1, 32, 768), **both("ln_vision", (width,))}
    names |= {f"{bert}embeddings.position_ids": (1, 512), **both(f"{bert}embeddings.LayerNorm", (768,))}
    for n in range(12):
        layer = f"{bert}encoder.layer.{n}."
        for attention in ("attention", "crossattention")[: 2 - n % 2]:
            seen = width if attention == "crossattention" else 768
            names |= both(f"{layer}{attention}.self.query", (768, 768))
            names |= both(f"{layer}{attention}.self.key", (768, seen)) | both(
                f"{layer}{attention}.self.value", (768, seen)
            )
            names |= both(f"{layer}{attention}.output.dense", (768, 768))
            names |= both(f"{layer}{attention}.output.LayerNorm", (768,))
        for branch in ("", "_query") if text else ("_query",):
            names |= both(f"{layer}intermediate{branch}.dense", (3072, 768))
            names |= both(f"{layer}output{branch}.dense", (768, 3072)) | both(
                f"{layer}output{branch}.LayerNorm", (768,)
            )
    return names


def stage1(width: int = 1408) -> Shapes:
    head = "Qformer.cls.predictions."
    return {
        **qformer(text=True, width=width),
        "temp": (),
        "Qformer.bert.embeddings.word_embeddings.weight": (30523, 768),
        "Qformer.bert.embeddings.position_embeddings.weight": (512, 768),
        f"{head}bias": (30523,),
        **both(f"{head}transform.dense", (768, 768)),
        **both(f"{head}transform.LayerNorm", (768,)),
        **both(f"{head}decoder", (30523, 768)),
        **both("vision_proj", (256, 768)),
        **both("text_proj", (256, 768)),
        **both("itm_head", (2, 768)),
    }


def stage2(name: str, width: int, tower: int = 1408) -> Shapes:
    return qformer(text=False, width=tower) | both(f"{name}_proj", (width, 768))


FILES: dict[str, tuple[Shapes, int]] = {
    "eva_vit_g": (eva(224), 511),
    "clip_vit_L": (clip_l(), 281),
    "blip2_pretrained": (stage1(), 346),
    "blip2_pretrained_vitL": (stage1(1024), 346),
    "blip2_pretrained_opt2.7b": (stage2("opt", 2560), 260),
    "blip2_pretrained_flant5xl": (stage2("t5", 2048), 260),
    "blip2_pretrained_flant5xl_vitL": (stage2("t5", 2048, 1024), 260),
    "blip2_caption_opt2.7b": (stage2("opt", 2560) | inside("visual_encoder.", eva(364)), 771),
    "blip2_caption_flant5xl": (stage2("t5", 2048) | inside("visual_encoder.", eva(364)), 771),
    "blip2_finetune_coco": (stage1() | inside("visual_encoder.", eva(364)), 857),
}
"""Released files by name: what they hold (LAVIS, configs/models/blip2), and how many tensors that is."""
SAID = {
    "blip2_pretrained": "BLIP-2 stage 1: a Q-Former of 32 queries, no vision tower",
    "blip2_pretrained_opt2.7b": "BLIP-2 stage 2, opt projection: a Q-Former of 32 queries, a projection to 2560, "
    "no vision tower, no language model",
    "blip2_caption_flant5xl": "BLIP-2 stage 2, t5 projection: a Q-Former of 32 queries, a projection to 2048, "
    "a vision tower of 39 blocks for 364 pixels, no language model",
}


def meta(shapes: Shapes) -> Weights:
    return Weights.of({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


@cache
def vision_model(pixels: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Blip2VisionModel(Blip2VisionConfig(image_size=pixels)).state_dict()


def shapes_of(state: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def bridge(found: Any) -> Shapes:
    """Names and shapes of the connector, or of the first stage's Q-Former, that the settings build."""
    settings = dict(found.settings["qformer" if found.kind == "qformer" else "connector"])
    names = found.weights.infos
    width = names["bridge.qformer.encoder.layer.0.crossattention.attention.key.weight"].shape[1]
    with torch.device("meta"):
        if found.kind == "qformer":
            module: nn.Module = QFormerForPretraining(QFormerPretrainingOptions(**settings), width)
        else:
            assert settings.pop("kind") == "qformer"
            output = names["bridge.output.weight"].shape[0]
            module = QFormerConnector(QFormerOptions(**settings), width, 257, output)
    return inside("bridge.", shapes_of(module.state_dict()))


@pytest.mark.parametrize("name", FILES)
def test_every_name_of_a_released_file_has_its_place(name: str) -> None:
    shapes, count = FILES[name]
    assert len(shapes) == count
    found = find(meta(shapes))
    wanted = {} if "vit_" in name else bridge(found)
    if any(".blocks." in f".{key}" for key in shapes):
        pixels = found.settings["image"]["size"]
        tower = shapes_of(vision_model(pixels))
        assert pixels == (224 if name == "eva_vit_g" else 364)
        wanted |= inside("vision_tower.", {key: shape for key, shape in tower.items() if "post_layernorm" not in key})
    elif name == "clip_vit_L":
        with torch.device("meta"):
            config = {
                key: value for key, value in found.settings["vision_tower"]["config"].items() if key != "model_type"
            }
            state = CLIPVisionModel(CLIPVisionConfig(**config)).state_dict()
        ours = {key.removeprefix("vision_model."): shape for key, shape in shapes_of(state).items()}
        wanted = inside("vision_tower.", {key: s for key, s in ours.items() if not key.startswith("post_layernorm")})
        assert config["hidden_act"] == "quick_gelu"
    assert {key: info.shape for key, info in found.weights.infos.items()} == wanted
    assert found.what == SAID.get(name, found.what)
    heads = found.settings.get("connector") or found.settings.get("qformer")
    assert heads is None or heads["num_heads"] == 12


def test_what_the_released_files_are_for() -> None:
    settings = {name: find(meta(shapes)).settings for name, (shapes, _) in FILES.items()}
    assert settings["blip2_pretrained_opt2.7b"]["prompt"] == {
        "template": "blip2_plain",
        "switches": {"bos_target": True},
    }
    assert settings["blip2_caption_opt2.7b"]["prompt"] == {"template": "blip2_caption"}
    assert settings["blip2_caption_flant5xl"]["prompt"] == {"template": "blip2_caption_t5"}
    assert settings["blip2_pretrained_flant5xl"]["language_model"] == {"override": {"dense_act_fn": "gelu"}}
    # A tower of 24 blocks, the last of which LAVIS never built.
    assert settings["blip2_pretrained_flant5xl_vitL"]["vision_tower"] == {"layers": [23]}
    for found in settings.values():
        assert found["image"]["fit"] == "squash"
        assert len(found["vision_tower"]["layers"]) == 1


@cache
def transformers_names(language_model: str) -> Shapes:
    """State dict of the whole model as transformers writes it."""
    options = {"opt": OPT_2_7B, "t5": FLAN_T5_XL, "mt5": MT0_XL}[language_model]
    config = Blip2Config(text_config=dict(options))
    with torch.device("meta"):
        return shapes_of(Blip2ForConditionalGeneration(config).state_dict())


@pytest.mark.parametrize(("language_model", "projection", "width"), [("opt", "opt", 2560), ("t5", "t5", 2048)])
def test_lavis_becomes_transformers_without_a_gap(language_model: str, projection: str, width: int) -> None:
    """731 of 731 tensors beside the language model's."""
    files = stage2(projection, width) | inside("visual_encoder.", eva(224))
    found = find(meta(files))
    theirs = KeyMap.named("hf_blip2").to_theirs(found.weights)
    assert not theirs.unexpected
    wanted = {n: s for n, s in transformers_names(language_model).items() if not n.startswith("language_model.")}
    assert len(wanted) == 731
    assert {name: info.shape for name, info in theirs.infos.items()} == wanted


def test_lavis_first_stage_becomes_transformers_but_for_what_they_have_no_place_for() -> None:
    """809 of 809 tensors; temperature and captioning head are left over."""
    found = find(meta(stage1() | inside("visual_encoder.", eva(224))))
    theirs = KeyMap.named("hf_blip2").to_theirs(found.weights)
    assert len(theirs.unexpected) == 6
    assert {name.split(".")[1] for name in theirs.unexpected} == {"temperature", "language_head"}
    options: dict[str, Any] = {"vocab_size": 30523, "use_qformer_text_input": True}
    with torch.device("meta"):
        model = Blip2ForImageTextRetrieval(Blip2Config(qformer_config=options))
    wanted = shapes_of(model.state_dict())
    assert len(wanted) == 809
    assert {name: info.shape for name, info in theirs.infos.items()} == wanted


@pytest.mark.parametrize("language_model", ["opt", "t5", "mt5"])
def test_transformers_whole_models(language_model: str) -> None:
    config = Blip2Config(
        text_config=dict({"opt": OPT_2_7B, "t5": FLAN_T5_XL, "mt5": MT0_XL}[language_model]),
        qformer_config={"use_qformer_text_input": False},
    ).to_dict()
    weights = meta(transformers_names(language_model))
    weights.config = config
    found = find(weights)
    assert found.format == "hf_blip2"
    wanted = bridge(found)
    tower = inside(
        "vision_tower.", {k: s for k, s in shapes_of(vision_model(224)).items() if "post_layernorm" not in k}
    )
    ours = {key: info.shape for key, info in found.weights.infos.items()}
    language = {key: shape for key, shape in ours.items() if key.startswith("language_model.")}
    assert ours == wanted | tower | language
    options = found.settings["language_model"]["config"]
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM if language_model != "opt" else None
        if model is not None:
            state = model.from_config(AutoConfig.for_model(**options)).state_dict()
            assert inside("language_model.", shapes_of(state)) == language
    assert (
        found.settings["prompt"]["template"]
        == {"opt": "blip2_plain", "t5": "blip2_plain_t5", "mt5": "mblip"}[language_model]
    )
