"""Small models of every kind that can be exported, saved as training saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from sightbridge.checkpoints.connector_text import open_connector_text
from sightbridge.checkpoints.folder import load_any_model, save_model
from sightbridge.config.model import ModelSettings
from sightbridge.config.qformer_recipe import QFormerModelSettings
from sightbridge.data.processor import Processor
from sightbridge.data.qformer_processor import QFormerProcessor, load_caption_tokenizer
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.models.build import build_model
from sightbridge.models.build_qformer import build_qformer_model
from small_models import LLAMA, TOKENIZERS, TOWER

EVA = {
    "model_type": "blip_2_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "initializer_range": 0.3,
    "layer_norm_eps": 1e-6,
}
CLIP = TOWER | {"num_hidden_layers": 3}
"""Of which the last block is not used by LLaVA."""
CLIP_DEEP = TOWER | {"num_hidden_layers": 11}
"""The least depth that has all layers of ViP-LLaVA."""
QFORMER = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "num_queries": 3}
OPT = {
    "model_type": "opt",
    "vocab_size": 912,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "init_std": 0.3,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 640,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu",
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA_LM = LLAMA | {"initializer_range": 0.3}
KINDS: dict[str, dict[str, Any]] = {
    "blip2-opt": {
        "vision_tower": {"config": EVA, "layers": [-1]},
        "connector": {"kind": "qformer", **QFORMER},
        "language_model": {"config": OPT},
        "prompt": {"template": "blip2_question"},
    },
    "blip2-t5": {
        "vision_tower": {"config": EVA, "layers": [-1]},
        "connector": {"kind": "qformer", **QFORMER},
        "language_model": {"config": T5},
        "prompt": {"template": "blip2_question_t5"},
    },
    "llava": {
        "vision_tower": {"config": CLIP, "layers": [-2], "class_token": "drop"},
        "connector": {"kind": "mlp"},
        "language_model": {"config": LLAMA_LM},
        "prompt": {"template": "vicuna_v1"},
        "image": {"size": 28, "fit": "pad"},
    },
    "vip": {
        "vision_tower": {"config": CLIP_DEEP, "layers": [-2, -5, -8, -11, 6], "class_token": "drop"},
        "connector": {"kind": "mlp", "input_norm": True},
        "language_model": {"config": LLAMA_LM},
        "prompt": {"template": "llava_v1"},
        "image": {"size": 28, "fit": "crop"},
    },
    "clip-flant5": {
        "vision_tower": {"config": CLIP, "layers": [-2], "class_token": "drop"},
        "connector": {"kind": "mlp"},
        "language_model": {"config": T5},
        "prompt": {"template": "t5_v1"},
        "image": {"size": 28, "fit": "pad"},
    },
}
STAGE1 = {
    "vision_tower": {"config": EVA, "layers": [-1]},
    "qformer": {**QFORMER, "projection_size": 8, "text_vocabulary": 901, "text_positions": 40},
    "text": {"tokenizer": str(TOKENIZERS / "llama"), "max_length": 12},
    "image": {"size": 28},
}


def clip_folder(folder: Path, config: dict[str, Any]) -> str:
    """A vision tower as a Hugging Face folder, to be referenced."""
    torch.manual_seed(3)
    CLIPVisionModel(CLIPVisionConfig(**{k: v for k, v in config.items() if k != "model_type"})).save_pretrained(folder)
    return str(folder)


def make_processor_for(model: Any, settings: ModelSettings) -> Processor:
    """Tokenizers of real kinds, SentencePiece models of Llama and T5 with fewer tokens than some tables have rows."""
    kind = "t5" if model.language_model.is_encoder_decoder else "llama"
    return Processor(
        load_tokenizer(TOKENIZERS / kind),
        settings.prompt,
        settings.image,
        tokens_per_image=model.tokens_per_image,
        encoder_decoder=model.language_model.is_encoder_decoder,
        connector_text=open_connector_text(settings.connector),
    )


def save(kind: str, folder: Path, trained: tuple[str, ...] = ("connector",), **changes: Any) -> tuple[Any, Any]:
    """Write a model of ``KINDS`` into ``folder``, and load it again; ``changes`` go into its settings' groups."""
    content = {group: {**values, **changes.get(group, {})} for group, values in KINDS[kind].items()}
    content |= {group: values for group, values in changes.items() if group not in content}
    content.setdefault("image", {"size": 28})
    settings = ModelSettings.model_validate(content)
    model = build_model(settings, seed=1)
    for name in ("vision_tower", "connector", "language_model"):
        shake(model.get_submodule(name), getattr(getattr(settings, name), "source", None) is not None)
    save_model(model, make_processor_for(model, settings), settings, folder, trained_parts=trained)
    return load_any_model(folder)


def save_stage1(folder: Path) -> tuple[Any, Any]:
    """The same of a first stage."""
    settings = QFormerModelSettings.model_validate(STAGE1)
    model = build_qformer_model(settings, seed=1)
    shake(model)
    tokenizer = load_caption_tokenizer(settings.text.tokenizer)
    processor = QFormerProcessor(tokenizer, settings.text, settings.image)
    save_model(model, processor, settings, folder, trained_parts=["qformer"])
    return load_any_model(folder)


def shake(part: Any, adapters_only: bool = False) -> None:
    """Give norms, biases, queries and adapters values of their own, as training does; keys' biases stay zero."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if adapters_only and "lora_" not in name:
                continue
            if name.endswith("qkv.bias"):
                parameter.zero_()
            elif parameter.ndim == 1 or "lora_B" in name or "queries" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
