"""An export for transformers beside the model it was made of: the same row through both, and how far they are apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from sightbridge.checkpoints.export.example import QUESTION
from sightbridge.checkpoints.export.job import Job
from sightbridge.checkpoints.folder import load_any_model
from sightbridge.checkpoints.manifest import ADAPTER
from sightbridge.checkpoints.merge import TOLERANCE
from sightbridge.data.processor import Processor
from sightbridge.errors import CheckpointError
from sightbridge.models.build import quiet_transformers
from sightbridge.models.vlm import VisionLanguageModel


def verify(job: Job, folder: Path, class_name: str, image_token: int | None) -> str:
    """Load both models, one after the other, and compare their logits; a sentence for the model card.

    Raises:
        CheckpointError: transformers finds weights missing or too many, or the logits are further apart than rounding
            to the type of the export explains.
    """
    ours = _our_logits(job)
    theirs, dtype = _their_logits(job, folder, class_name, image_token)
    theirs = theirs[..., : ours.shape[-1]]
    share = ((theirs - ours).norm() / ours.norm()).item()
    if not share <= TOLERANCE[dtype]:
        raise CheckpointError(
            f"{job.folder}: transformers' {class_name} answers otherwise than the model here: logits differ by "
            f"{share:.1%}, rounding to {str(dtype).removeprefix('torch.')} would be at most {TOLERANCE[dtype]:.1%}. "
            "Nothing was written."
        )
    return (
        f"Compared when it was exported: on a picture and a question, logits differ from the model here by at most "
        f"{(theirs - ours).abs().max().item():.1e} ({share:.1e} of their norm)."
    )


def _row(processor: Any) -> Any:
    """A picture of colours in all sizes of change, and the question of the model card."""
    size = processor.image_settings.size
    waves = np.arange(size * size * 3).reshape(size, size, 3)
    picture = (127.5 * (1 + np.sin(waves * waves / 997))).astype(np.uint8)
    if not isinstance(processor, Processor):
        return torch.stack([processor.transform(_image(picture))]), *processor.texts([QUESTION])
    batch = processor.prompt(picture, QUESTION)
    if processor.encoder_decoder:
        return replace(batch, labels=batch.input_ids[:, -4:] % processor.tokenizer.vocab_size)
    return batch


def _image(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


@torch.no_grad()
def _our_logits(job: Job) -> Tensor:
    model, processor = load_any_model(job.folder, sources=job.sources, quantize="none")
    row = _row(processor)
    if isinstance(model, VisionLanguageModel):
        return model.logits(row).float()
    pixels, ids, mask = row
    return model.qformer.match_logits(model.qformer.look(model.vision_tower(pixels)), ids, mask).float()


@torch.no_grad()
def _their_logits(job: Job, folder: Path, class_name: str, image_token: int | None) -> tuple[Tensor, torch.dtype]:
    with quiet_transformers():
        model, report = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    problems = [
        f"{len(report[key])} {key}" for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]
    ]
    if problems:
        raise CheckpointError(f"{job.folder}: transformers' {class_name} loads it with {', '.join(problems)}.")
    dtype = model.dtype
    if (folder / ADAPTER).is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder / ADAPTER))
    model, row = model.eval(), _row(job.processor)
    if image_token is None:
        pixels, ids, mask = row
        return model(pixels.to(dtype), ids, mask, use_image_text_matching_head=True).logits_per_image.float(), dtype
    inputs = {
        "input_ids": row.input_ids.masked_fill(row.image_slots, image_token),
        "attention_mask": row.attention_mask,
        "pixel_values": row.pixel_values.to(dtype),
    }
    if row.connector_ids is not None:
        inputs |= {"qformer_input_ids": row.connector_ids, "qformer_attention_mask": row.connector_mask}
    if row.labels is not None:
        start = torch.full_like(row.labels[:, :1], model.config.text_config.decoder_start_token_id)
        inputs["decoder_input_ids"] = torch.cat([start, row.labels[:, :-1]], dim=1)
    return model(**inputs).logits.float(), dtype
