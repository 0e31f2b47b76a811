"""Retrieval: for every picture its captions among all, for every caption its picture among all.

BLIP-2's way (arXiv 2301.12597, section 4.4, and LAVIS' ``compute_sim_matrix``): similarities (ITC) of everything with
everything choose the ``k`` nearest, and only these are read together (ITM). What a pair is ranked by is the mean logit
of "match" plus the similarity, all others stay behind. With k = 0 similarities alone rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightbridge.data.qformer_processor import QFormerProcessor
from sightbridge.data.record import Record
from sightbridge.generation.generate import in_evaluation_mode
from sightbridge.models.qformer_losses import best_query
from sightbridge.models.qformer_pretraining import QFormerPretraining
from sightbridge.scoring.matching import ImageTextContrast, ImageTextMatching
from sightbridge.scoring.pictures import Pictures, find_pictures

K = 128
"""Candidates that are read together with what was asked for (LAVIS' ``k_test``)."""
IMAGES_AT_ONCE = 256
BEHIND = -100.0
"""Score of pairs that are not read together, as in LAVIS."""


@torch.no_grad()
def rank_pairs(
    model: QFormerPretraining,
    processor: QFormerProcessor,
    records: Sequence[Record],
    *,
    k: int = K,
    batch_size: int = 64,
    on_images: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """Rank every caption of ``meta["references"]`` for every picture, and every picture for every caption.

    Args:
        model: of the first stage.
        processor: of it.
        records: one for every picture.
        k: candidates of each picture, and of each caption, that are read together with it.
        batch_size: pictures, and pairs, at a time.
        on_images: hears how many more pictures are done.

    Returns:
        For every picture ``text_rank``, the best rank of one of its captions, and ``image_ranks``, the rank of the
        picture for each of them; 0 is first. Of equal scores the true one comes last, so that nothing is gained by
        scores that say nothing.
    """
    names = [str(record.images[0]) for record in records]
    captions = [list(record.meta["references"]) for record in records]
    texts = [text for own in captions for text in own]
    owner = torch.tensor([number for number, own in enumerate(captions) for _ in own])
    pictures = Pictures(find_pictures([Path(name) for name in names]), processor.transform)
    with in_evaluation_mode(model):
        similar = _similarities(model, processor, pictures, texts, batch_size)
        by_image = by_text = similar
        if k:
            by_image, by_text = _read_together(model, processor, pictures, texts, similar, k, batch_size, on_images)
    text_ranks = [_ranks(by_image[number], owner == number).min().item() for number in range(len(records))]
    image_ranks = [
        _ranks(by_text[:, place], torch.arange(len(records)) == owner[place]).item() for place in range(len(texts))
    ]
    lines = []
    for number, record in enumerate(records):
        own = [image_ranks[place] for place in (owner == number).nonzero().flatten().tolist()]
        lines.append({"id": record.id, "text_rank": text_ranks[number], "image_ranks": own})
    return lines


def _similarities(
    model: QFormerPretraining, processor: QFormerProcessor, pictures: Pictures, texts: list[str], batch_size: int
) -> Tensor:
    """ITC of all pictures with all texts, (I, T) on the CPU."""
    contrast = ImageTextContrast(model, processor)
    numbers = list(range(len(pictures.pictures)))
    images = contrast.encode(pictures.batches(numbers, batch_size))
    read = contrast.read(list(dict.fromkeys(texts)), batch_size)
    vectors = torch.stack([read[text] for text in texts])
    return torch.cat([best_query(some, vectors).float().cpu() for some in images.split(IMAGES_AT_ONCE)])


def _read_together(
    model: QFormerPretraining,
    processor: QFormerProcessor,
    pictures: Pictures,
    texts: list[str],
    similar: Tensor,
    k: int,
    batch_size: int,
    on_images: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Scores (I, T) by which each picture ranks texts, and by which each text ranks pictures.

    A pair that both directions ask for is read once.
    """
    for_images, for_texts = torch.zeros_like(similar, dtype=torch.bool), torch.zeros_like(similar, dtype=torch.bool)
    for_images.scatter_(1, similar.topk(min(k, similar.shape[1]), dim=1).indices, True)
    for_texts.scatter_(0, similar.topk(min(k, similar.shape[0]), dim=0).indices, True)
    matching = ImageTextMatching(model, processor)
    scores = torch.full_like(similar, BEHIND)
    for start in range(0, len(similar), batch_size):
        window = range(start, min(start + batch_size, len(similar)))
        look = matching.encode(pictures.batches(list(window), batch_size))
        pairs = (for_images | for_texts)[window.start : window.stop].nonzero()
        for some in pairs.split(batch_size):
            ids, mask = matching.tokenise([texts[place] for place in some[:, 1].tolist()])
            rows = some[:, 0].to(matching.device)
            logits = model.qformer.match_logits([part and part.pick(rows) for part in look], ids, mask)
            here = (some[:, 0] + start, some[:, 1])
            scores[here] = logits[:, 1].float().cpu() + similar[here]
        on_images(len(window))
    behind = torch.full_like(scores, BEHIND)
    return torch.where(for_images, scores, behind), torch.where(for_texts, scores, behind)


def _ranks(scores: Tensor, true: Tensor) -> Tensor:
    """How many wrong ones are as good as each true one, or better."""
    wrong = scores[~true]
    return (wrong[None] >= scores[true][:, None]).sum(dim=1)
