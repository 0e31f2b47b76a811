"""Parts of a model filled from a file of any format, tensor by tensor, in place."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from sightbridge.checkpoints.adapter import adapter_shapes, adapter_tensors
from sightbridge.checkpoints.convert import Sampled
from sightbridge.checkpoints.fit import COUNTED, compare, differences, shapes_of
from sightbridge.checkpoints.formats import Found
from sightbridge.checkpoints.mm_projector import fill_projector
from sightbridge.checkpoints.pretrained_connector import take_from_pretraining
from sightbridge.checkpoints.projection import PROJECTION, check_trains, why_fresh_of
from sightbridge.checkpoints.rest import remember_origin
from sightbridge.checkpoints.sources.base import Stored, StoredWeights, Weights
from sightbridge.checkpoints.sources.model_folder import From, resampled_positions
from sightbridge.checkpoints.supply import PREFIXES, WORDS, has_part, part_of
from sightbridge.checkpoints.text_branch import TEXT_BRANCH, take_without_text_branch
from sightbridge.checkpoints.weights import fingerprint, unique_tensors
from sightbridge.errors import CheckpointError
from sightbridge.models.connectors.linear import LinearConnector
from sightbridge.models.connectors.mlp import MLPConnector
from sightbridge.models.connectors.qformer import QFormerConnector
from sightbridge.models.lora import adapted_layers
from sightbridge.models.vision_tower import FINAL_NORMS, POOLERS, VisionTower

WRAPPER = "model."
"""Our modules of towers and language models hold those of transformers under this name."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass
class InitReport:
    """What was taken from a folder and what was left, a line each."""

    taken: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def fill_from_found(
    model: nn.Module,
    found: Found,
    parts: Collection[str] | None,
    fresh_projection: bool,
    after_another: bool,
) -> InitReport:
    """Fill every part of ``model`` that a foreign file holds; arguments and rules as those of ``init_from``.

    A tower or language model of another build than the one here is left, with a line in the report, unless ``parts``
    asks for it; so a connector can be taken from a file that also holds a language model which is not wanted.

    Raises:
        CheckpointError: a part is only half there, a connector is of another build, or nothing is to be had.
        SettingsError: a random projection would not learn.
    """
    report = InitReport()
    for name in ("vision_tower", "language_model"):
        if not has_part(found.weights, name):
            continue
        if (part := _wanted(model, name, parts, report)) is not None:
            fill_wrapped(part, name, part_of(found.weights, PREFIXES[name]), report, must=parts is not None)
    if has_part(found.weights, "connector"):
        _fill_bridge(model, found, parts, fresh_projection, after_another, report)
    adapter = part_of(found.weights, "adapter.")
    if adapter.infos and (parts is None or "adapters" in parts):
        _fill_adapters(model, adapter, report)
    if not report.taken:
        left = "; ".join(report.left) or f"it is {found.what}"
        raise CheckpointError(f"{found.weights.path}: holds nothing to start this model with ({left}).")
    return report


def _wanted(model: nn.Module, name: str, parts: Collection[str] | None, report: InitReport) -> nn.Module | None:
    part = getattr(model, name, None)
    if parts is not None and name not in parts:
        report.left.append(f"{name}: not asked for (training.init_parts)")
    elif not isinstance(part, nn.Module):
        report.left.append(f"{name}: there is no such part here")
    else:
        return part
    return None


@torch.no_grad()
def fill_wrapped(part: nn.Module, name: str, weights: Weights, report: InitReport, must: bool) -> None:
    """Fill a tower or language model from ``weights`` that have the names of transformers' own model.

    Position tables of another picture size are resampled. What a cut tower lacks is left in the file.

    Raises:
        CheckpointError: only a part of it is there; or, if it ``must`` be taken, it is of another build.
    """
    model: Any = part.get_submodule("model")
    wanted = {key.removeprefix(WRAPPER): tensor for key, tensor in unique_tensors(part).items()}
    if isinstance(part, VisionTower):
        weights = _for_this_tower(weights, part)
    needed = [key for key in wanted if not COUNTED.search(key)]
    problems = differences(weights, model, needed)
    only_missing = len(problems) == 1 and " missing: " in problems[0]
    if problems and (must or only_missing):
        raise CheckpointError(
            f"{weights.path}: the {WORDS[name]} there is not that of the model here: {'; '.join(problems)}. Give "
            f"model.{name} the settings of that model, or name the parts to take: training.init_parts=[connector]."
        )
    if problems:
        report.left.append(f"{name}: another one is here than there, built otherwise ({problems[0]})")
        return
    dtypes = {key: tensor.dtype for key, tensor in wanted.items() if key in weights.infos}
    if Sampled(weights, dtypes).fingerprint() == fingerprint(part):
        report.left.append(f"{name}: the same one is here")
        return
    tensors = model.state_dict()
    for key in weights.infos:
        if key in tensors:
            tensors[key].copy_(weights.read(key))
    if name == "language_model":
        part.assert_heads_untied()  # type: ignore[operator]
    part.filled_by_init_from = True  # type: ignore[assignment] - its source does not hold these weights
    report.taken.append(f"{name}: {sum(t.numel() for t in wanted.values()):,} weights")


def _fill_bridge(
    model: nn.Module,
    found: Found,
    parts: Collection[str] | None,
    fresh_projection: bool,
    after_another: bool,
    report: InitReport,
) -> None:
    """Fill the connector, or the Q-Former of a first stage."""
    is_first = hasattr(model, "qformer")
    name = "qformer" if is_first else "connector"
    asked = parts is None or name in parts or (found.kind == "qformer" and "qformer" in parts)
    part = _wanted(model, name, None if asked else parts, report)
    if part is None:
        return
    path = found.weights.path
    there = "qformer" if found.kind == "qformer" else found.settings.get("connector", {}).get("kind")
    if there == "qformer" and isinstance(part, MLPConnector | LinearConnector):
        raise CheckpointError(
            f"{path}: holds a Q-Former ({found.what}), and the connector here is none. Set "
            "model.connector.kind=qformer, or name the parts to take: training.init_parts=[vision_tower]."
        )
    view = part_of(found.weights, PREFIXES["connector"])
    weights = {key: view.read(key) for key in view.infos}
    if isinstance(part, MLPConnector | LinearConnector):
        count = fill_projector(part, weights, path)
        report.taken.append(f"connector: {count:,} weights")
    elif found.kind == "qformer" and isinstance(part, QFormerConnector):
        heads = found.settings.get("qformer", {}).get("num_heads")
        taken, left = take_from_pretraining(part, weights, path, heads)
        report.taken += taken
        report.left += left
    elif isinstance(part, QFormerConnector):
        _fill_qformer_connector(part, found, weights, fresh_projection, after_another, report)
    else:
        _copy_all(part, name, weights, found)
        report.taken.append(f"{name}: {sum(weight.numel() for weight in weights.values()):,} weights")
    remember_origin(part, None)  # such a file is no model folder to look the weights up in
    part.filled_by_init_from = True  # type: ignore[assignment]


def _fill_qformer_connector(
    connector: QFormerConnector,
    found: Found,
    weights: dict[str, Tensor],
    fresh_projection: bool,
    after_another: bool,
    report: InitReport,
) -> None:
    path = found.weights.path
    heads, here = found.settings.get("connector", {}).get("num_heads"), connector.qformer.config.num_attention_heads
    if heads not in (None, here):
        raise CheckpointError(
            f"{path}: the Q-Former there has {heads} attention heads, the connector here {here}. Set "
            f"model.connector.num_heads={heads}."
        )
    if connector.takes_text and not any(TEXT_BRANCH.match(key) for key in weights):
        if not after_another:
            raise CheckpointError(
                f"training.init_from: the connector in {path} does not read questions, the one here does "
                "(model.connector.text_input), and its text branch has to come from somewhere: give a first stage in "
                "front of this one, init_from=[FIRST_STAGE,SECOND_STAGE]."
            )
        report.taken += take_without_text_branch(connector, weights, path)
        return
    if found.partial:
        _fill_what_trained(connector, found, weights, after_another, report)
        return
    reason = why_fresh_of(connector, weights, fresh_projection)
    if reason is None:
        _copy_all(connector, "connector", weights, found)
        report.taken.append(f"connector: {sum(w.numel() for w in weights.values()):,} weights, its projection too")
        return
    check_trains(connector, reason)
    others = {key: weight for key, weight in weights.items() if not key.startswith(PROJECTION)}
    _copy_all(connector, "connector", others, found, besides=PROJECTION)
    report.taken.append(f"connector: {sum(weight.numel() for weight in others.values()):,} weights")
    report.left.append(f"connector: its projection, which begins with random weights: {reason}")


@torch.no_grad()
def _fill_what_trained(
    connector: QFormerConnector, found: Found, weights: dict[str, Tensor], after_another: bool, report: InitReport
) -> None:
    """Lay what trained of a connector over what the file in front of this one has filled it with."""
    if not after_another:
        raise CheckpointError(
            f"training.init_from: {found.weights.path} holds only what was trained of a connector "
            f"({found.what}). Give the file that its training started from in front of it, init_from=[START,THIS]."
        )
    wanted = unique_tensors(connector)
    if problems := differences(Weights.of(weights, found.weights.path), connector, ()):
        raise CheckpointError(f"{found.weights.path}: the connector here is built otherwise: {'; '.join(problems)}.")
    for key, weight in weights.items():
        wanted[key].copy_(weight)
    count = sum(weight.numel() for weight in weights.values())
    report.taken.append(f"connector: {count:,} weights, the rest as it was before")


@torch.no_grad()
def _copy_all(part: nn.Module, name: str, weights: dict[str, Tensor], found: Found, besides: str | None = None) -> None:
    """Fill all of a part, but for what begins with ``besides``, with exactly these weights."""
    wanted = {key: t for key, t in unique_tensors(part).items() if besides is None or not key.startswith(besides)}
    problems = differences(Weights.of(weights, found.weights.path), part, wanted)
    if problems:
        raise CheckpointError(
            f"{found.weights.path}: the {WORDS[name]} there is not built as the one here: {'; '.join(problems)}. Give "
            f"model.{name} the settings of that model ({found.what})."
        )
    for key, weight in weights.items():
        wanted[key].copy_(weight)


@torch.no_grad()
def _fill_adapters(model: nn.Module, weights: Weights, report: InitReport) -> None:
    """Fill the adapters of a model from those of the same kind; that the base is the same one, no file can tell."""
    language_model = getattr(model, "language_model", None)
    if language_model is None or not adapted_layers(language_model):
        report.left.append(
            "adapters: the model here has none (model.lora); 'sightbridge merge' makes them part of a language model"
        )
        return
    wanted = adapter_tensors(language_model)
    problems = compare(shapes_of(weights), adapter_shapes(language_model), wanted)
    if problems:
        raise CheckpointError(
            f"{weights.path}: the adapters there are not those of model.lora here: {'; '.join(problems)}. Give "
            "model.lora the settings that they were trained with."
        )
    for key, parameter in wanted.items():
        parameter.copy_(weights.read(key))
    report.taken.append(f"adapters: {sum(parameter.numel() for parameter in wanted.values()):,} weights")


def _for_this_tower(weights: Weights, tower: VisionTower) -> Weights:
    """A file's tower without the blocks and norms that were cut away here, made for pictures of the size taken here."""
    config = tower.model.config
    wanted = tower.model.state_dict()
    classes = {_NUMBER.sub("*", name) for name in wanted}
    beyond = {
        name
        for name in weights.infos
        if name not in wanted and (_NUMBER.sub("*", name) in classes or name.split(".")[0] in (*FINAL_NORMS, *POOLERS))
    }
    stored: dict[str, Stored] = {name: From(weights, name) for name in weights.infos if name not in beyond}
    table = next((name for name in wanted if "position_embedding" in name and name in stored), None)
    if table and (there := stored[table].info.shape[-2]) != (here := wanted[table].shape[-2]):
        extra = here - (config.image_size // config.patch_size) ** 2  # a row for CLS, if there is one
        patches = max(there - extra, 0)
        others = [name for name in stored if name.startswith("embeddings.") and name != table]
        is_alike = stored[table].info.shape[-1] == wanted[table].shape[-1] and all(
            name in wanted and stored[name].info.shape == wanted[name].shape for name in others
        )
        if is_alike and isqrt(patches) ** 2 == patches:  # another tower's table stays as it is, and is told
            config_there = type(config).from_dict(
                {**config.to_dict(), "image_size": isqrt(patches) * config.patch_size}
            )
            stored |= resampled_positions(stored, config_there, config.image_size)
    return StoredWeights(weights.path, weights.kind, stored)
