"""``LlavaForConditionalGeneration`` and ``VipLlavaForConditionalGeneration`` of transformers, in all their spellings.

Files on the hub have ``language_model.model``, ``vision_tower.vision_model``, ``multi_modal_projector``; transformers 5
writes the tower without its inner level, and its models in memory begin with ``model.``. A configuration of the whole
has those of tower and language model inside.
"""

from __future__ import annotations

from typing import Any

import torch

from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.beside import with_beside
from sightbridge.checkpoints.formats.llava import (
    config_of,
    family,
    family_template,
    folder_of,
    template_note,
    tokenizer_folder,
)
from sightbridge.checkpoints.formats.llava_parts import (
    BRIDGE,
    LANGUAGE_MODEL,
    TRAINED_WITH,
    bridge_settings,
    bridge_widths,
    bridge_words,
    count_layers,
    dropped_notes,
    dtype_of,
    language_model_config,
    map_exactly,
    part_config,
)
from sightbridge.checkpoints.key_map import JoinedWeights
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.containers import read_json
from sightbridge.errors import CheckpointError

PROJECTOR = "multi_modal_projector."
MODEL_TYPES = ("llava", "vipllava")
WHY_DROPPED = {"position_ids": "they are counted", "inv_freq": "the frequencies follow from the configuration"}
CLASS_TOKEN = {"default": "drop", "full": "keep"}
"""Ours of ``vision_feature_select_strategy``."""
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


def is_hf_llava(weights: Weights) -> bool:
    """Whether these are a Llava's or VipLlava's of transformers."""
    return any(name.startswith((f"{PROJECTOR}linear_1.", f"model.{PROJECTOR}linear_1.")) for name in weights.infos)


def read_hf_llava(weights: Weights) -> Found:
    """Say what a model of these classes is."""
    whole = whole_config(weights)
    mapped = map_exactly(weights, "hf_llava")
    bridge = bridge_settings(mapped)
    if bridge["input_norm"]:
        bridge["input_norm_eps"] = whole.projector_layernorm_eps
    language_model = text_config(mapped, whole)
    vision = part_config(mapped, whole.vision_config.model_type, whole.vision_config.to_dict())
    layers = whole.vision_feature_layer
    template = family_template(language_model, bridge["input_norm"])
    image, fit_note = image_settings(weights)
    settings = {
        "vision_tower": {
            "config": vision,
            "layers": [layers] if isinstance(layers, int) else list(layers),
            "class_token": CLASS_TOKEN[getattr(whole, "vision_feature_select_strategy", "default")],
        },
        "connector": bridge,
        "language_model": {"config": language_model, "dtype": dtype_of(mapped, LANGUAGE_MODEL)},
        "prompt": {"switches": dict(TRAINED_WITH), "max_length": 2048} | ({"template": template} if template else {}),
        "image": image,
    }
    blocks = count_layers(mapped, f"{LANGUAGE_MODEL}model.layers.")
    words = f"{bridge_words(mapped)}; {language_model['model_type']} of {blocks} blocks; {vision['model_type']}"
    found = Found(
        format="hf-llava",
        what=f"{family(bridge, {})} of transformers: {words}",
        weights=with_biases(mapped),
        kind="generation",
        settings=settings,
        tokenizer=tokenizer_folder(weights),
        notes=(*dropped_notes(mapped, WHY_DROPPED), template_note(template, language_model["model_type"]), fit_note),
    )
    return with_beside(found, weights)


def whole_config(weights: Weights) -> Any:
    """The configuration of the whole as transformers understands it, old spellings among them.

    Raises ``CheckpointError`` if there is none, it is of another class, or the projector has another activation.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = config_of(weights)
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{weights.path}: the projector is that of transformers' LLaVA, but config.json is of type '{model_type}'; "
            f"what can be read are {' and '.join(MODEL_TYPES)}."
        )
    try:
        whole: Any = CONFIG_MAPPING[model_type].from_dict(config)
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        raise CheckpointError(f"{weights.path}: transformers refuses its config.json: {error}") from error
    if whole.projector_hidden_act != "gelu":
        raise CheckpointError(f"{weights.path}: the projector's activation is {whole.projector_hidden_act}, not gelu.")
    if (strategy := getattr(whole, "vision_feature_select_strategy", "default")) not in CLASS_TOKEN:
        raise CheckpointError(
            f"{weights.path}: vision_feature_select_strategy {strategy}: none of {', '.join(CLASS_TOKEN)}."
        )
    return whole


def text_config(weights: Weights, whole: Any) -> dict[str, Any]:
    """The configuration of the language model, which shares its head with the embeddings only if that is said there.

    The vocabulary is that of the table: on the hub it has grown to 32,064 words for ``<image>`` and ``<pad>``, whose
    rows are kept though nothing reads them.
    """
    text = whole.text_config.to_dict()
    tied = bool(text.get("tie_word_embeddings", False))
    if not tied and f"{LANGUAGE_MODEL}lm_head.weight" not in weights.infos:
        raise CheckpointError(f"{weights.path}: the language model's output head is missing; config.json ties none.")
    return language_model_config(weights, text["model_type"], text) | {"tie_word_embeddings": tied}


def with_biases(weights: Weights) -> Weights:
    """The weights with biases of zero for a projector without (``multimodal_projector_bias``), which is the same."""
    missing = [f"{BRIDGE}layers.{n}.bias" for n in (0, 2) if f"{BRIDGE}layers.{n}.bias" not in weights.infos]
    if not missing:
        return weights
    dtype = weights.infos[f"{BRIDGE}layers.0.weight"].dtype
    zeros = {name: torch.zeros(bridge_widths(weights)[1], dtype=dtype) for name in missing}
    return JoinedWeights(weights, Weights.of(zeros, weights.path))


def image_settings(weights: Weights) -> tuple[dict[str, Any], str]:
    """How pictures are prepared, as the processor in the folder says; without one they are padded, as in training.

    Their size is the tower's.
    """
    processor = processor_config(weights)
    if processor is None:
        return {"fit": "pad"}, "pictures are padded, as in training; no processor is in the folder"
    fit = "pad" if processor.get("do_pad") else "crop" if processor.get("do_center_crop") else "squash"
    settings: dict[str, Any] = {"fit": fit}
    statistics = {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
    settings |= {name: values for name, values in statistics.items() if values is not None}
    note = f"pictures are fitted by '{fit}', as the processor in the folder says"
    return settings, note + ("" if fit == "pad" else "; LLaVA's own training padded them: image.fit=pad")


def processor_config(weights: Weights) -> dict[str, Any] | None:
    """What the folder says about pictures: in a file of its own, or with transformers 5 inside another."""
    folder = folder_of(weights)
    if (folder / PREPROCESSOR).is_file():
        return read_json(folder / PREPROCESSOR)
    inner = read_json(folder / PROCESSOR).get("image_processor") if (folder / PROCESSOR).is_file() else None
    return inner if isinstance(inner, dict) else None


HF_LLAVA = Format("hf-llava", "a Llava or VipLlava of transformers", is_hf_llava, read_hf_llava)
