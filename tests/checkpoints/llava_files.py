"""Files of the LLaVA family in their original layouts, made of the recorded tiny models, and models made of those."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sightbridge.batch import Batch
from sightbridge.checkpoints.formats import Found, detect
from sightbridge.checkpoints.sources.weights import Weights, open_weights
from sightbridge.config.model import ModelSettings
from sightbridge.models.build import build_model
from sightbridge.models.vlm import VisionLanguageModel

GOLDEN = Path(__file__).parents[1] / "golden" / "llava"
MODELS = GOLDEN / "models"
IMAGE_MARKER = -200
TOKENS = 16
"""Slots of a picture of 56 pixels."""
GREEDY_LENGTH = 8
TWO_HEADS = {"vision_tower": {"config": {"num_attention_heads": 2}}}
"""What no file says of the tiny tower."""


def original(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration of a recorded model: ``vip_tiny`` or ``clipt5_tiny``."""
    folder = MODELS / name
    weights = load_file(folder / "original_state_dict.safetensors")
    return weights, json.loads((folder / "original_config.json").read_text())


def write_folder(folder: Path, weights: Mapping[str, Tensor], config: dict[str, Any] | None, container: str) -> Path:
    """Write weights as ``transformers`` does: ``bin`` or ``safetensors``, in one file or ``in two``."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    stem, suffix = ("pytorch_model", ".bin") if container.startswith("bin") else ("model", ".safetensors")
    names = sorted(weights)
    halves = [names[0::2], names[1::2]] if container.endswith("in two") else [names]
    index: dict[str, str] = {}
    for number, half in enumerate(halves, 1):
        file = f"{stem}-{number:05}-of-{len(halves):05}{suffix}" if len(halves) > 1 else stem + suffix
        index |= dict.fromkeys(half, file)
        chosen = {name: weights[name].clone() for name in half}
        torch.save(chosen, folder / file) if suffix == ".bin" else save_file(chosen, folder / file)
    if len(halves) > 1:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def found_in(path: Path | Weights) -> Found:
    """What the one format that matches says of a file or folder."""
    weights = path if isinstance(path, Weights) else open_weights(path)
    return detect(weights).read(weights)


def settings_of(found: Found, *changes: dict[str, Any]) -> ModelSettings:
    """A model's whole settings: what the file fixes, and what else is needed."""
    settings = found.settings
    for change in changes:
        settings = merge(settings, change)
    return ModelSettings.model_validate(settings)


def merge(first: Any, second: Any) -> Any:
    """Nested dictionaries put together; the second wins."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first | {key: merge(first[key], value) if key in first else value for key, value in second.items()}
    return second


def model_of(found: Found, *changes: dict[str, Any], given: str = "nothing") -> VisionLanguageModel:
    """A model with its weights from the file, but for a part that is ``given`` by its settings.

    All of the file are used, apart from the tower's upper layers, which are cut off.
    """
    model = build_model(settings_of(found, *changes)).eval()
    places = {
        "vision_tower.": "vision_tower.model.",
        "bridge.": "connector.",
        "language_model.": "language_model.model.",
    }
    state = {}
    for name in found.weights.infos:
        part = next(part for part in places if name.startswith(part))
        state[places[part] + name.removeprefix(part)] = found.weights.read(name)
    missing, left = model.load_state_dict(state, strict=False)
    aliases: tuple[str, ...] = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # T5's one table
    aliases += () if model.language_model.has_own_head else ("lm_head.weight",)
    assert [name for name in missing if not name.endswith(aliases) and not name.startswith(given)] == []
    assert [name for name in left if not name.startswith("vision_tower.model.")] == []
    model.language_model.assert_heads_untied()
    return model


def recorded(kind: str, name: str) -> dict[str, Tensor]:
    """Recorded values: of ``logits`` or of ``generate``."""
    values = np.load(GOLDEN / kind / f"{name}.npz")
    return {key: torch.from_numpy(values[key]) for key in values.files if values[key].dtype.kind != "U"}


def batch_at_markers(
    ids: Tensor,
    mask: Tensor,
    pictures: Tensor,
    labels: Tensor | None = None,
    tokens: int = TOKENS,
    padding_side: str = "right",
) -> Batch:
    """Rows in which each marker of a picture becomes its slots; pictures of rows without one are stand-ins."""
    rows = [row[kept] for row, kept in zip(ids, mask.bool(), strict=True)]
    rows = [row.repeat_interleave(torch.where(row == IMAGE_MARKER, tokens, 1)) for row in rows]
    padded = pad_sequence(rows, batch_first=True, padding_side=padding_side)
    slots = padded == IMAGE_MARKER
    images = slots.sum(dim=1) // tokens
    is_stand_in = len(pictures) == len(rows)
    return Batch(
        input_ids=padded.masked_fill(slots, 0),
        attention_mask=pad_sequence(
            [torch.ones_like(row) for row in rows], batch_first=True, padding_side=padding_side
        ),
        image_slots=slots,
        images_per_row=images,
        pixel_values=pictures[images > 0] if is_stand_in else pictures,
        labels=labels,
    )


def check_logits(what: str, model: VisionLanguageModel, golden: dict[str, Tensor], vocabulary: int) -> None:
    """Compare the logits that predict targets, and the mean loss, with those recorded of a vocabulary."""
    labels = golden.get("spliced_labels", golden["labels"])
    batch = batch_at_markers(golden["input_ids"], golden["attention_mask"], golden["pixel_values"], labels)
    with torch.no_grad():
        logits, loss = model.logits(batch), model(batch)["lm"]
    grown, logits = logits.shape[-1] > vocabulary, logits[..., :vocabulary]
    targets = labels != -100
    if "target_logits" in golden:  # of a decoder, which predicts one position ahead
        own, theirs = logits[:, :-1][targets[:, 1:]], golden["target_logits"]
    else:
        own, theirs = logits[targets], golden["logits"][targets]
    largest = theirs.abs().max().item()
    difference, off = (own - theirs).abs().max().item() / largest, abs(loss.sum.item() / loss.count - golden["loss"])
    print(f"parity {what}: logits {difference:.2e} of their largest ({largest:.2f}), loss {off:.2e}")
    assert difference <= 2e-5
    assert grown or off <= 1e-5
