"""Tiny stage-1 models and batches for the tests of this room, and LAVIS' names of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from builders import VISION
from foreign_keys import LAVIS, Weights, from_lavis, rename
from torch import Tensor
from transformers import Blip2VisionConfig, Blip2VisionModel

from sightbridge.batch import QFormerBatch
from sightbridge.models.qformer_pretraining import (
    QFormerForPretraining,
    QFormerPretraining,
    QFormerPretrainingOptions,
)
from sightbridge.models.vision_tower import VisionTower

GOLDEN = Path(__file__).parents[1] / "golden" / "lavis" / "stage1_loss_plain.pt"
PAD, CLS, SEP = 0, 2, 3
"""Ids in every test vocabulary; [DEC] is the last one."""

STAGE1 = [
    (r"^temp$", "qformer.temperature"),
    (r"^vision_proj\.", "qformer.vision_projection."),
    (r"^text_proj\.", "qformer.text_projection."),
    (r"^itm_head\.", "qformer.itm_head."),
    (r"^Qformer\.cls\.predictions\.(bias|transform)", r"qformer.language_head.\1"),
    (r"^Qformer\.bert\.embeddings\.(word|position)_embeddings\.", r"qformer.embeddings.\1_embeddings."),
    (r"^connector\.", "qformer."),
]


def from_lavis_stage1(state: Weights) -> Weights:
    """LAVIS stage-1 weights under our names."""
    return {rename(key, STAGE1): value for key, value in from_lavis(state).items()}


def our_name(key: str) -> str:
    """Our name of one of LAVIS' trained weights."""
    first = rename(key, STAGE1)
    return first if first != key else rename(rename(key, LAVIS), STAGE1)


def golden_model(golden: dict[str, Any], **changes: Any) -> QFormerPretraining:
    """The model that LAVIS' values were recorded with, weights loaded, in evaluation mode."""
    vision = Blip2VisionConfig(
        hidden_size=48,
        intermediate_size=209,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        layer_norm_eps=1e-6,
    )
    tower = VisionTower(Blip2VisionModel(vision), layers=[-1])
    model = QFormerPretraining(tower, QFormerForPretraining(options(text_vocabulary=33, **changes), 48)).eval()
    report = model.load_state_dict(from_lavis_stage1(golden["state_dict"]), strict=False)
    assert report.missing_keys == []
    assert all("decoder." in key or "position_ids" in key for key in report.unexpected_keys), report.unexpected_keys
    model.vision_tower.requires_grad_(False)
    return model


def golden_batch(golden: dict[str, Any]) -> QFormerBatch:
    ids, mask = golden["input_ids"], golden["attention_mask"]
    return QFormerBatch(ids, mask, torch.arange(len(ids)), pixel_values=golden["image"])


def options(**changes: Any) -> QFormerPretrainingOptions:
    """Options of a tiny Q-Former without chance: no dropout, the hardest negatives."""
    tiny = {
        "num_queries": 6,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "intermediate_size": 64,
        "text_vocabulary": 41,
        "text_positions": 64,
        "projection_size": 16,
        "dropout": 0.0,
        "hard_negatives": "hardest",
    }
    return QFormerPretrainingOptions(**{**tiny, **changes})


def tiny_pretraining(seed: int = 0, train_tower: bool = False, **changes: Any) -> QFormerPretraining:
    """A random model whose weights are large enough that its outputs differ."""
    torch.manual_seed(seed)
    tower = VisionTower(Blip2VisionModel(Blip2VisionConfig(**VISION["blip_2_vision_model"])), layers=[-1])
    model = QFormerPretraining(tower, QFormerForPretraining(options(**changes), 32))
    tower.requires_grad_(train_tower)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2 if "vision_tower" in name else 0.15)
            elif "norm" not in name.lower() and parameter.ndim == 1:
                parameter.normal_(std=0.1)
    return model.eval()


def captions(rows: int, length: int = 9, seed: int = 0, pictures: int | None = None, size: int = 28) -> QFormerBatch:
    """Captions of unequal lengths; row b has picture b modulo their number."""
    draw = torch.Generator().manual_seed(seed)
    pictures = rows if pictures is None else pictures
    lengths = torch.randint(4, length + 1, (rows,), generator=draw)
    lengths[-1] = length
    ids = torch.randint(4, 40, (rows, length), generator=draw)
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    ids[:, 0] = CLS
    ids[torch.arange(rows), lengths - 1] = SEP
    return QFormerBatch(
        ids * mask,
        mask,
        torch.arange(rows) % pictures,
        pixel_values=torch.randn(pictures, 3, size, size, generator=draw),
        ids=tuple(f"row-{row}" for row in range(rows)),
    )


def rows_of(batch: QFormerBatch, rows: list[int]) -> QFormerBatch:
    """Some rows of a batch as a batch of its own, with the pictures they need."""
    index = batch.image_index[rows]
    pictures, image_index = index.unique(return_inverse=True)
    assert batch.pixel_values is not None
    mask = batch.text_mask[rows]
    length = int(mask.sum(dim=1).max())
    return QFormerBatch(
        batch.text_ids[rows][:, :length],
        mask[:, :length],
        image_index,
        None if batch.image_ids is None else batch.image_ids[rows],
        batch.pixel_values[pictures],
        ids=tuple(batch.ids[row] for row in rows),
    )


def means(losses: dict[str, Any]) -> dict[str, Tensor]:
    """Each loss divided by its count."""
    return {name: loss.sum / loss.count for name, loss in losses.items()}
