"""What a first-stage model is asked for after training: matching, similarity, features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sightbridge.batch import QFormerBatch
from sightbridge.errors import nearest
from sightbridge.models.qformer_pretraining import QFormerPretraining, normalize

MODES = ("image", "text", "multimodal")


@torch.no_grad()
def itm_logits(model: QFormerPretraining, batch: QFormerBatch) -> Tensor:
    """Ask whether row b's text belongs to its picture: logits (B, 2); ``softmax(1)[:, 1]`` is the probability of yes.

    Each of the N pictures is looked at once, however many texts ask about it.
    """
    look = model.qformer.look(model.encode_images(batch))
    look = [part and part.pick(batch.image_index) for part in look]
    return model.qformer.match_logits(look, batch.text_ids, batch.text_mask)


@torch.no_grad()
def itc_scores(model: QFormerPretraining, batch: QFormerBatch) -> Tensor:
    """Cosine similarity (B,) of row b's text and its picture: that of the picture's most similar query."""
    images = extract_features(model, batch, "image")["image_embeds_proj"][batch.image_index]
    texts = extract_features(model, batch, "text")["text_embeds_proj"][:, 0]
    return torch.einsum("bqp,bp->bq", images, texts).amax(dim=1)


@torch.no_grad()
def extract_features(
    model: QFormerPretraining, batch: QFormerBatch, mode: Literal["image", "text", "multimodal"]
) -> dict[str, Tensor]:
    """Features under LAVIS' names (Q queries, D wide, P the width of comparison).

    - ``image``: ``image_embeds`` (N, Q, D) and ``image_embeds_proj`` (N, Q, P) of length one.
    - ``text``: ``text_embeds`` (B, L, D) and ``text_embeds_proj`` (B, L, P) of length one; the first position stands
      for the sentence, those of padding mean nothing.
    - ``multimodal``: ``multimodal_embeds`` (B, Q, D), what the queries read of row b's picture and text together.

    The similarity of picture and text is the largest over q of ``image_embeds_proj[q] . text_embeds_proj[0]``.
    """
    qformer = model.qformer
    if mode == "image":
        read = qformer.read_pictures(model.encode_images(batch)).queries
        return {"image_embeds": read, "image_embeds_proj": normalize(qformer.vision_projection, read)}
    if mode == "text":
        text, _ = qformer.read_text(batch.text_ids, batch.text_mask)
        return {"text_embeds": text, "text_embeds_proj": normalize(qformer.text_projection, text)}
    if mode == "multimodal":
        look = [part and part.pick(batch.image_index) for part in qformer.look(model.encode_images(batch))]
        return {"multimodal_embeds": qformer.read_pairs(look, batch.text_ids, batch.text_mask)}
    raise ValueError(f"Unknown mode '{mode}'; known are {', '.join(MODES)}.{nearest(mode, list(MODES))}")
