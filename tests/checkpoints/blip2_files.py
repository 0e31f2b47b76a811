"""What tests of BLIP-2's foreign formats share: a model of what a format found, and batches for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightbridge.batch import Batch
from sightbridge.checkpoints.formats import Found, detect
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.config.model import ModelSettings
from sightbridge.config.qformer_recipe import QFormerModelSettings
from sightbridge.models.build import build_model
from sightbridge.models.build_qformer import build_qformer_model

GOLDEN = Path(__file__).parents[1] / "golden"
OURS = {"vision_tower.": "vision_tower.model.", "language_model.": "language_model.model."}
"""Where a model has the weights that canonical names begin with."""


def find(path: str | Path | Weights) -> Found:
    """What a file, a folder or tensors in memory hold."""
    weights = path if isinstance(path, Weights) else open_weights(path)
    return detect(weights).read(weights)


def merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The settings of one, changed and completed by the other."""
    merged = dict(one)
    for key, value in other.items():
        merged[key] = merge(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged


def model_of(found: Found, **missing: Any) -> Any:
    """The model that was found, with its weights; ``missing`` settings are those that no file tells."""
    settings = merge(found.settings, missing)
    bridge = "qformer" if found.kind == "qformer" else "connector"
    if found.kind == "qformer":
        model: Any = build_qformer_model(QFormerModelSettings.model_validate(settings))
    else:
        model = build_model(ModelSettings.model_validate(settings))
    prefixes = {**OURS, "bridge.": f"{bridge}."}
    state = {}
    for name in found.weights.infos:
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        state[prefixes[prefix] + name.removeprefix(prefix)] = found.weights.read(name)
    report = model.load_state_dict(state, strict=False)
    held = model.state_dict()
    filled = {held[name].data_ptr() for name in state if name in held}
    missing_keys = [name for name in report.missing_keys if held[name].data_ptr() not in filled]  # tied ones are there
    assert missing_keys == [], missing_keys
    assert report.unexpected_keys == [], report.unexpected_keys
    if found.kind == "generation":
        model.language_model.assert_heads_untied()
    return model.eval()


def slots_in_front(ids: Tensor, mask: Tensor, tokens: int, padding_id: int, **rest: Any) -> Batch:
    """BLIP-2's layout: a picture's slots, then the row."""
    front = torch.ones(len(ids), tokens, dtype=torch.long)
    return Batch(
        input_ids=torch.cat([front * padding_id, ids], dim=1),
        attention_mask=torch.cat([front, mask], dim=1),
        image_slots=torch.cat([front.bool(), torch.zeros_like(ids, dtype=torch.bool)], dim=1),
        images_per_row=torch.ones(len(ids), dtype=torch.long),
        **rest,
    )


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The widest difference, as a share of the largest value."""
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


def check(name: str, model: Any, batch: Batch, logits: Tensor, where: Tensor, loss: float) -> None:
    """Compare logits at ``where`` and the mean loss with recorded ones."""
    with torch.no_grad():
        ours, mine = model.logits(batch), model(batch)["lm"]
    off, difference = abs(mine.sum.item() / mine.count - loss), gap(ours[where], logits[where])
    print(f"parity {name}: logits {difference:.2e} of their largest, loss {off:.2e}")
    assert difference <= 2e-5
    assert off <= 1e-5


def assert_same(one: Weights, other: Weights, besides: tuple[str, ...] = ()) -> None:
    """Both have the same tensors, bit for bit; ``other`` may also have those ``besides``."""
    assert set(one.infos) | set(besides) == set(other.infos)
    for name in one.infos:
        assert torch.equal(one.read(name), other.read(name)), name
        assert one.infos[name].shape == other.infos[name].shape == tuple(other.read(name).shape), name
