"""What the layouts of BLIP-2's family have in common: EVA's tower, a Q-Former, the language models it was made for.

Everything here reads names and shapes of weights under our names.
"""

from __future__ import annotations

import re
from math import isqrt
from typing import Any, Literal

import torch

from sightbridge.checkpoints.formats.llava_parts import BRIDGE, LANGUAGE_MODEL, TOWER, count_layers, has, shape_of
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.config.model import CLIP_MEAN, CLIP_STD
from sightbridge.errors import CheckpointError

EVA_HEADS = {1408: 16}
"""Attention heads of EVA-CLIP's ViT-g by width (LAVIS, models/eva_vit.py: 1408 // 88)."""
QFORMER_HEADS = {768: 12}
"""Attention heads of BERT-base by width."""
OPT_HEADS = {768: 12, 1024: 16, 2048: 32, 2560: 32, 4096: 32, 5120: 40, 7168: 56, 9216: 72}
"""Attention heads of published OPT models by width (arXiv 2205.01068, table 1)."""
BERT = "bert-base-uncased"
"""The tokenizer of every BLIP-2's text branch."""
STAGE1_PARTS = ("vision_projection.", "text_projection.", "itm_head.", "language_head.", "temperature")
LAYER = f"{BRIDGE}qformer.encoder.layer."

Settings = dict[str, Any]
Kind = Literal["generation", "qformer"]


def config_group(weights: Weights, key: str) -> Settings:
    """A group of settings in ``config.json``, empty if it is not there; ``CheckpointError`` if it is no group."""
    group = (weights.config or {}).get(key)
    if group is not None and not isinstance(group, dict):
        raise CheckpointError(f"{weights.path}: config.json: '{key}' is {group!r:.40}, expected a group of settings.")
    return group or {}


def config_numbers(weights: Weights, group: Settings, names: dict[str, str]) -> Settings:
    """Those numbers of a group that are there, under our names; ``names`` has ours and theirs.

    Raises ``CheckpointError`` for what is no number.
    """
    found = {ours: group[theirs] for ours, theirs in names.items() if group.get(theirs) is not None}
    for ours, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{weights.path}: config.json: '{names[ours]}' is {value!r:.40}, expected a number.")
    return found


def kind_of(weights: Weights) -> Kind:
    """``qformer`` if there is a head that only the first stage has."""
    first = any(name.startswith(tuple(BRIDGE + part for part in STAGE1_PARTS)) for name in weights.infos)
    return "qformer" if first else "generation"


def known(table: dict[int, int], width: int, key: str) -> Settings:
    """The number of attention heads, which no shape tells, of published models of a width; nothing for others."""
    return {key: table[width]} if width in table else {}


def eva_config(weights: Weights, **changes: Any) -> Settings:
    """The configuration of an EVA tower (``Blip2VisionModel``) from its shapes; LAVIS' epsilon and activation."""
    _, positions, width = shape_of(weights, f"{TOWER}embeddings.position_embedding", 3)
    *_, patch = shape_of(weights, f"{TOWER}embeddings.patch_embedding.weight", 4)
    mlp, _ = shape_of(weights, f"{TOWER}encoder.layers.0.mlp.fc1.weight", 2)
    return {
        "model_type": "blip_2_vision_model",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": count_layers(weights, f"{TOWER}encoder.layers."),
        "image_size": isqrt(positions - 1) * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "qkv_bias": True,
        **known(EVA_HEADS, width, "num_attention_heads"),
        **changes,
    }


def qformer_settings(weights: Weights, **changes: Any) -> Settings:
    """Options of the Q-Former from its shapes: of the connector, or of the first stage if it has that one's heads.

    Raises:
        CheckpointError: cross-attention is in other layers than every n-th.
    """
    _, queries, width = shape_of(weights, f"{BRIDGE}queries", 3)
    mlp, _ = shape_of(weights, f"{LAYER}0.intermediate_query.dense.weight", 2)
    layers = count_layers(weights, LAYER)
    settings = {
        "num_queries": queries,
        "hidden_size": width,
        "num_layers": layers,
        **known(QFORMER_HEADS, width, "num_heads"),
        "intermediate_size": mlp,
        "cross_attention_every": _cross_attention_every(weights, layers),
        "norm_eps": 1e-12,
        "input_norm": f"{BRIDGE}input_norm.weight" in weights.infos,
        "input_norm_eps": 1e-5,
        **_text_branch(weights),
        **changes,
    }
    if kind_of(weights) == "generation":
        return {"kind": "qformer", **settings}
    if not has(weights, f"{BRIDGE}language_head."):
        settings["captioning"] = False
    return {**settings, "projection_size": shape_of(weights, f"{BRIDGE}vision_projection.weight", 2)[0]}


def stated_qformer(weights: Weights, **changes: Any) -> Settings:
    """``qformer_settings`` with what the ``qformer_config`` of ``config.json`` says beyond shapes.

    Raises:
        CheckpointError: its activation is none that the Q-Former has here, or a number is none.
    """
    group = config_group(weights, "qformer_config")
    if group.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(
            f"{weights.path}: config.json: the Q-Former's activation is {group['hidden_act']!r:.40}, known is 'gelu'."
        )
    names = {"num_heads": "num_attention_heads", "norm_eps": "layer_norm_eps", "dropout": "hidden_dropout_prob"}
    return qformer_settings(weights, **config_numbers(weights, group, names), **changes)


def input_width(weights: Weights) -> int:
    """How wide the features are that the Q-Former reads."""
    return shape_of(weights, f"{LAYER}0.crossattention.attention.key.weight", 2)[1]


def _cross_attention_every(weights: Weights, layers: int) -> int:
    found = (re.match(rf"{re.escape(LAYER)}(\d+)\.crossattention\.", name) for name in weights.infos)
    looking = sorted({int(match[1]) for match in found if match})
    every = looking[1] - looking[0] if len(looking) > 1 else layers
    if looking != list(range(0, layers, every)):
        raise CheckpointError(
            f"{weights.path}: of {layers} layers of the Q-Former the layers {looking} look at the picture; every n-th "
            "was expected, beginning with the first. Is the file complete?"
        )
    return every


def _text_branch(weights: Weights) -> Settings:
    """Sizes of the text branch; a connector that has one reads questions (InstructBLIP, BLIP-2 for VQA)."""
    if f"{BRIDGE}embeddings.word_embeddings.weight" not in weights.infos:
        return {}
    sizes = {
        "text_vocabulary": shape_of(weights, f"{BRIDGE}embeddings.word_embeddings.weight", 2)[0],
        "text_positions": shape_of(weights, f"{BRIDGE}embeddings.position_embeddings.weight", 2)[0],
    }
    first_stage = kind_of(weights) == "qformer"
    longest = min(32 if first_stage else 128, sizes["text_positions"])  # max_txt_len of LAVIS' BLIP-2 and InstructBLIP
    sizes["max_text_length"] = longest
    return sizes if first_stage else sizes | {"text_input": True, "text_tokenizer": BERT}


def image_settings(size: int) -> Settings:
    """How every BLIP-2 sees a picture (LAVIS, processors/blip_processors.py)."""
    return {"size": size, "fit": "squash", "mean": list(CLIP_MEAN), "std": list(CLIP_STD)}


def model_settings(weights: Weights, tower: Settings | None, qformer: Settings | None, image_size: int) -> Settings:
    """Settings of all that is no language model.

    Args:
        weights: under our names.
        tower: configuration of the tower, if the file has it.
        qformer: options of the Q-Former, if the file has it.
        image_size: side of the pictures, if the file has no tower to say it.
    """
    found: Settings = {
        "vision_tower": {"layers": [-1], **({"config": tower} if tower else {})},
        "image": image_settings(tower["image_size"] if tower else image_size),
    }
    if qformer is None:
        return found
    if kind_of(weights) == "generation":
        return found | {"connector": qformer}
    return found | {"qformer": qformer, "text": {"tokenizer": BERT, "max_length": qformer["max_text_length"]}}


def prompt_settings(family: str, captioner: bool = False) -> Settings:
    """The template a BLIP-2 was trained with, by the family of its language model; those of ``recipes/blip2``.

    Args:
        family: ``opt`` or ``t5``.
        captioner: fine-tuned to caption COCO, always with the words "a photo of".
    """
    if family == "opt":
        # Without a prompt LAVIS' OPT learns to write BOS, too.
        return (
            {"template": "blip2_caption"}
            if captioner
            else {"template": "blip2_plain", "switches": {"bos_target": True}}
        )
    return {"template": "blip2_caption_t5" if captioner else "blip2_plain_t5"}


def is_tied(weights: Weights, table: str) -> bool:
    """Whether the language model's head is its table of embeddings; the one look at weights in this module.

    Files may hold the table once, twice, or have a head that only looks like it: PaddleMIX' OPT need not be tied, and
    transformers' would silently give it the head's table for its embeddings.
    """
    head = f"{LANGUAGE_MODEL}lm_head.weight"
    if head not in weights.infos:
        return True
    same_shape = weights.infos[head].shape == weights.infos[f"{LANGUAGE_MODEL}{table}"].shape
    return same_shape and torch.equal(weights.read(head), weights.read(f"{LANGUAGE_MODEL}{table}"))


def opt_config(weights: Weights) -> Settings:
    """The configuration of an OPT from its shapes."""
    decoder = f"{LANGUAGE_MODEL}model.decoder."
    vocabulary, embedded = shape_of(weights, f"{decoder}embed_tokens.weight", 2)
    positions, width = shape_of(weights, f"{decoder}embed_positions.weight", 2)
    mlp, _ = shape_of(weights, f"{decoder}layers.0.fc1.weight", 2)
    return {
        "model_type": "opt",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "word_embed_proj_dim": embedded,
        "ffn_dim": mlp,
        "num_hidden_layers": count_layers(weights, f"{decoder}layers."),
        "max_position_embeddings": positions - 2,  # OPT's tables begin with two rows for padding
        "do_layer_norm_before": f"{decoder}final_layer_norm.weight" in weights.infos,  # all but OPT-350m
        "activation_function": "relu",
        "tie_word_embeddings": is_tied(weights, "model.decoder.embed_tokens.weight"),
        **known(OPT_HEADS, width, "num_attention_heads"),
    }


def t5_config(weights: Weights, activation: str) -> Settings:
    """The configuration of a T5 1.1 or FlanT5 from its shapes.

    Args:
        weights: under our names.
        activation: ``gelu`` for LAVIS (models/blip2_models/blip2_t5.py overrides the configuration so), ``gelu_new``
            for T5's own.
    """
    block = f"{LANGUAGE_MODEL}encoder.block."
    vocabulary, width = shape_of(weights, f"{LANGUAGE_MODEL}shared.weight", 2)
    buckets, heads = shape_of(weights, f"{block}0.layer.0.SelfAttention.relative_attention_bias.weight", 2)
    gated = f"{block}0.layer.1.DenseReluDense.wi_0.weight" in weights.infos
    mlp, _ = shape_of(weights, f"{block}0.layer.1.DenseReluDense.wo.weight", 2)[::-1]
    return {
        "model_type": "t5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shape_of(weights, f"{block}0.layer.0.SelfAttention.q.weight", 2)[0] // heads,
        "d_ff": mlp,
        "num_layers": count_layers(weights, block),
        "num_decoder_layers": count_layers(weights, f"{LANGUAGE_MODEL}decoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "dense_act_fn": activation if gated else "relu",
        "is_gated_act": gated,
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": is_tied(weights, "shared.weight"),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def parts_in_words(weights: Weights, tower: Settings | None) -> str:
    """What is there and what is not, for people."""
    said = []
    if has(weights, f"{LAYER}0."):
        said.append(f"a Q-Former of {shape_of(weights, f'{BRIDGE}queries', 3)[1]} queries")
    if f"{BRIDGE}output.weight" in weights.infos:
        said.append(f"a projection to {shape_of(weights, f'{BRIDGE}output.weight', 2)[0]}")
    if tower:
        said.append(f"a vision tower of {tower['num_hidden_layers']} blocks for {tower['image_size']} pixels")
    if has(weights, LANGUAGE_MODEL):
        said.append("the language model")
    lacking = [
        what for part, what in ((TOWER, "vision tower"), (LANGUAGE_MODEL, "language model")) if not has(weights, part)
    ]
    if kind_of(weights) == "qformer":
        lacking = [what for what in lacking if what == "vision tower"]
    return ", ".join(said) + "".join(f", no {what}" for what in lacking)
