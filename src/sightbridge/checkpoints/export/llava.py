"""``--to llava``: the original layout of LLaVA-1.5, ViP-LLaVA and CLIP-FlanT5 as one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightbridge.checkpoints.export.hf_llava import complete_tower
from sightbridge.checkpoints.export.job import Job, Written, cannot
from sightbridge.checkpoints.export.tokens import end_ids
from sightbridge.checkpoints.formats.llava_parts import VIP_LAYERS, VIP_TOWER
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.manifest import AnyManifest
from sightbridge.checkpoints.sources.model_folder import FolderWeights
from sightbridge.checkpoints.sources.writer import write_sharded
from sightbridge.config.model import ModelSettings
from sightbridge.data.processor import Processor
from sightbridge.models.connectors import check_connector
from sightbridge.models.connectors.mlp import MLPOptions
from sightbridge.models.vision_tower import count_positions

WHAT = "an original LLaVA folder"
TYPES = {
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "phi3": ("llava_phi3", "LlavaPhi3ForCausalLM"),
    "mistral": ("llava_mistral", "LlavaMistralForCausalLM"),
    "qwen2": ("llava_qwen", "LlavaQwenForCausalLM"),
    "t5": ("clip_t5", "CLIPT5ForConditionalGeneration"),
}
"""Type and class of the whole by the type of the language model."""
ASPECTS = {"pad": "pad", "crop": "square"}
"""Theirs of how a picture is fitted."""


def llava_parts(manifest: AnyManifest) -> tuple[str, ...]:
    """Everything."""
    return ("vision_tower", "bridge", "language_model", "adapter")


def write_llava(job: Job, folder: Path) -> Written:
    """Write configuration, weights and tokenizer; raises ``CheckpointError`` for what the layout has no place for."""
    settings = job.manifest.settings
    if not isinstance(settings, ModelSettings) or settings.connector.kind not in ("mlp", "linear"):
        raise cannot(
            job, WHAT, "it has a Q-Former and LLaVA has an MLP or a linear layer", "Try --to lavis or --to hf."
        )
    if any(name.startswith("adapter.") for name in job.weights.infos):
        raise cannot(job, WHAT, "whole models have no place for adapters", "Give --merge to put them inside.")
    model_type = job.weights.language_model.config.model_type
    if model_type not in TYPES:
        raise cannot(job, WHAT, f"its language model is a {model_type}, known are {', '.join(TYPES)}", "")
    config = vision_config(job, settings) | projector_config(job, settings)
    weights, notes = complete_tower(job.weights)
    norm = config["mm_vision_tower"] == VIP_TOWER
    tables = ("clip_flant5",) if model_type == "t5" else ("llava", "mm_projector_vip" if norm else "mm_projector")
    mapped = KeyMap.named(*tables).to_theirs(weights)
    if mapped.unexpected:
        reason = f"it has no place for {len(mapped.unexpected)} weights, such as '{mapped.unexpected[0]}'"
        raise cannot(job, WHAT, reason, "")
    write_sharded(folder, mapped, on_tensor=job.on_tensor)
    config |= language_config(job, model_type, "language_model.lm_head.weight" in weights.infos)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    job.processor.tokenizer.save_pretrained(folder)
    if settings.image.fit not in ASPECTS:
        notes += ("Pictures are squashed to a square here, which LLaVA's code never does: it will crop them.",)
    notes += (tower_note(job, config),)
    family = "CLIP-FlanT5" if model_type == "t5" else "ViP-LLaVA" if norm else "LLaVA-1.5"
    load = f'# {family}\'s own code: load_pretrained_model(FOLDER, None, "llava")'
    return Written(f"the original layout of {family}", load, notes, ("llava",))


def vision_config(job: Job, settings: ModelSettings) -> dict[str, Any]:
    """How the layout says what is seen: one hidden state of CLIP, or ViP-LLaVA's five by their keyword."""
    weights, vision = job.weights, job.weights.vision_model.config
    if vision.model_type != "clip_vision_model":
        raise cannot(job, WHAT, f"its vision tower is a {vision.model_type} and LLaVA's is CLIP", "Try --to hf.")
    depth = vision.num_hidden_layers
    layers = weights.layers or [depth]
    prefix, _ = count_positions(weights.vision_model)
    dropped = prefix if settings.vision_tower.class_token == "drop" else 0
    options = check_connector(settings.connector)
    norm = isinstance(options, MLPOptions) and options.input_norm
    named = job.manifest.parts["vision_tower"].source
    if norm or len(layers) > 1:
        vip = [index % (depth + 1) for index in VIP_LAYERS] if depth >= 10 else []
        if layers != vip or not dropped or not norm:
            reason = (
                f"with several hidden states or a norm in front of the MLP it must be ViP-LLaVA: layers {VIP_LAYERS} "
                f"of a whole tower, without CLS, behind a LayerNorm (here: {layers}, and {depth} blocks are there)"
            )
            raise cannot(job, WHAT, reason, "Try --to hf.")
        named = VIP_TOWER
    return {
        "mm_vision_tower": named,
        # counted from the front if the tower is not whole: the one that the original opens may have more blocks
        "mm_vision_select_layer": layers[0] - (depth + 1 if is_whole(weights) else 0),
        "mm_vision_select_feature": "patch" if dropped else "cls_patch",
        "mm_hidden_size": vision.hidden_size * len(layers),
        "mm_patch_merge_type": "flat",
        "image_aspect_ratio": ASPECTS.get(settings.image.fit, "square"),
    }


def is_whole(weights: FolderWeights) -> bool:
    """Whether nothing was cut off the tower: then it ends in its final norm."""
    return "vision_tower.post_layernorm.weight" in weights.infos


def projector_config(job: Job, settings: ModelSettings) -> dict[str, Any]:
    """The keys of LLaVA's configuration that are no language model's."""
    options = check_connector(settings.connector)
    return {
        "use_mm_proj": True,
        "mm_projector_type": f"mlp{options.layers}x_gelu" if isinstance(options, MLPOptions) else "linear",
        "mm_projector_lr": None,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "tokenizer_padding_side": "right",
        # of text; an encoder-decoder's max_length counts a picture's places, too
        "tokenizer_model_max_length": settings.prompt.max_answer_length or settings.prompt.max_length or 2048,
    }


def language_config(job: Job, model_type: str, own_head: bool) -> dict[str, Any]:
    """The language model's configuration, with type and class of the whole."""
    model = job.weights.language_model
    assert isinstance(job.processor, Processor)
    whole, class_name = TYPES[model_type]
    changes = {"model_type": whole, "architectures": [class_name]}
    ends = end_ids(job.processor)
    content = model.config.to_dict() | changes | {"eos_token_id": ends[0] if len(ends) == 1 else ends}
    return content | ({"tie_word_embeddings": False} if own_head else {})


def tower_note(job: Job, config: dict[str, Any]) -> str:
    """Which tower the original code will open."""
    named = config["mm_vision_tower"]
    if named == VIP_TOWER:
        return f"`{VIP_TOWER}` is ViP-LLaVA's keyword for CLIP-L/14-336 and five of its layers."
    if named is None:
        return "The original code opens its vision tower by a name (`mm_vision_tower`); this one has none: write one."
    return f"The original code opens its vision tower at `{named}`; the file holds its weights as well."
