"""Files of LAVIS with recorded tiny models, tokenizers of any size, and what no shape tells of these models."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

GOLDEN = Path(__file__).parent / "golden"
TOWER_HEADS = "vision_tower.config.num_attention_heads=4"
BLIP2_HEADS = [TOWER_HEADS, "connector.num_heads=4"]
OPT_HEADS = [*BLIP2_HEADS, "language_model.config.num_attention_heads=4"]
STAGE1_HEADS = [TOWER_HEADS, "qformer.num_heads=4"]
LLAVA_HEADS = ["vision_tower.config.num_attention_heads=2"]
"""What no shape of the tiny models tells."""


@cache
def lavis(name: str) -> dict[str, Any]:
    """A recorded model of LAVIS': its ``state_dict``, inputs and outputs."""
    return torch.load(GOLDEN / "lavis" / f"{name}.pt", weights_only=True)


def write_lavis(path: Path, name: str, without: tuple[str, ...] = ()) -> Path:
    """A file as LAVIS' runner saves it, but for the weights whose names begin with one of ``without``."""
    state: dict[str, Tensor] = {
        key: tensor for key, tensor in lavis(name)["state_dict"].items() if not key.startswith(without)
    }
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 3}, path)
    return path


def write_tokenizer(folder: Path, size: int) -> Path:
    """A tokenizer of ``size`` words, with the special tokens of BERT and of language models."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "[CLS]", "[SEP]"]
    words = {word: number for number, word in enumerate([*special, *(f"w{n}" for n in range(size - len(special)))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", **names)
    fast.save_pretrained(folder)
    return folder
