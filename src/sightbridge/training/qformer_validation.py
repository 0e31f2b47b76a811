"""How well a first-stage model does on held-out captions: its losses, matching, and retrieval both ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from sightbridge.batch import QFormerBatch
from sightbridge.models.qformer_losses import best_query, draw_negatives
from sightbridge.models.qformer_pretraining import Pictures, QFormerPretraining, normalize
from sightbridge.training.sharding import in_lockstep

SEED = 0
"""Of the negatives drawn here: the same in every evaluation, and none of them taken from training's own draws."""
IMAGES_AT_ONCE = 256
"""Pictures that are compared with all captions together."""


class Vectors(NamedTuple):
    """What retrieval compares: n pictures (n, Q, P) and m captions (m, P), each with the number of its picture."""

    images: Tensor
    image_ids: Tensor
    texts: Tensor
    text_ids: Tensor


def validate_qformer(
    model: QFormerPretraining, batches: Iterable[QFormerBatch], accelerator: Accelerator
) -> dict[str, float]:
    """Evaluate over the batches of all processes.

    Returns:
        ``validation_loss``, the sum of the mean losses, and each as ``validation_loss/NAME``; ``itm_accuracy``, the
        share of pairs that are told right, hard negatives from the same batch as many as true ones in weight, so that
        chance is 1/2; ``recall_at_1/text`` and ``/image``, the share of pictures whose most similar caption of all is
        one of theirs, and of captions whose most similar picture of all is theirs.
    """
    sums, counts, all_sums, all_counts = (Counter[str]() for _ in range(4))
    found: list[Vectors] = []
    devices = [] if accelerator.device.type == "cpu" else [accelerator.device]
    with torch.random.fork_rng(devices=devices, device_type=accelerator.device.type):
        torch.manual_seed(SEED)
        for batch, real in in_lockstep(accelerator, batches, exchanges=True):
            batch = batch.to(accelerator.device)
            with accelerator.autocast():
                losses = model(batch)
                pictures = model.qformer.read_pictures(model.encode_images(batch))
                vectors = _vectors(model, batch, pictures)
                right = _match(model, batch, pictures, vectors)
            if real:
                sums.update({name: loss.sum.item() for name, loss in losses.items()} | right[0])
                counts.update({name: loss.count for name, loss in losses.items()} | right[1])
                found.append(Vectors(*(tensor.float().cpu() for tensor in vectors)))
    everyone = gather_object([(sums, counts, found)])
    for own_sums, own_counts, _ in everyone:
        all_sums.update(own_sums)
        all_counts.update(own_counts)
    means = {name: all_sums[name] / max(1, count) for name, count in all_counts.items()}
    accuracy = (means.pop("true") + means.pop("false")) / 2
    return {
        "validation_loss": sum(means.values()),
        **{f"validation_loss/{name}": mean for name, mean in means.items()},
        "itm_accuracy": accuracy,
        **recall_at_1(join_vectors([vectors for *_, own in everyone for vectors in own])),
    }


def _vectors(model: QFormerPretraining, batch: QFormerBatch, pictures: Pictures) -> Vectors:
    """What retrieval compares of one batch."""
    text, _ = model.qformer.read_text(batch.text_ids, batch.text_mask, wanted=1)
    assert batch.image_ids is not None, "processors number every picture"
    return Vectors(
        normalize(model.qformer.vision_projection, pictures.queries),
        batch.image_ids.new_zeros(len(pictures.queries)).scatter(0, batch.image_index, batch.image_ids),
        normalize(model.qformer.text_projection, text[:, 0]),
        batch.image_ids,
    )


def _match(
    model: QFormerPretraining, batch: QFormerBatch, pictures: Pictures, vectors: Vectors
) -> tuple[dict[str, float], dict[str, int]]:
    """How many true and how many false pairs of a batch are told right, and how many there are."""
    similar = best_query(vectors.images, vectors.texts)[batch.image_index] / model.qformer.temperature
    same = vectors.text_ids[:, None] == vectors.text_ids[None]
    false_image, has_image = draw_negatives(similar.T, same)
    false_text, has_text = draw_negatives(similar, same)
    images = torch.cat([batch.image_index, batch.image_index[false_image], batch.image_index])
    rows = torch.arange(len(batch), device=false_text.device)
    texts = torch.cat([rows, rows, false_text])
    look = [part and part.pick(images) for part in pictures.look]
    says_yes = model.qformer.match_logits(look, batch.text_ids[texts], batch.text_mask[texts]).argmax(dim=1) == 1
    has_false = torch.cat([has_image, has_text])
    right = {"true": says_yes[: len(batch)].sum().item(), "false": (~says_yes[len(batch) :] & has_false).sum().item()}
    return right, {"true": len(batch), "false": int(has_false.sum())}


def join_vectors(parts: list[Vectors]) -> Vectors:
    """All batches' vectors together; a picture that is in several comes once."""
    joined = Vectors(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    first = {number: place for place, number in reversed(list(enumerate(joined.image_ids.tolist())))}
    places = torch.tensor(sorted(first.values()))
    return joined._replace(images=joined.images[places], image_ids=joined.image_ids[places])


def recall_at_1(vectors: Vectors) -> dict[str, float]:
    """Share of pictures (``text``) and captions (``image``) whose best partner among all is a true one."""
    similar = torch.cat([best_query(images, vectors.texts) for images in vectors.images.split(IMAGES_AT_ONCE)])
    best_text, best_image = similar.argmax(dim=1), similar.argmax(dim=0)
    return {
        "recall_at_1/text": (vectors.text_ids[best_text] == vectors.image_ids).float().mean().item(),
        "recall_at_1/image": (vectors.image_ids[best_image] == vectors.text_ids).float().mean().item(),
    }
