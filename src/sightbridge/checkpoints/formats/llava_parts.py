"""What the layouts of the LLaVA family have in common: a CLIP tower, an MLP, a language model of any type."""

from __future__ import annotations

import re
from collections import Counter
from math import isqrt
from typing import Any

from sightbridge.checkpoints.key_map import KeyMap, MappedWeights
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.errors import CheckpointError, SettingsError

TOWER, BRIDGE, LANGUAGE_MODEL, ADAPTER = "vision_tower.", "bridge.", "language_model.", "adapter."
VIP_TOWER = "clip_4layers_336"
"""ViP-LLaVA's keyword for five layers of the tower below, whatever its name says."""
CLIP_336 = "openai/clip-vit-large-patch14-336"
VIP_LAYERS = [-2, -5, -8, -11, 6]
CLIP_HEADS = {768: 12, 1024: 16, 1280: 16, 1664: 16}
"""Attention heads of published CLIP towers by width (openai/CLIP, mlfoundations/open_clip: B, L, H, bigG)."""
TRAINED_WITH = {"image_first": True, "drop_leading_assistant": True}
"""What LLaVA's preparation of conversations does to every one (haotian-liu/LLaVA, train/train.py)."""
FITS = {"pad": "pad", "square": "crop", "crop": "crop"}
"""Our names of ``image_aspect_ratio``."""
NOT_A_MODELS = (
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "id2label",
    "label2id",
    "problem_type",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "chunk_size_feed_forward",
)
"""What a Hugging Face configuration says about its file, about calls and about tasks nobody has here."""


def map_exactly(weights: Weights, *tables: str) -> MappedWeights:
    """The weights under our names; raises ``CheckpointError`` for one that no table knows."""
    mapped = KeyMap.named(*tables).to_ours(weights)
    if mapped.unexpected:
        listed = ", ".join(f"'{name}'" for name in sorted(mapped.unexpected)[:3])
        more = f" and {len(mapped.unexpected) - 3} more" if len(mapped.unexpected) > 3 else ""
        raise CheckpointError(
            f"{weights.path}: holds weights that no model of this layout has: {listed}{more}. Nothing is left out "
            "silently: it may be a relative with another projector or more parts, which cannot be read here."
        )
    return mapped


def dropped_notes(mapped: MappedWeights, why: dict[str, str]) -> list[str]:
    """A line for each kind of dropped names; ``why`` has the reason by the last piece of a name."""
    kinds = Counter(name.removesuffix(".weight").rpartition(".")[2] for name in mapped.dropped)
    return [f"left out: {kind}, {count} times: {why[kind]}" for kind, count in kinds.items()]


def shape_of(weights: Weights, name: str, rank: int | None = None) -> tuple[int, ...]:
    """The shape of a weight that cannot be missing; with ``rank`` it has so many dimensions, none of them empty."""
    if name not in weights.infos:
        raise CheckpointError(f"{weights.path}: '{name}' (our name) is missing there; is the file complete?")
    shape = weights.infos[name].shape
    if rank is not None and (len(shape) != rank or 0 in shape):
        wanted = f"{rank} dimension{'s' if rank > 1 else ''}"
        raise CheckpointError(f"{weights.path}: '{name}' (our name) has the shape {shape}, expected {wanted}.")
    return shape


def has(weights: Weights, part: str) -> bool:
    """Whether any weight belongs to the part."""
    return any(name.startswith(part) for name in weights.infos)


def bridge_settings(weights: Weights) -> dict[str, Any]:
    """The connector that the names of a bridge's weights spell."""
    if f"{BRIDGE}output.weight" in weights.infos:
        return {"kind": "linear"}
    layers = sum(re.fullmatch(r"bridge\.layers\.\d+\.weight", name) is not None for name in weights.infos)
    return {"kind": "mlp", "layers": layers, "input_norm": f"{BRIDGE}input_norm.weight" in weights.infos}


def bridge_widths(weights: Weights) -> tuple[int, int]:
    """How wide a bridge's input and output are; raises ``CheckpointError`` if its first layer is missing."""
    linear = f"{BRIDGE}output.weight" in weights.infos
    shape = shape_of(weights, f"{BRIDGE}output.weight" if linear else f"{BRIDGE}layers.0.weight", 2)
    return shape[1], shape[0]


def bridge_words(weights: Weights) -> str:
    """The same for people: ``LayerNorm and MLP of 2 layers, 5120 to 4096``."""
    settings, (channels, width) = bridge_settings(weights), bridge_widths(weights)
    what = "a linear layer" if settings["kind"] == "linear" else f"an MLP of {settings['layers']} layers"
    norm = "a LayerNorm and " if settings.get("input_norm") else ""
    return f"{norm}{what}, {channels} to {width}"


def tower_config(weights: Weights, hidden_act: str) -> dict[str, Any]:
    """The configuration of a CLIP tower from its shapes.

    The number of attention heads, which shapes do not show, is that of published towers of the same width and is left
    out for other widths. Norms have CLIP's epsilon.
    """
    embeddings = f"{TOWER}embeddings."
    (width,) = shape_of(weights, f"{embeddings}class_embedding", 1)
    _, channels, patch, _ = shape_of(weights, f"{embeddings}patch_embedding.weight", 4)
    positions, _ = shape_of(weights, f"{embeddings}position_embedding.weight", 2)
    mlp, _ = shape_of(weights, f"{TOWER}encoder.layers.0.mlp.fc1.weight", 2)
    config = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": count_layers(weights, f"{TOWER}encoder.layers."),
        "num_channels": channels,
        "image_size": isqrt(positions - 1) * patch,
        "patch_size": patch,
        "hidden_act": hidden_act,
        "layer_norm_eps": 1e-5,
    }
    return config | ({"num_attention_heads": CLIP_HEADS[width]} if width in CLIP_HEADS else {})


def count_layers(weights: Weights, prefix: str) -> int:
    """How many numbered modules there are behind a prefix."""
    return len({name[len(prefix) :].partition(".")[0] for name in weights.infos if name.startswith(prefix)})


def language_model_config(weights: Weights, model_type: str, options: dict[str, Any]) -> dict[str, Any]:
    """The language model's ``part_config``, with the vocabulary that its table of embeddings has."""
    names = (f"{LANGUAGE_MODEL}model.embed_tokens.weight", f"{LANGUAGE_MODEL}shared.weight")
    table = next((name for name in names if name in weights.infos), names[0])
    return part_config(weights, model_type, options | {"vocab_size": shape_of(weights, table, 2)[0]})


def part_config(weights: Weights, model_type: str, options: dict[str, Any]) -> dict[str, Any]:
    """A whole Hugging Face configuration of one part, defaults written out.

    Args:
        weights: whose it is, for messages.
        model_type: of transformers.
        options: may hold keys of other parts, which are left out.

    Raises:
        CheckpointError: transformers does not know the type, or refuses the values.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from sightbridge.models.build import EXTRA_CONFIG_KEYS, make_config

    if model_type not in CONFIG_MAPPING:
        raise CheckpointError(f"{weights.path}: transformers has no model of type '{model_type}'.")
    known = CONFIG_MAPPING[model_type]()
    kept = {key: value for key, value in options.items() if key not in NOT_A_MODELS}
    extra = {key: kept.pop(key) for key in EXTRA_CONFIG_KEYS if key in kept}
    kept = {key: value for key, value in kept.items() if hasattr(known, key)}
    kept |= {key: value for key, value in extra.items() if value is not None}  # null is what transformers takes anyway
    try:
        config = make_config(kept | {"model_type": model_type}, "model").to_dict()
    except (SettingsError, AttributeError, KeyError, ArithmeticError) as error:  # what odd values meet in transformers
        raise CheckpointError(f"{weights.path}: config.json: {error}") from error
    return {key: value for key, value in config.items() if key not in NOT_A_MODELS}


def dtype_of(weights: Weights, part: str) -> str:
    """Name of the type that most weights of a part are in."""
    sizes: Counter[str] = Counter()
    for name, info in weights.infos.items():
        if name.startswith(part):
            sizes[str(info.dtype).removeprefix("torch.")] += info.bytes
    return sizes.most_common(1)[0][0]
