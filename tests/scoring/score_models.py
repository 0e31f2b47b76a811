"""Small models of every kind of score, and pictures and texts for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sightbridge.config.model import ImageSettings, ModelSettings
from sightbridge.config.qformer_recipe import CaptionTextSettings, QFormerModelSettings
from sightbridge.data.processor import Processor
from sightbridge.data.qformer_processor import QFormerProcessor, load_caption_tokenizer
from sightbridge.models.build import build_model
from sightbridge.models.build_qformer import build_qformer_model
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.scoring.kinds import Backend
from sightbridge.scoring.load import make_backend
from small_models import TOKENIZERS, TOWER, make_processor

TEXTS = [
    "a dog",
    "a yellow dog near a bus",
    "a man rides a horse, and a woman sits behind the large tree with an umbrella",
    "two cats",
    "a bus",
]
SMALL: dict[str, Any] = {"vocab_size": 900, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
DECODERS: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 900, "hidden_size": 32, "n_head": 4, "n_layer": 2},
    "cohere": {**SMALL, "intermediate_size": 48},
    "gemma": {**SMALL, "intermediate_size": 48, "head_dim": 8, "num_key_value_heads": 2},
    "gpt2": {"vocab_size": 900, "n_embd": 32, "n_head": 4, "n_layer": 2},
    "granite": {**SMALL, "intermediate_size": 48, "embedding_multiplier": 2.0, "logits_scaling": 2.0},
    "llama": {**SMALL, "intermediate_size": 48},
    "mistral": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "sliding_window": 40},
    "opt": {**SMALL, "ffn_dim": 48, "max_position_embeddings": 256, "word_embed_proj_dim": 32},
    "phi3": {**SMALL, "intermediate_size": 48, "pad_token_id": 0},
    "qwen2": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2},
    "qwen3": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
}
T5 = {"vocab_size": 600, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


@cache
def lively_model(family: str) -> VisionLanguageModel:
    """A model whose weights are large enough that texts get scores far apart."""
    torch.manual_seed(5)
    config = {"model_type": family, **DECODERS.get(family, T5 | {"decoder_start_token_id": 0})}
    settings = {
        "vision_tower": {"config": TOWER, "class_token": "drop"},
        "connector": {"kind": "linear"},
        "language_model": {"config": config},
        "prompt": {"template": "plain"},
    }
    model = build_model(ModelSettings.model_validate(settings)).eval()
    generator = torch.Generator().manual_seed(6)
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "vision_tower" not in name:
            weight.data = torch.randn(weight.shape, generator=generator) * (0.6 if "connector" in name else 0.25)
    return model


def processor_of(family: str) -> Processor:
    is_t5 = family == "t5"
    return make_processor("t5_v1" if is_t5 else "vicuna_v1", "t5" if is_t5 else "llama", encoder_decoder=is_t5)


@cache
def first_stage() -> tuple[Any, QFormerProcessor]:
    """Vision tower and Q-Former of the first stage, of random weights."""
    torch.manual_seed(7)
    tokenizer = load_caption_tokenizer(str(TOKENIZERS / "llama"))
    settings = {
        "vision_tower": {"config": TOWER},
        "qformer": {
            "num_queries": 3,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 24,
            "projection_size": 8,
            "text_vocabulary": len(tokenizer),
        },
        "text": {"tokenizer": str(TOKENIZERS / "llama")},
        "image": {"size": 28},
    }
    model = build_qformer_model(QFormerModelSettings.model_validate(settings)).eval()
    for weight in model.qformer.parameters():
        if weight.dim() == 2:
            weight.data = weight.data * 8
    return model, QFormerProcessor(tokenizer, CaptionTextSettings(tokenizer="x"), ImageSettings(size=28))


def save_clip(folder: Path) -> Path:
    """A whole CLIP of random weights in a folder, as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(8)
    tokenizer = _word_tokenizer()
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={**text, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 24},
        vision_config={**text, "image_size": 28, "patch_size": 14},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    """A whole SigLIP of random weights in a folder."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    torch.manual_seed(9)
    tokenizer = _word_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**shape, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "projection_size": 16},
        vision_config={**shape, "image_size": 28, "patch_size": 14},
    )
    SiglipModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def _word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *sorted({word for text in TEXTS for word in text.split()})]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    inner.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def backend_of(name: str) -> Backend:
    """``t5``, a decoder's family, ``itm`` or ``itc``."""
    if name in ("itm", "itc"):
        return make_backend(*first_stage(), name)  # type: ignore[arg-type]
    return make_backend(lively_model(name), processor_of(name))


def write_pictures(folder: Path, count: int = 4) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + 7 * number, 40, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels // (number + 1)).save(paths[-1])
    return paths
