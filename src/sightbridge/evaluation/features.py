"""Features of many pictures and texts, batch by batch, as tensors to keep in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sightbridge.batch import QFormerBatch
from sightbridge.data.processor import Processor
from sightbridge.data.qformer_processor import QFormerProcessor
from sightbridge.errors import DataError
from sightbridge.images.load import ImageSource, load_image
from sightbridge.models.qformer_inference import extract_features, itc_scores, itm_logits
from sightbridge.models.qformer_pretraining import QFormerPretraining
from sightbridge.models.vlm import VisionLanguageModel

Watch = Callable[[Sequence[Sequence[int]]], Iterator[Sequence[int]]]
"""Shows progress through batches, each given by the places of its rows."""


def model_features(
    model: VisionLanguageModel, processor: Processor, pictures: Sequence[ImageSource], batch_size: int, watch: Watch
) -> dict[str, Tensor]:
    """What a generation model makes of pictures, on the CPU.

    Returns ``image_features`` (N, S, C), the vision tower's output, and ``image_tokens`` (N, T, D), the connector's.
    """

    def encode(places: Sequence[int]) -> dict[str, Tensor]:
        features = model.encode_images(_pixels(processor, pictures, places).to(_device(model)))
        return {"image_features": features, "image_tokens": model.connect(features)}

    if getattr(model.connector, "takes_text", False):
        raise DataError("this model's connector reads the question beside the picture: a picture alone has no features")
    return _stack(encode, len(pictures), batch_size, watch)


def first_stage_features(
    model: QFormerPretraining,
    processor: QFormerProcessor,
    pictures: Sequence[ImageSource],
    texts: Sequence[str],
    batch_size: int,
    watch: Watch,
) -> dict[str, Tensor]:
    """Features under LAVIS' names of pictures, of texts, or of pairs if both are given (as many of each), on the CPU.

    Returns:
        - pictures: ``image_embeds`` (N, Q, D) and ``image_embeds_proj`` (N, Q, P).
        - texts: ``text_embeds`` (M, D) and ``text_embeds_proj`` (M, P), those of the whole text.
        - pairs: both of these, ``multimodal_embeds`` (M, Q, D), ``itm`` (M,), the probability that text and picture
          belong together, and ``itc`` (M,), their cosine similarity.
    """
    if pictures and texts and len(pictures) != len(texts):
        raise DataError(
            f"{len(pictures)} pictures and {len(texts)} texts are no pairs: give as many of one as the other"
        )

    def encode(places: Sequence[int]) -> dict[str, Tensor]:
        batch = _batch(processor, pictures, texts, places).to(_device(model))
        features: dict[str, Tensor] = {}
        if pictures:
            features |= extract_features(model, batch, "image")
        if texts:
            whole = extract_features(model, batch, "text")
            features |= {name: positions[:, 0] for name, positions in whole.items()}
        if pictures and texts:
            features |= extract_features(model, batch, "multimodal")
            features |= {"itm": itm_logits(model, batch).softmax(1)[:, 1], "itc": itc_scores(model, batch)}
        return features

    return _stack(encode, max(len(pictures), len(texts)), batch_size, watch)


@torch.no_grad()
def _stack(
    encode: Callable[[Sequence[int]], dict[str, Tensor]], rows: int, batch_size: int, watch: Watch
) -> dict[str, Tensor]:
    batches = [range(rows)[start : start + batch_size] for start in range(0, rows, batch_size)]
    parts = [encode(places) for places in watch(batches)]
    return {name: torch.cat([part[name].float().cpu() for part in parts]).contiguous() for name in parts[0]}


def _batch(
    processor: QFormerProcessor, pictures: Sequence[ImageSource], texts: Sequence[str], places: Sequence[int]
) -> QFormerBatch:
    """Rows of pictures, texts or both; what is not given is left empty, and not looked at."""
    ids, mask = processor.texts([texts[place] for place in places] if texts else [""] * len(places))
    batch = QFormerBatch(text_ids=ids, text_mask=mask, image_index=torch.arange(len(places)))
    return replace(batch, pixel_values=_pixels(processor, pictures, places)) if pictures else batch


def _pixels(processor: Processor | QFormerProcessor, pictures: Sequence[ImageSource], places: Sequence[int]) -> Tensor:
    return torch.stack([processor.transform(load_image(pictures[place])) for place in places])


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
