"""Image tokens into image slots: the one operation all the systems share."""

from __future__ import annotations

from torch import Tensor

from sightbridge.batch import Batch
from sightbridge.errors import DataError


def splice(embeddings: Tensor, image_slots: Tensor, image_tokens: Tensor) -> Tensor:
    """Put image tokens where the slots are, in reading order.

    Args:
        embeddings: (B, L, D).
        image_slots: (B, L) bool with exactly N * T true positions.
        image_tokens: (N, T, D), pictures in the order of their rows.

    Returns:
        (B, L, D); gradients flow to the text embeddings outside the slots and to all image tokens.
    """
    tokens = image_tokens.to(embeddings.dtype).flatten(0, 1)
    return embeddings.masked_scatter(image_slots.unsqueeze(-1), tokens)


def check_slots(batch: Batch, n_images: int, tokens_per_image: int) -> None:
    """Check that every row has as many slots as its pictures fill, so that no row ever takes another's pictures.

    Raises:
        DataError: naming the first record whose numbers disagree.
    """
    slots = batch.image_slots.sum(dim=1)
    wanted = batch.images_per_row * tokens_per_image
    for row in (slots != wanted).nonzero().flatten().tolist()[:1]:
        name = f"'{batch.ids[row]}'" if batch.ids else f"in row {row} of the batch"
        raise DataError(
            f"Record {name} has {slots[row]} image slots, but its {batch.images_per_row[row]} picture(s) of "
            f"{tokens_per_image} tokens each need {wanted[row]}. Its '<image>' markers and its pictures must agree, "
            "and the row must not be cut inside a picture."
        )
    if int(batch.images_per_row.sum()) != n_images:
        names = ", ".join(batch.ids) or f"{len(batch)} rows"
        raise DataError(
            f"The batch of {names} should bring {int(batch.images_per_row.sum())} pictures but brings {n_images}."
        )
