"""BLIP-2's classes of transformers: Blip2ForConditionalGeneration, InstructBlip, Blip2ForImageTextRetrieval."""

from __future__ import annotations

from typing import Any

from transformers import (
    Blip2Config,
    Blip2Processor,
    Blip2VisionConfig,
    BlipProcessor,
    InstructBlipConfig,
    InstructBlipProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

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
from sightbridge.checkpoints.sources.base import Stored
from sightbridge.checkpoints.sources.model_folder import FolderWeights
from sightbridge.config.model import VisionTowerSettings
from sightbridge.data.processor import Processor
from sightbridge.models.build_qformer import check_qformer
from sightbridge.models.connectors import check_connector
from sightbridge.models.connectors.qformer import QFormerOptions, qformer_config

TOWERS = ("blip_2_vision_model", "instructblip_vision_model")
"""One architecture under two names: EVA's ViT-g as BLIP-2 uses it."""
FINAL_NORM = "vision_tower.post_layernorm."
CLASS = "Blip2"


def plan_blip2(job: Job) -> Plan:
    """A Q-Former in front of a language model; with ``text_input`` it is InstructBlip, which reads the question too."""
    settings = job.manifest.settings
    options = check_connector(settings.connector)  # type: ignore[union-attr]
    assert isinstance(options, QFormerOptions) and isinstance(job.processor, Processor)
    weights, vision, notes = take_tower(job, settings.vision_tower, options)
    check_language_model(job)
    token = place_image_token(weights, job.processor.tokenizer)
    text = text_config(job, token)
    content: dict[str, Any] = {
        "vision_config": vision,
        "qformer_config": qformer_config(options, vision["hidden_size"]).to_dict(),
        "text_config": text.to_dict(),
        "num_query_tokens": options.num_queries,
        "image_token_index": token.id,
        "dtype": type_held(job),
    }
    pictures = image_processor(settings.image)
    notes = (*notes, token.note, *end_notes(job), *place_notes(job))
    generation = generation_config(job, text)
    if options.text_input:
        assert job.processor.connector_text is not None, "a connector that reads text has a tokenizer for it"
        content["vision_config"] = vision | {"model_type": "instructblip_vision_model"}
        content["qformer_config"] |= {"model_type": "instructblip_qformer"}
        processor = InstructBlipProcessor(
            pictures, token.tokenizer, job.processor.connector_text.tokenizer, num_query_tokens=options.num_queries
        )
        name, table, config = "InstructBlipForConditionalGeneration", "hf_instructblip", InstructBlipConfig(**content)
    else:
        processor = Blip2Processor(pictures, token.tokenizer, num_query_tokens=options.num_queries)
        name, table, config = "Blip2ForConditionalGeneration", "hf_blip2", Blip2Config(**content)
    return Plan(name, table, config, processor, token.weights, loading(name), notes=notes, generation=generation)


def plan_retrieval(job: Job) -> Plan:
    """The first stage: matching and retrieval; captioning head and temperature have no place and go beside it."""
    settings = job.manifest.settings
    options = check_qformer(settings.qformer)  # type: ignore[union-attr]
    weights, vision, notes = take_tower(job, settings.vision_tower, options)
    qformer = qformer_config(options, vision["hidden_size"]).to_dict() | {"use_qformer_text_input": True}
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        num_query_tokens=options.num_queries,
        image_text_hidden_size=options.projection_size,
        image_token_index=None,  # with one, transformers would cut placeholders off the front of every text
        dtype=type_held(job),
    )
    heads = ("bridge.temperature", "bridge.language_head.")
    extras = tuple(name for name in weights.infos if name.startswith(heads))
    temperature = float(weights.read("bridge.temperature"))
    notes += (
        "The captioning head and the temperature of the contrastive loss have no place in the class; they are in "
        f"`sightbridge_extras.safetensors`, where sightbridge finds them again. Similarities of the class are not "
        f"divided by the temperature, {temperature:.4g}.",
    )
    processor = BlipProcessor(image_processor(settings.image), job.processor.tokenizer)
    return Plan(
        "Blip2ForImageTextRetrieval",
        "hf_blip2",
        config,
        processor,
        weights,
        loading("Blip2ForImageTextRetrieval"),
        extras,
        notes,
        tags=("image-text-retrieval",),
    )


def take_tower(
    job: Job, settings: VisionTowerSettings, options: QFormerOptions
) -> tuple[FolderWeights, dict[str, Any], tuple[str, ...]]:
    """The tower as ``Blip2VisionModel``: blocks up to the one that is read, then one norm.

    That norm is the connector's ``input_norm`` (LAVIS' ``ln_vision``), or the tower's own if its output is taken and
    the connector has none.
    """
    model, weights = job.weights.vision_model, job.weights
    config = model.config
    if config.model_type not in TOWERS:
        reason = f"its vision tower is a {config.model_type}, and Blip2's can only be EVA's ViT (blip_2_vision_model)"
        raise cannot(job, CLASS, reason, "No other project has this combination either.")
    layers = weights.layers
    if settings.class_token != "keep" or (layers is not None and len(layers) != 1):
        raise cannot(job, CLASS, "its Q-Former reads other positions or several hidden states", "Blip2's reads one.")
    if (layers is None) == options.input_norm:
        reason = (
            "it has two norms between tower and Q-Former, Blip2 has one" if options.input_norm else "it has no norm"
        )
        raise cannot(job, CLASS, reason, "")
    depth = config.num_hidden_layers if layers is None else layers[0]
    unused = [name for name in weights.infos if is_above(name, depth)]
    changed: dict[str, Stored] = {}
    own = [name for name in weights.infos if name.startswith(FINAL_NORM)]
    if layers is None:
        changed = {name.replace(FINAL_NORM, "bridge.input_norm."): weights.stored[name] for name in own}
    vision = Blip2VisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=depth,
        num_attention_heads=config.num_attention_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        qkv_bias=config.qkv_bias,
    ).to_dict()
    return weights.but(changed, drop=[*unused, *own]), vision, norm_notes(config.layer_norm_eps, layers, options)


def norm_notes(blocks: float, layers: list[int] | None, options: QFormerOptions) -> tuple[str, ...]:
    """What it costs that the class has one epsilon for the blocks and for the norm behind them.

    LAVIS has 1e-6 in the blocks and 1e-5 behind them. Keeping that of the blocks leaves 2 norms a block exact; what is
    behind them has by far the largest variance, so that its epsilon weighs least.
    """
    if layers is None or options.input_norm_eps == blocks:
        return ()
    return (
        f"transformers has one epsilon for all norms of the tower. It is {blocks:g}, as in the blocks here; the norm "
        f"behind them, which has {options.input_norm_eps:g} here, so gives values larger by a share of at most "
        f"{abs(options.input_norm_eps - blocks) / 2:.1e} / variance of the features. For the same bits set "
        f"`model.vision_model.post_layernorm.eps = {options.input_norm_eps:g}`.",
    )


def is_above(name: str, depth: int) -> bool:
    """Whether a weight belongs to a block that nothing reads."""
    start = "vision_tower.encoder.layers."
    return name.startswith(start) and int(name.removeprefix(start).partition(".")[0]) >= depth


def check_language_model(job: Job) -> None:
    """Raise ``CheckpointError`` for a language model that Blip2 would run otherwise."""
    config = job.weights.language_model.config
    width = job.weights.language_model.get_input_embeddings().embedding_dim
    if width != config.hidden_size:
        reason = f"its language model's embeddings are {width} wide, its hidden states {config.hidden_size}"
        raise cannot(job, CLASS, reason, "Blip2 expects the same width.")
    if (config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) == bool(config.is_encoder_decoder):
        raise cannot(job, CLASS, f"transformers takes a {config.model_type} for a decoder-only model there", "")
    if reason := changes_values(config):
        raise cannot(job, CLASS, f"its language model {reason}", "")


def place_notes(job: Job) -> tuple[str, ...]:
    """Where the processor puts pictures, if that is not where the template does."""
    assert isinstance(job.processor, Processor)
    template = job.processor.template
    if template.image_place == "front":
        return ()
    return (
        f"The processor puts a picture in front of the text; the model's template ('{template.name}') puts it where "
        "its marker stands. Write the placeholders into `input_ids` yourself to have it there.",
    )
