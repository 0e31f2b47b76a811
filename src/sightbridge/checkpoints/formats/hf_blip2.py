"""transformers' BLIP-2 and InstructBLIP folders, mBLIP's releases among them, of 2023 as of today.

Names are the same in all of them. A ``config.json`` of 2023 has no ``image_token_index``, without which transformers 5
cannot run the model; here a picture's place is no token, so nothing is missing. What transformers calls the tower's
last norm is the bridge's (LAVIS' ``ln_vision``), with the epsilon that transformers uses there, the tower's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.beside import with_beside
from sightbridge.checkpoints.formats.blip2_parts import (
    BERT,
    config_group,
    config_numbers,
    eva_config,
    kind_of,
    model_settings,
    parts_in_words,
    prompt_settings,
    stated_qformer,
)
from sightbridge.checkpoints.formats.llava_parts import (
    BRIDGE,
    LANGUAGE_MODEL,
    NOT_A_MODELS,
    TOWER,
    dtype_of,
    has,
    map_exactly,
)
from sightbridge.checkpoints.formats.views import RenamedWeights
from sightbridge.checkpoints.key_map import JoinedWeights, MappedWeights
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.errors import CheckpointError, SettingsError

EXTRAS = "sightbridge_extras.safetensors"
"""What transformers' class of the first stage has no place for, under our names, in an exported folder."""
NORM_EPS = 1e-6
"""Of transformers' EVA tower where a configuration says none."""
TEMPERATURE = 0.07
"""Where LAVIS' training begins (models/blip2_models/blip2_qformer.py)."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json", "vocab.txt")
PROMPTS = {"mt5": "mblip", "bloom": "mblip_bloomz"}
"""Templates of mBLIP's two models."""


def matches(weights: Weights) -> bool:
    """Queries beside a Q-Former with transformers' names."""
    names = weights.infos
    return "query_tokens" in names and any(name.startswith("qformer.encoder.layer.0.") for name in names)


def read(weights: Weights) -> Found:
    """What the folder or file holds; without ``config.json``, what shapes say and transformers' defaults of today."""
    instruct = any(name.startswith("qformer.embeddings.") for name in weights.infos)
    theirs = RenamedWeights(weights, {name: name for name in weights.infos if not name.startswith(BRIDGE)})
    read = map_exactly(theirs, "hf_instructblip" if instruct else "hf_blip2")
    mapped, notes = _with_extras(read, weights)
    vision = config_group(weights, "vision_config")
    tower = _tower_config(mapped, vision) if has(mapped, TOWER) else None
    stated = config_numbers(weights, vision, {"eps": "layer_norm_eps", "size": "image_size"})
    eps = stated.get("eps", NORM_EPS)
    qformer = stated_qformer(mapped, input_norm_eps=eps)
    settings = model_settings(mapped, tower, qformer, image_size=stated.get("size", 224))
    kind = kind_of(mapped)
    if qformer.get("text_input"):
        settings["connector"]["text_tokenizer"] = _question_tokenizer(weights)
    if kind == "generation":
        settings |= _language_settings(mapped, config_group(weights, "text_config"))
    if tower and "eps" not in stated:
        notes += (f"the configuration says no epsilon of the tower's norms: {eps}, transformers' default",)
    family = "InstructBLIP" if instruct else "BLIP-2"
    what = f"{family}, Hugging Face layout{' of the first stage' if kind == 'qformer' else ''}: "
    tokenizer = _tokenizer(weights)
    found = Found("hf_blip2", what + parts_in_words(mapped, tower), mapped, kind, settings, tokenizer, notes)
    return with_beside(found, weights)


def _with_extras(mapped: MappedWeights, weights: Weights) -> tuple[Weights, tuple[str, ...]]:
    """Add what an exported folder keeps beside transformers' files, or say that it is not there.

    A folder without an index has been opened with that file, one with an index without it.
    """
    notes = (f"left out, not weights: {', '.join(mapped.dropped)}",) if mapped.dropped else ()
    if kind_of(mapped) == "generation":
        return mapped, notes
    inside = [name for name in weights.infos if name.startswith(BRIDGE)]
    file = _folder(weights) / EXTRAS
    if inside or file.is_file():
        extras = RenamedWeights(weights, {name: name for name in inside}) if inside else open_weights(file)
        return JoinedWeights(mapped, extras), (*notes, f"what the class has no place for: from {EXTRAS}")
    fresh = Weights.of({"bridge.temperature": torch.tensor(TEMPERATURE)}, mapped.path)
    missing = (
        "transformers' class of the first stage has no captioning head, so this model compares pictures and texts but "
        f"writes no captions; it has no temperature either, which begins anew at {TEMPERATURE}, as in LAVIS"
    )
    return JoinedWeights(mapped, fresh), (*notes, missing)


def _folder(weights: Weights) -> Path:
    return weights.path if weights.path.is_dir() else weights.path.parent


def _tower_config(mapped: Weights, vision: dict[str, Any]) -> dict[str, Any]:
    """The configuration that the file states, completed from the shapes."""
    numbers = {name: name for name in ("num_attention_heads", "layer_norm_eps", "attention_dropout")}
    act = {"hidden_act": vision["hidden_act"]} if vision.get("hidden_act") else {}
    return eva_config(mapped, **config_numbers(mapped, vision, numbers), **act)


def _language_settings(mapped: Weights, text: dict[str, Any]) -> dict[str, Any]:
    """Prompt and configuration of the language model."""
    family = text.get("model_type")
    if family is not None and not isinstance(family, str):
        raise CheckpointError(f"{mapped.path}: config.json: the language model's type is {family!r:.40}.")
    found: dict[str, Any] = {}
    if family in ("opt", "t5"):
        found["prompt"] = prompt_settings(family)
    elif family in PROMPTS:
        found["prompt"] = {"template": PROMPTS[family]}
    if not has(mapped, LANGUAGE_MODEL):
        # BLIP-2's FlanT5 computes the exact GELU, which is not FlanT5's own.
        act = text.get("dense_act_fn")
        return found | ({"language_model": {"override": {"dense_act_fn": act}}} if act else {})
    if family is None:
        raise CheckpointError(
            f"{mapped.path}: holds a language model, but there is no config.json beside it with a 'text_config' that "
            "says which. Put the model's config.json there."
        )
    return found | {"language_model": {"config": whole_config(mapped, text), "dtype": dtype_of(mapped, LANGUAGE_MODEL)}}


def whole_config(weights: Weights, options: dict[str, Any]) -> dict[str, Any]:
    """A Hugging Face configuration with its defaults written out; keys that its type no longer has are left out.

    Raises ``CheckpointError`` if transformers does not know its type or refuses it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from sightbridge.models.build import EXTRA_CONFIG_KEYS, make_config

    model_type = options.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise CheckpointError(f"{weights.path}: transformers has no model of type '{model_type}'.")
    fresh = CONFIG_MAPPING[model_type]()
    kept = {
        key: value
        for key, value in options.items()
        if key not in NOT_A_MODELS and value is not None and (hasattr(fresh, key) or key in EXTRA_CONFIG_KEYS)
    }
    try:
        config = make_config(kept | {"model_type": model_type}, "language_model").to_dict()
    except SettingsError as error:
        raise CheckpointError(f"{weights.path}: config.json: {error}") from error
    return {key: value for key, value in config.items() if key not in NOT_A_MODELS and value is not None}


def _question_tokenizer(weights: Weights) -> str:
    """Where the tokenizer of the Q-Former's questions is: InstructBLIP's folders bring one."""
    folder = _folder(weights) / "qformer_tokenizer"
    return str(folder) if folder.is_dir() else BERT


def _tokenizer(weights: Weights) -> Path | None:
    folder = _folder(weights)
    return folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None


HF_BLIP2 = Format("hf_blip2", "Hugging Face Blip2* or InstructBlip* (BLIP-2, mBLIP)", matches, read)
