"""The original layout of LLaVA-1.5, ViP-LLaVA and their relatives, whole models and LoRA runs.

A whole model is a folder of ``transformers`` with more in it: a tower under ``model.vision_tower``, the projector
under ``model.mm_projector``, and ``mm_*`` keys in ``config.json``. Often the tower is missing, as it is frozen: the
configuration then says which one it was (haotian-liu/LLaVA and WisconsinAIVision/ViP-LLaVA, ``model/llava_arch.py``,
``model/multimodal_encoder/builder.py``). A LoRA run is a PEFT folder with ``non_lora_trainables.bin``, the projector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.llava_parts import (
    ADAPTER,
    CLIP_336,
    FITS,
    LANGUAGE_MODEL,
    TOWER,
    TRAINED_WITH,
    VIP_LAYERS,
    VIP_TOWER,
    bridge_settings,
    bridge_words,
    count_layers,
    dropped_notes,
    dtype_of,
    has,
    language_model_config,
    map_exactly,
    tower_config,
)
from sightbridge.checkpoints.key_map import JoinedWeights
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.containers import read_json
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.errors import CheckpointError

PROJECTOR = "mm_projector."
NON_LORA = "non_lora_trainables.bin"
LORA_MARK = ".lora_A."
WHY_DROPPED = {
    "position_ids": "they are counted",
    "inv_freq": "the frequencies follow from the configuration",
    "image_newline": "only LLaVA-1.6's tiles are divided by it",
}
PLAIN_LORA: dict[str, Any] = {
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layers_to_transform": None,
}
"""What PEFT writes of LoRA as it was published (arXiv 2106.09685); other values change what the weights mean."""
MODEL_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_qwen": "qwen2"}
"""Type of the language model by that of the whole, where it is not simply what follows ``llava_``."""
CONFIG_TYPES = {
    "model_type": str,
    "_name_or_path": str,
    "vocab_size": int,
    "mm_vision_tower": str,
    "mm_vision_select_layer": int,
    "mm_vision_select_feature": str,
    "mm_patch_merge_type": str,
    "image_aspect_ratio": str,
    "tokenizer_model_max_length": int,
}
"""Keys of ``config.json`` that are read here; each may be null."""
LLAMA_3_VOCABULARY = 128_000
"""Words of Llama 3's tokenizer, without its special tokens; Llama 1 and 2 have 32,000."""
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "spiece.model")


def is_whole(weights: Weights) -> bool:
    """Whether these are a decoder-only language model and a projector, in the original layout."""
    # Embeddings alone also stand beside a projector that was trained with new words.
    return "model.norm.weight" in weights.infos and has(weights, f"model.{PROJECTOR}")


def read_whole(weights: Weights) -> Found:
    """Say what a whole model is."""
    config = config_of(weights)
    mapped = map_exactly(weights, "llava", projector_table(weights))
    bridge = bridge_settings(mapped)
    refuse_what_is_not_here(weights, config)
    tower, tower_words, notes = vision_settings(mapped, config)
    language_model = language_model_config(mapped, language_model_type(weights, config), config)
    prompt, prompt_notes = prompt_settings(language_model, is_vip(bridge, config), config)
    settings = {
        "vision_tower": tower,
        "connector": bridge,
        "language_model": {"config": language_model, "dtype": dtype_of(mapped, LANGUAGE_MODEL)},
        "prompt": prompt,
        "image": image_settings(config),
    }
    layers = count_layers(mapped, f"{LANGUAGE_MODEL}model.layers.")
    words = f"{bridge_words(mapped)}; {language_model['model_type']} of {layers} blocks; {tower_words}"
    return Found(
        format="llava",
        what=f"{family(bridge, config)}, original layout: {words}",
        weights=mapped,
        kind="generation",
        settings=settings,
        tokenizer=tokenizer_folder(weights),
        notes=(*dropped_notes(mapped, WHY_DROPPED), *notes, *prompt_notes),
    )


def is_lora_run(weights: Weights) -> bool:
    """Whether these are adapters with a projector beside them, in the same file or in the folder's."""
    adapted = any(LORA_MARK in name for name in weights.infos)
    return adapted and (any(PROJECTOR in name for name in weights.infos) or (folder_of(weights) / NON_LORA).is_file())


def read_lora_run(weights: Weights) -> Found:
    """Say what a LoRA run is: adapters, the projector, and where the language model is."""
    folder, config = folder_of(weights), config_of(weights)
    if not any(PROJECTOR in name for name in weights.infos):
        weights = JoinedWeights(weights, open_weights(folder / NON_LORA))
    mapped = map_exactly(weights, "llava_lora", projector_table(weights))
    adapter = read_json(folder / "adapter_config.json")
    bridge = bridge_settings(mapped)
    refuse_what_is_not_here(weights, config)
    tower, tower_words, notes = vision_settings(mapped, config)
    base = adapter.get("base_model_name_or_path")
    options = {"model_type": language_model_type(weights, config), "vocab_size": config.get("vocab_size") or 0}
    prompt, prompt_notes = prompt_settings(options, is_vip(bridge, config), config)
    settings = {
        "vision_tower": tower,
        "connector": bridge,
        "language_model": {"source": base} if base else {},
        "lora": lora_settings(adapter, folder),
        "prompt": prompt,
        "image": image_settings(config),
    }
    adapted = sum(LORA_MARK in name for name in mapped.infos if name.startswith(ADAPTER))
    words = f"adapters of {adapted} layers of '{base}'; {bridge_words(mapped)}; {tower_words}"
    return Found(
        format="llava-lora",
        what=f"{family(bridge, config)}, a LoRA run: {words}",
        weights=mapped,
        kind="generation",
        settings=settings,
        tokenizer=tokenizer_folder(weights),
        notes=(*notes, *prompt_notes),
    )


def lora_settings(adapter: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Our settings of the adapters that PEFT describes; raises ``CheckpointError`` for others than plain LoRA."""
    path = folder / "adapter_config.json"
    missing = [key for key in ("r", "lora_alpha", "target_modules") if key not in adapter]
    if missing:
        raise CheckpointError(f"{path}: '{missing[0]}' is missing in it; did peft write it?")
    others = [f"{key} {adapter[key]}" for key, plain in PLAIN_LORA.items() if adapter.get(key) not in (None, [], plain)]
    if others:
        raise CheckpointError(f"{path}: says {', '.join(others)}; only plain LoRA can be read, which has none of that.")
    targets = adapter["target_modules"]
    if not isinstance(targets, str) and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        raise CheckpointError(f"{path}: 'target_modules' is {targets!r}, expected names of layers.")
    return {
        "targets": targets if isinstance(targets, str) else sorted(targets),
        "r": adapter["r"],
        "alpha": adapter["lora_alpha"],
        "dropout": adapter.get("lora_dropout", 0.0),
    }


def projector_table(weights: Weights) -> str:
    """The table of the projector's names; ViP-LLaVA's LayerNorm tells which."""
    is_vip = any(f"{PROJECTOR}clip_layernorm." in name for name in weights.infos)
    return "mm_projector_vip" if is_vip else "mm_projector"


def is_vip(bridge: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether it is a ViP-LLaVA: by its tower, or by the LayerNorm that an MLP behind it has."""
    return config.get("mm_vision_tower") == VIP_TOWER or bool(bridge.get("input_norm"))


def family(bridge: dict[str, Any], config: dict[str, Any]) -> str:
    """What to call it."""
    return "ViP-LLaVA" if is_vip(bridge, config) else "LLaVA"


def refuse_what_is_not_here(weights: Weights, config: dict[str, Any]) -> None:
    """Raise ``CheckpointError`` for ways of seeing pictures that would silently be others here."""
    if config.get("mm_use_im_start_end"):
        raise CheckpointError(
            f"{weights.path}: the model was trained with the words <im_start> and <im_end> around each picture "
            "(mm_use_im_start_end), which prompts here do not have."
        )
    aspect, merge = config.get("image_aspect_ratio") or "square", config.get("mm_patch_merge_type") or "flat"
    if aspect not in FITS or merge != "flat":
        raise CheckpointError(
            f"{weights.path}: the model was trained on tiles of pictures (image_aspect_ratio {aspect}, "
            f"mm_patch_merge_type {merge}), as LLaVA-1.6 is; here a picture is seen whole."
        )


def vision_settings(weights: Weights, config: dict[str, Any]) -> tuple[dict[str, Any], str, list[str]]:
    """The tower's settings, words and notes: its own configuration if it is there, otherwise which one it was."""
    named = config.get("mm_vision_tower")
    layer = config.get("mm_vision_select_layer")
    if named == VIP_TOWER:
        # The original always takes these and drops CLS, whatever mm_vision_select_layer and _feature say.
        settings: dict[str, Any] = {"layers": VIP_LAYERS, "class_token": "drop"}
        named = CLIP_336
    else:
        kept = config.get("mm_vision_select_feature", "patch") == "cls_patch"
        settings = {"layers": [layer]} if layer is not None else {}
        settings |= {"class_token": "keep" if kept else "drop"}
    if not has(weights, TOWER):
        return settings | ({"source": named} if named else {}), f"its tower is '{named}', not in the file", []
    hidden_act, notes = tower_activation(named)
    tower = tower_config(weights, hidden_act)
    return settings | {"config": tower}, f"CLIP of {tower['num_hidden_layers']} blocks", notes


def tower_activation(named: str | None) -> tuple[str, list[str]]:
    """CLIP's activation, which the file does not say: OpenAI's towers have quick_gelu, LAION's gelu."""
    known = {"openai/": "quick_gelu", "laion/": "gelu"}
    for owner, activation in known.items():
        if named and named.startswith(owner):
            return activation, []
    told = f"the file does not say which activation the tower '{named}' has: quick_gelu is taken, as of OpenAI's CLIP"
    return "quick_gelu", [f"{told}; for another set vision_tower.config.hidden_act=gelu"]


def image_settings(config: dict[str, Any]) -> dict[str, Any]:
    """How pictures are fitted; their size is the tower's."""
    return {"fit": FITS[config.get("image_aspect_ratio") or "square"]}


def language_model_type(weights: Weights, config: dict[str, Any]) -> str:
    """Type of the language model inside."""
    whole = config.get("model_type")
    if not isinstance(whole, str):
        raise CheckpointError(f"{weights.path}: its config.json has no 'model_type', expected llava_llama or the like.")
    return MODEL_TYPES.get(whole, whole.removeprefix("llava_"))


def prompt_settings(
    language_model: dict[str, Any], is_vip: bool, config: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The family's prompt template and what it was trained with.

    No file says which template it was: the original chooses by words in the folder's name. Here the kind of language
    model and the vocabulary decide, and a note says what was chosen.
    """
    template = family_template(language_model, is_vip)
    switches = dict(TRAINED_WITH)
    if template == "llava_llama_3":
        # Whichever release of the tokenizer it was: one adds a second BOS, the other loses the newline.
        switches |= {"double_bos": True, "lost_newline": True}
    length = config.get("tokenizer_model_max_length") or 2048
    settings: dict[str, Any] = {"switches": switches, "max_length": length}
    settings |= {"template": template} if template else {}
    return settings, [template_note(template, language_model["model_type"])]


def template_note(template: str | None, model_type: str) -> str:
    """What was chosen, and how to choose otherwise."""
    if template is None:
        return f"no prompt template is known for a LLaVA on {model_type}; give one: prompt.template=NAME"
    return f"prompt template {template}, the family's, as the file names none; another one: prompt.template=NAME"


def family_template(language_model: dict[str, Any], is_vip: bool) -> str | None:
    """The template that the original's scripts train this kind of language model with."""
    kind = language_model["model_type"]
    if kind == "llama":
        if language_model["vocab_size"] >= LLAMA_3_VOCABULARY:
            return "llava_llama_3"
        return "llava_v1" if is_vip else "vicuna_v1"
    return {"phi3": "llava_phi_3", "mistral": "mistral_instruct"}.get(kind)


def tokenizer_folder(weights: Weights) -> Path | None:
    """The folder of the weights, if a tokenizer is in it."""
    folder = folder_of(weights)
    return folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None


def folder_of(weights: Weights) -> Path:
    """The folder that the weights are in."""
    return weights.path if weights.path.is_dir() else weights.path.parent


def config_of(weights: Weights) -> dict[str, Any]:
    """The ``config.json`` beside the weights."""
    if weights.config is None:
        raise CheckpointError(
            f"{weights.path}: there is no config.json beside it, which says what its language model is and which tower "
            "it looks through. Give the whole folder."
        )
    return checked_config(weights)


def checked_config(weights: Weights) -> dict[str, Any]:
    """The ``config.json``, if there is one; raises ``CheckpointError`` if what is read here is of another type."""
    config = weights.config or {}
    for key, kind in CONFIG_TYPES.items():
        if not isinstance(config.get(key), kind | None) or isinstance(config.get(key), bool):
            said = f"'{key}' is {str(config[key])[:100]!r}"
            raise CheckpointError(f"{weights.path}: its config.json is damaged: {said}, expected {kind.__name__}.")
    return config


LLAVA = Format("llava", "LLaVA or ViP-LLaVA, a folder in the original layout", is_whole, read_whole)
LLAVA_LORA = Format("llava-lora", "a LoRA run of LLaVA, with non_lora_trainables.bin", is_lora_run, read_lora_run)
