"""LLaVA's classes of transformers: LlavaForConditionalGeneration and VipLlavaForConditionalGeneration."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import LlavaConfig, LlavaProcessor, VipLlavaConfig

from sightbridge.checkpoints.export.hf_plan import (
    Plan,
    changes_values,
    end_notes,
    generation_config,
    loading,
    text_config,
    type_held,
)
from sightbridge.checkpoints.export.job import Job, cannot
from sightbridge.checkpoints.export.pictures import image_processor
from sightbridge.checkpoints.export.tokens import place_image_token
from sightbridge.checkpoints.sources.base import Held
from sightbridge.checkpoints.sources.model_folder import FolderWeights
from sightbridge.config.model import ModelSettings
from sightbridge.data.processor import Processor
from sightbridge.models.connectors import check_connector
from sightbridge.models.connectors.mlp import MLPOptions
from sightbridge.models.vision_tower import count_positions

TO_LLAVA = "The original LLaVA's layout has a place for it: --to llava."


def plan_llava(job: Job) -> Plan:
    """An MLP of two layers in front of a decoder-only language model; ViP-LLaVA's has a LayerNorm in front."""
    settings = job.manifest.settings
    assert isinstance(settings, ModelSettings) and isinstance(job.processor, Processor)
    options = check_connector(settings.connector)
    assert isinstance(options, MLPOptions)
    name = "VipLlavaForConditionalGeneration" if options.input_norm else "LlavaForConditionalGeneration"
    if options.layers != 2:
        raise cannot(job, name, f"its MLP has {options.layers} linear layers and the class has 2", TO_LLAVA)
    check_language_model(job, name)
    strategy, layers = choose_features(job, name, settings)
    weights, notes = complete_tower(job.weights)
    token = place_image_token(weights, job.processor.tokenizer)
    text = text_config(job, token)
    vision = weights.vision_model.config
    content: dict[str, Any] = {
        "vision_config": vision.to_dict(),
        "text_config": text.to_dict(),
        "image_token_index": token.id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": layers,
        "image_seq_length": job.manifest.tokens_per_image,
        "tie_word_embeddings": bool(text.tie_word_embeddings),
        "dtype": type_held(job),
    }
    if options.input_norm:
        config = VipLlavaConfig(projector_layernorm_eps=options.input_norm_eps, **content)
    else:
        config = LlavaConfig(vision_feature_select_strategy=strategy, multimodal_projector_bias=True, **content)
    prefix, _ = count_positions(weights.vision_model)
    processor = LlavaProcessor(
        image_processor(settings.image),
        token.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=prefix,
    )
    notes = (*notes, token.note, *end_notes(job))
    return Plan(
        name,
        "hf_llava",
        config,
        processor,
        token.weights,
        loading(name),
        notes=notes,
        generation=generation_config(job, text),
    )


def choose_features(job: Job, name: str, settings: ModelSettings) -> tuple[Literal["default", "full"], Any]:
    """How the class says which positions and hidden states of the tower are read."""
    weights = job.weights
    prefix, _ = count_positions(weights.vision_model)
    dropped = prefix if settings.vision_tower.class_token == "drop" else 0
    if dropped > 1 or (name.startswith("Vip") and dropped != 1):
        raise cannot(
            job, name, f"it drops {dropped} positions in front of the patches and the class drops one", TO_LLAVA
        )
    depth, layers = weights.vision_model.config.num_hidden_layers, weights.layers
    if layers is None and weights.vision_model.config.model_type != "clip_vision_model":
        reason = "it takes the tower's output behind its final norm and the class takes hidden states"
        raise cannot(
            job, name, reason, "A model that is trained with model.vision_tower.layers=[-1] has a place there."
        )
    from_end = [index - depth - 1 for index in ([depth] if layers is None else layers)]
    return ("default" if dropped else "full"), from_end[0] if len(from_end) == 1 else from_end


def complete_tower(weights: FolderWeights) -> tuple[FolderWeights, tuple[str, ...]]:
    """Fill what a tower that was cut lacks and nothing reads: the final norm, with ones and zeros."""
    wanted = {f"vision_tower.{name}": tensor for name, tensor in weights.vision_model.state_dict().items()}
    missing = [name for name in wanted if name not in weights.infos]
    if not missing:
        return weights, ()
    dtype = next(info.dtype for name, info in weights.infos.items() if name.startswith("vision_tower."))
    filled = {}
    for name in missing:
        value = torch.ones if name.endswith("weight") and wanted[name].ndim == 1 else torch.zeros
        filled[name] = Held(value(tuple(wanted[name].shape), dtype=dtype), weights.path)
    depth = weights.vision_model.config.num_hidden_layers
    note = (
        f"The vision tower has the {depth} blocks that are used. What is behind them ({len(missing)} weights of the "
        "final norm or pooler, which no language model sees) is not in the model folder and was filled with ones and "
        "zeros: do not use the tower alone for its pooled output."
    )
    return weights.but(filled), (note,)


def check_language_model(job: Job, name: str) -> None:
    """Raise ``CheckpointError`` for a language model that the class would run otherwise."""
    model = job.weights.language_model
    config = model.config
    if config.is_encoder_decoder:
        raise cannot(
            job,
            name,
            f"its language model ({config.model_type}) is an encoder-decoder and the class takes decoder-only ones",
            "CLIP-FlanT5's layout has a place for it: --to llava.",
        )
    if (
        not hasattr(model.base_model, "embed_tokens")
        or getattr(model.get_output_embeddings(), "bias", None) is not None
    ):
        reason = f"the class expects Llama's names and a head without bias, and a {config.model_type} has others"
        raise cannot(job, name, reason, "Its connector can be written with --to projector.")
    if reason := changes_values(config):
        raise cannot(job, name, f"its language model {reason}, which the class leaves out", TO_LLAVA)
