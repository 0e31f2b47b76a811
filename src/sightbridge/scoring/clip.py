"""CLIPScore: how near a whole CLIP or SigLIP puts a picture and a text.

``cosine`` is what t2v_metrics returns, the plain cosine similarity. ``clipscore`` is 2.5 times the positive part of it
(Hessel et al., arXiv 2104.08718, who also put "A photo depicts " in front of texts), ``percent`` 100 times that part
(as torchmetrics has it).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightbridge.config.model import ImageSettings
from sightbridge.errors import CheckpointError, SettingsError, nearest
from sightbridge.images.transforms import ImageTransform
from sightbridge.scoring.fingerprint import fingerprint_of
from sightbridge.scoring.kinds import Chunk, Item, Row, batches_by_length
from sightbridge.scoring.matching import unit
from sightbridge.scoring.settings import SCORES_VERSION, Kind

SCALES: dict[str, Any] = {
    "cosine": lambda cosine: cosine,
    "clipscore": lambda cosine: 2.5 * cosine.clamp(min=0),
    "percent": lambda cosine: 100 * cosine.clamp(min=0),
}
FAMILIES = ("clip", "siglip", "siglip2")
"""What a configuration calls a whole model that compares pictures and texts."""
BICUBIC = 3
"""Pillow's number of it, in the files of image processors."""


class ClipSimilarity:
    """Kind clip.

    Args:
        model: a whole model of transformers with ``get_image_features`` and ``get_text_features``.
        tokenizer: of its texts; they are cut after the positions that the model has.
        image: how pictures become pixels.
        scale: what becomes of the cosine.
        prompt: what every text is written into.
    """

    kind: Kind = "clip"

    def __init__(
        self, model: Any, tokenizer: Any, image: ImageSettings, scale: str = "cosine", prompt: str = "{}"
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.image_settings, self.transform = image, ImageTransform(image)
        self.scale, self.prompt = scale, prompt

    def changed(self, **settings: Any) -> ClipSimilarity:
        """Return the same model with another ``scale`` or ``prompt``; raises ``SettingsError`` for anything else."""
        known = {"scale": self.scale, "prompt": self.prompt}
        for name in settings:
            if name not in known:
                raise SettingsError(
                    f"a CLIPScore has no setting '{name}'.{nearest(name, list(known))} Known: scale, prompt"
                )
        known |= settings
        if known["scale"] not in SCALES:
            raise SettingsError(f"unknown scale '{known['scale']}'; known: {', '.join(SCALES)}")
        if "{}" not in known["prompt"]:
            raise SettingsError(f"the prompt '{known['prompt']}' has no '{{}}' for the text")
        return ClipSimilarity(self.model, self.tokenizer, self.image_settings, **known)

    def describe(self) -> dict[str, Any]:
        """Return what shapes texts and pictures."""
        return {
            "kind": self.kind,
            "scale": self.scale,
            "prompt": self.prompt,
            "image": self.image_settings.model_dump(mode="json"),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "version": SCORES_VERSION,
        }

    def fingerprint(self) -> str:
        """Return a hash of the weights."""
        return fingerprint_of(self.model)

    def items(self, texts: Sequence[str]) -> list[Item]:
        """Write texts into the prompt."""
        return [self.prompt.replace("{}", text) for text in texts]

    def read(self, items: Sequence[Item], batch_size: int) -> dict[Item, Tensor]:
        """Encode texts: (P,) of length one."""
        read: dict[Item, Tensor] = {}
        for places in batches_by_length([len(str(item)) for item in items], batch_size):
            chosen = [items[place] for place in places]
            inputs = self.tokenizer(
                [str(item) for item in chosen],
                padding="max_length",
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )
            # SigLIP was trained on texts of full length, padding and all; CLIP looks back only, so it never sees any
            known = {"input_ids": inputs["input_ids"].to(self.model.device)}
            if not self.model.config.model_type.startswith("siglip"):
                known["attention_mask"] = inputs["attention_mask"].to(self.model.device)
            read.update(zip(chosen, unit(_pooled(self.model.get_text_features(**known))), strict=True))
        return read

    def encode(self, batches: Iterable[Tensor]) -> Tensor:
        """Encode pictures: (N, P) of length one."""
        pooled = [
            _pooled(self.model.get_image_features(pixel_values=pixels.to(self.model.device, self.model.dtype)))
            for pixels in batches
        ]
        return unit(torch.cat(pooled))

    def score(self, encoded: Tensor, rows: Sequence[Row], read: dict[Item, Tensor], batch_size: int) -> Iterator[Chunk]:
        """Compare all pairs."""
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            texts = torch.stack([read[item] for _, item in chosen])
            cosine = (encoded[[picture for picture, _ in chosen]] * texts).sum(dim=-1)
            yield Chunk(list(range(start, start + len(chosen))), SCALES[self.scale](cosine), [()] * len(chosen))


def _pooled(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


def load_clip(source: str, device: str, dtype: torch.dtype | None) -> ClipSimilarity:
    """Load a whole CLIP or SigLIP from a Hugging Face folder or name.

    Raises ``CheckpointError`` if it is not there or something else, or prepares pictures in a way that is not known.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(source, dtype=dtype or torch.float32).eval().to(device)
        tokenizer, images = (
            AutoTokenizer.from_pretrained(source),
            AutoImageProcessor.from_pretrained(source, backend="pil"),
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: cannot load a CLIP from it ({str(error).splitlines()[0]}).") from error
    if model.config.model_type not in FAMILIES:
        raise CheckpointError(f"{source}: holds a {type(model).__name__}; a CLIPScore needs a whole CLIP or SigLIP.")
    return ClipSimilarity(model, tokenizer, read_image_settings(images.to_dict(), source))


def read_image_settings(config: dict[str, Any], source: str) -> ImageSettings:
    """Say an image processor's configuration in our words; raises ``CheckpointError`` for one that we cannot follow."""
    size, crop = dict(config.get("size") or {}), dict(config.get("crop_size") or {})
    fit = None
    if config.get("do_center_crop") and crop.get("height") == crop.get("width") == size.get("shortest_edge"):
        fit, side = "crop", size["shortest_edge"]
    elif not config.get("do_center_crop") and size.get("height") and size.get("height") == size.get("width"):
        fit, side = "squash", size["height"]
    if fit is None or config.get("resample") != BICUBIC:
        raise CheckpointError(
            f"{source}: prepares pictures in a way that is not known here: {json.dumps(config, default=str)[:200]}"
        )
    return ImageSettings(size=side, fit=fit, mean=tuple(config["image_mean"]), std=tuple(config["image_std"]))


def is_clip_folder(folder: Path) -> bool:
    """Whether a folder's config.json says that it holds a whole CLIP or SigLIP."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in FAMILIES
