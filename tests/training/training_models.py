"""A tiny model, rows with very different numbers of targets and pictures, and batches of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sightbridge.batch import IGNORE_INDEX, Batch
from sightbridge.config.model import ModelSettings
from sightbridge.config.training import OptimSettings, PartsSettings, TrainingSettings
from sightbridge.models.build import build_model
from sightbridge.models.parts import set_trainable
from sightbridge.models.vlm import VisionLanguageModel

os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # compare like with like, whatever the machine has

SIZE, PATCHES, VOCABULARY = 16, 4, 40
TARGETS = (1, 9, 2, 14, 1, 3, 7, 12)
PICTURES = (1, 1, 0, 2, 1, 0, 1, 1)
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    },
    "t5": {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "tie_word_embeddings": False,
    },
}


def tiny_model(
    *trained: str, language_model: str = "llama", layers: Sequence[int] = (-2,), **options: Any
) -> VisionLanguageModel:
    """The same random model every time; only the named parts train. ``options`` change the language model."""
    tower = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": SIZE // 2,
    }
    settings = ModelSettings.model_validate(
        {
            "vision_tower": {"config": tower, "layers": layers, "class_token": "drop"},
            "connector": {"kind": "mlp"},
            "language_model": {"config": {"model_type": language_model, **LANGUAGE_MODELS[language_model], **options}},
            "prompt": {"template": "plain"},
        }
    )
    model = build_model(settings)
    set_trainable(model, parts(*trained))
    return model


def parts(*trained: str) -> PartsSettings:
    """Settings that train the named parts, the connector if there is no name."""
    names = trained or ("connector",)
    return PartsSettings.model_validate(
        {name: {"train": "full" if name in names else "frozen"} for name in PartsSettings.model_fields}
    )


def make_batch(rows: Sequence[int], encoder_decoder: bool = False) -> Batch:
    """Row r reads the same whatever stands beside it: ``PICTURES[r]``, some words, then ``TARGETS[r]`` targets."""
    texts, pixels = [], []
    for row in rows:
        random = torch.Generator().manual_seed(row)
        texts.append(torch.randint(3, VOCABULARY, (4 + row % 3 + TARGETS[row % 8],), generator=random))
        pixels.append(torch.randn(PICTURES[row % 8], 3, SIZE, SIZE, generator=random))
    slots_of = [PICTURES[row % 8] * PATCHES for row in rows]
    lengths = [len(text) + n for text, n in zip(texts, slots_of, strict=True)]
    shape = len(rows), max(lengths)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    slots, labels = torch.zeros(shape, dtype=torch.bool), torch.full(shape, IGNORE_INDEX)
    answers = torch.full((len(rows), max(TARGETS)), IGNORE_INDEX)
    for r, (row, text, n, length) in enumerate(zip(rows, texts, slots_of, lengths, strict=True)):
        ids[r, 0], ids[r, 1 + n : length] = text[0], text[1:]
        slots[r, 1 : 1 + n] = True
        mask[r, :length] = 1
        count = TARGETS[row % 8]
        labels[r, length - count : length] = text[-count:]
        answers[r, :count] = text[-count:]
    pictures = torch.cat(pixels)
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        image_slots=slots,
        images_per_row=torch.tensor([PICTURES[row % 8] for row in rows]),
        pixel_values=pictures if len(pictures) else None,
        labels=answers if encoder_decoder else labels,
        n_target_tokens=sum(TARGETS[row % 8] for row in rows),
        ids=tuple(f"record-{row}" for row in rows),
    )


@dataclass
class ListedBatches:
    """The same batches every epoch."""

    batches: Sequence[Batch]

    @property
    def batches_per_epoch(self) -> float:
        return len(self.batches)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        yield from self.batches[skip:]


def batches_of(row_lists: Iterable[Sequence[int]], encoder_decoder: bool = False) -> ListedBatches:
    """One batch for each list of rows."""
    return ListedBatches([make_batch(rows, encoder_decoder) for rows in row_lists])


def run_settings(**changes: Any) -> TrainingSettings:
    """Settings of a run that logs every step."""
    length = {} if "epochs" in changes else {"steps": 3}
    return TrainingSettings.model_validate({"log_every": 1, "batch_size": 1, **length, **changes})


OPTIM = OptimSettings(lr=1e-2, weight_decay=0.1, warmup_steps=1, warmup_lr=1e-3)
