"""``--to paddle``: PaddleMIX's folder of a BLIP-2: ``config.json`` and ``model_state.pdparams``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightbridge.checkpoints.export.hf_blip2 import TOWERS
from sightbridge.checkpoints.export.job import Job, Written, cannot
from sightbridge.checkpoints.export.lavis import activation_notes, used_tower
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.manifest import AnyManifest, Manifest
from sightbridge.checkpoints.sources.writer import write_pdparams
from sightbridge.config.model import ModelSettings
from sightbridge.models.build_qformer import check_qformer
from sightbridge.models.connectors import check_connector
from sightbridge.models.connectors.qformer import QFormerOptions

FILE = "model_state.pdparams"
LANGUAGE_MODELS = {"opt": "paddle_opt", "t5": "paddle_t5"}
"""Language models that PaddleMIX's BLIP-2 has, and the tables of their names."""


def paddle_parts(manifest: AnyManifest) -> tuple[str, ...]:
    """Everything: PaddleMIX's whole models hold every part."""
    return ("vision_tower", "bridge", "language_model", "adapter")


def write_paddle(job: Job, folder: Path) -> Written:
    """Write a whole model; raises ``CheckpointError`` for one that PaddleMIX has no class for."""
    settings, weights = job.manifest.settings, job.weights
    if isinstance(settings, ModelSettings) and settings.connector.kind != "qformer":
        reason = f"its connector is a {settings.connector.kind} and PaddleMIX' BLIP-2 has a Q-Former"
        raise cannot(job, "a PaddleMIX folder", reason, "Try --to llava or --to projector.")
    if weights.vision_model.config.model_type not in TOWERS:
        reason = f"its vision tower is a {weights.vision_model.config.model_type} and PaddleMIX' is EVA's ViT"
        raise cannot(job, "a PaddleMIX folder", reason, "")
    if any(name.startswith("adapter.") for name in weights.infos):
        reason = "PaddleMIX' BLIP-2 has no place for the adapters of its language model"
        raise cannot(job, "a PaddleMIX folder", reason, "Give --merge to put them inside.")
    family = weights.language_model.config.model_type if weights.language_model is not None else None
    if family not in (*LANGUAGE_MODELS, None):
        reason = f"its language model is a {family} and PaddleMIX' are OPT and T5"
        raise cannot(job, "a PaddleMIX folder", reason, "")
    tables = ["paddle", *([LANGUAGE_MODELS[family]] if family else [])]
    mapped = KeyMap.named(*tables).to_theirs(used_tower(weights))
    if mapped.unexpected:
        reason = f"it has no place for {len(mapped.unexpected)} weights, such as '{mapped.unexpected[0]}'"
        raise cannot(job, "a PaddleMIX folder", reason, "")
    write_pdparams(folder / FILE, mapped, on_tensor=job.on_tensor)
    (folder / "config.json").write_text(json.dumps(_config(job, family), indent=2, sort_keys=True) + "\n")
    job.processor.tokenizer.save_pretrained(folder)
    load = (
        "import paddle  # with PaddleMIX\n"
        f'weights = paddle.load(f"{{FOLDER}}/{FILE}")\n'
        "# PaddleMIX: --load_model_path FOLDER"
    )
    notes = activation_notes(job, "gelu_new", "PaddleNLP") if family == "t5" else ()
    return Written("PaddleMIX' BLIP-2", load, notes, ("blip-2", "paddlemix"))


def _config(job: Job, family: str | None) -> dict[str, Any]:
    """What PaddleMIX writes into ``config.json`` (paddlemix/models/blip2/configuration.py)."""
    settings, vision = job.manifest.settings, job.weights.vision_model.config
    if isinstance(settings, ModelSettings):
        options = check_connector(settings.connector)
        assert isinstance(options, QFormerOptions)
        source = job.manifest.parts["language_model"].source
        text = (
            source if source and str(family) in source.lower() else family
        )  # PaddleMIX looks for the family in the name
    else:
        options, text = check_qformer(settings.qformer), "facebook/opt-2.7b"
    depth = job.weights.layers[0] if job.weights.layers else vision.num_hidden_layers
    return {
        "architectures": ["Blip2ForConditionalGeneration"],
        "model_type": "blip-2",
        "freeze_vit": True,
        "text_config": text,
        "use_decoder_only_language_model": not (isinstance(job.manifest, Manifest) and job.manifest.encoder_decoder),
        "qformer_config": {
            "model_type": "blip_2_qformer",
            "vocab_size": options.text_vocabulary,
            "hidden_size": options.hidden_size,
            "num_hidden_layers": options.num_layers,
            "num_attention_heads": options.num_heads,
            "intermediate_size": options.intermediate_size,
            "hidden_act": "gelu",
            "hidden_dropout_prob": options.dropout,
            "attention_probs_dropout_prob": options.dropout,
            "max_position_embeddings": options.text_positions,
            "layer_norm_eps": options.norm_eps,
            "add_cross_attention": True,
            "cross_attention_freq": options.cross_attention_every,
            "cross_attention_frequency": options.cross_attention_every,
            "encoder_width": vision.hidden_size,
            "encoder_hidden_size": vision.hidden_size,
            "query_length": options.num_queries,
            "num_query_tokens": options.num_queries,
        },
        "vision_config": {
            "model_type": "blip_2_vision_model",
            "depth": depth,
            "embed_dim": vision.hidden_size,
            "img_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_heads": vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "qkv_bias": vision.qkv_bias,
            "epsilon": vision.layer_norm_eps,
            "drop_rate": 0,
        },
    }
