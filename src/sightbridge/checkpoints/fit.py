"""Whether weights at hand are those of the model that the settings describe: names and shapes, before one is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from sightbridge.checkpoints.adapter import adapter_shapes
from sightbridge.checkpoints.plan import Plan
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.model_folder import empty_language_model, empty_vision_model, types_held
from sightbridge.checkpoints.supply import FLAGS, WORDS
from sightbridge.checkpoints.usual import bridge_widths, usual
from sightbridge.config.model import ModelSettings, PartSource
from sightbridge.errors import CheckpointError
from sightbridge.models.build import find_config
from sightbridge.models.build_qformer import check_qformer
from sightbridge.models.connectors import build_connector
from sightbridge.models.language_model import LanguageModel
from sightbridge.models.lora import add_lora
from sightbridge.models.outline import outline_tower
from sightbridge.models.qformer_pretraining import QFormerForPretraining
from sightbridge.text.template import load_template

WRAPPER = "model."
"""Our modules of towers and language models hold those of transformers under this name."""
COUNTED = re.compile(
    r"(^|\.)(position_ids|rotary_emb\.inv_freq|rotary_emb\.(cos|sin)_cached|attn\.(bias|masked_bias))$"
)
"""Buffers that old releases of transformers wrote and that every model counts out for itself."""


@dataclass(frozen=True)
class EmptyPart:
    """A part of the model without memory.

    Attributes:
        module: as the model holds it (a tower cut down to what is used); for parameter counts.
        model: transformers' own model inside, whole; ``None`` for a connector.
        dtypes: the types that its weights have once they are loaded, by their names in files.
    """

    module: nn.Module
    model: Any
    dtypes: dict[str, torch.dtype]


@dataclass(frozen=True)
class EmptyModel:
    """The model that the settings describe, without memory.

    Attributes:
        parts: by name.
        tokens_per_image: slots one picture fills.
        vocabulary: rows of the language model's table of embeddings, or of the first stage's.
        encoder_decoder: of the language model.
        adapted: a second empty language model with adapters in it, if the settings ask for some.
    """

    parts: dict[str, EmptyPart]
    tokens_per_image: int
    vocabulary: int
    encoder_decoder: bool = False
    adapted: LanguageModel | None = None


def build_empty(plan: Plan) -> EmptyModel:
    """Build the model on the meta device.

    Raises:
        SettingsError: an option or a configuration is wrong.
        CheckpointError: a connector does not fit between tower and language model.
    """
    settings = plan.settings
    if isinstance(settings, ModelSettings):
        _check_kind(plan, settings)
    tower = _empty_tower(settings)
    channels, positions = tower.module.channels, tower.module.positions
    if not isinstance(settings, ModelSettings):
        options = check_qformer(settings.qformer)
        _check_widths(plan, channels, None)
        with torch.device("meta"), no_init_weights():
            qformer = QFormerForPretraining(options, channels)  # type: ignore[arg-type]
        parts = {"vision_tower": tower, "qformer": _bridge(qformer)}
        return EmptyModel(parts, options.num_queries, options.text_vocabulary)
    language_model = _empty_language_model(settings)
    assert isinstance(language_model.module, LanguageModel), "it was just made"
    width = language_model.module.width
    _check_widths(plan, channels, width)
    with torch.device("meta"), no_init_weights():
        connector = build_connector(settings.connector, channels, positions, width)  # type: ignore[arg-type]
    parts = {"vision_tower": tower, "connector": _bridge(connector), "language_model": language_model}
    vocabulary = language_model.model.get_input_embeddings().num_embeddings
    encoder_decoder = bool(language_model.model.config.is_encoder_decoder)
    adapted = _with_adapters(settings) if settings.lora else None
    return EmptyModel(parts, connector.tokens_per_image, vocabulary, encoder_decoder, adapted)  # type: ignore[arg-type]


def check_names(plan: Plan, empty: EmptyModel) -> None:
    """Compare names and shapes of everything at hand with the model; one error lists all that differs.

    Raises:
        CheckpointError: weights are missing, too many or differently shaped.
    """
    problems = []
    for name, weights in plan.weights.items():
        part = empty.parts[name]
        whole = part.model or part.module
        needed = {key.removeprefix(WRAPPER) if part.model else key for key in part.module.state_dict()}
        problems += [f"{WORDS[name]}: {problem}" for problem in differences(weights, whole, needed)]
        problems += [f"{WORDS[name]}: {problem}" for problem in no_floats(weights, whole)]
    if plan.adapter:
        assert empty.adapted is not None, "whoever finds adapters finds their settings"
        wanted = adapter_shapes(empty.adapted)
        problems += [f"adapters: {problem}" for problem in compare(shapes_of(plan.adapter), wanted, wanted)]
    if problems:
        where = " and ".join(supply.named for supply in plan.supplies)
        raise CheckpointError(
            "\n  ".join([f"{where}: the weights are not those of the model that the settings describe", *problems])
        )


def differences(weights: Weights, model: nn.Module, needed: Iterable[str]) -> list[str]:
    """How names and shapes of ``weights`` differ from a model's, a line for each kind of difference.

    Args:
        weights: named as the model's tensors.
        model: may be on the meta device.
        needed: names of tensors that must be there, under this name or another of the same tensor.
    """
    tensors = model.state_dict(keep_vars=True)
    there = {id(tensors[name]) for name in weights.infos if name in tensors}
    missing_names = {name for name in needed if id(tensors[name]) not in there and not COUNTED.search(name)}
    known = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    held = {name: shape for name, shape in shapes_of(weights).items() if name in known or not COUNTED.search(name)}
    return compare(held, known, missing_names | held.keys() & known.keys())


def no_floats(weights: Weights, model: nn.Module) -> list[str]:
    """Weights that a model has as floating-point numbers and a file as something else: quantized, or damaged."""
    tensors = model.state_dict()
    names = [
        f"{name} (it is {str(info.dtype).removeprefix('torch.')})"
        for name, info in weights.infos.items()
        if name in tensors and tensors[name].is_floating_point() and not info.dtype.is_floating_point
    ]
    return [f"{len(names)} not of floating-point numbers: {_by_class(sorted(names))}"] if names else []


def compare(held: Mapping[str, tuple[int, ...]], known: Mapping[str, Any], needed: Iterable[str]) -> list[str]:
    """The same for shapes by name."""
    missing = sorted(name for name in needed if name not in held)
    unexpected = sorted(held.keys() - known.keys())
    shaped = [
        f"{name} (expected {known[name]}, got {held[name]})"
        for name in sorted(held.keys() & known.keys())
        if held[name] != known[name]
    ]
    listed = (("missing", missing), ("unexpected", unexpected), ("differently shaped", shaped))
    return [f"{len(names)} {what}: {_by_class(names)}" for what, names in listed if names]


def _by_class(names: list[str]) -> str:
    """Names that differ only in numbers together: ``encoder.layers.*.mlp.fc1.weight (24)``."""
    classes: dict[str, list[str]] = {}
    for name in names:
        key, parenthesis, rest = name.partition(" (")
        classes.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", key) + parenthesis + rest, []).append(name)
    said = [members[0] if len(members) == 1 else f"{cls} ({len(members)})" for cls, members in classes.items()]
    more = f" and {len(said) - 8} more kinds" if len(said) > 8 else ""
    return ", ".join(said[:8]) + more


def _empty_tower(settings: Any) -> EmptyPart:
    config = find_config(settings.vision_tower, "vision_tower")
    whole = empty_vision_model(config)
    module = outline_tower(settings.vision_tower, settings.image)
    module.hold_linear_layers_in(getattr(torch, settings.vision_tower.dtype))
    dtypes = {name.removeprefix(WRAPPER): tensor.dtype for name, tensor in module.state_dict().items()}
    return EmptyPart(module, whole, dtypes)


def _empty_language_model(settings: ModelSettings) -> EmptyPart:
    config = find_config(settings.language_model, "language_model")
    model = empty_language_model(config)
    dtype = getattr(torch, settings.language_model.dtype)
    return EmptyPart(LanguageModel(model.to(dtype)), model, types_held(model, dtype))


def _with_adapters(settings: ModelSettings) -> LanguageModel:
    language_model = _empty_language_model(settings).module
    assert isinstance(language_model, LanguageModel), "it was just made"
    assert settings.lora is not None, "asked for"
    with torch.device("meta"):
        add_lora(language_model, settings.lora)
    return language_model


def _bridge(module: nn.Module) -> EmptyPart:
    return EmptyPart(module, None, dict.fromkeys(module.state_dict(), torch.float32))


def _check_kind(plan: Plan, settings: ModelSettings) -> None:
    """A language model of the other kind than prompts are written for, OPT's for T5's: widths alone may agree."""
    chosen, template = settings.language_model, load_template(settings.prompt.template)
    bare = {"model_type": (chosen.config or {}).get("model_type")} if chosen.source is None else None
    config = find_config(PartSource(source=chosen.source, config=bare), "language_model")
    if template.from_tokenizer or template.encoder_decoder == config.is_encoder_decoder:
        return
    kinds = {True: "an encoder-decoder", False: "a decoder-only one"}
    raise CheckpointError(
        f"{plan.weights['connector'].path}: the prompt template '{settings.prompt.template}' is for "
        f"{kinds[template.encoder_decoder]}, but the language model given ({config.model_type}) is "
        f"{kinds[config.is_encoder_decoder]}. Give the one it was trained with: {FLAGS['language_model']} "
        "NAME_OR_PATH; or a template that fits: prompt.template=NAME."
    )


def _check_widths(plan: Plan, channels: Any, width: int | None) -> None:
    """A connector between another tower or language model than its own gets the message that says what to pass."""
    name = "connector" if "connector" in plan.weights else "qformer"
    bridge = plan.weights[name]
    read, made = bridge_widths(bridge)
    if made is not None and width is not None and made != width:
        source = plan.settings.language_model.source if isinstance(plan.settings, ModelSettings) else None
        given = f"'{source}' has {width}" if source else f"the one given has {width}"
        raise CheckpointError(
            f"{bridge.path}: the connector leads to a language model of width {made}, but {given}. Give the one it "
            f"was trained with: {FLAGS['language_model']} {usual('language_model', bridge) or 'NAME_OR_PATH'}."
        )
    if read is not None and read != channels:
        raise CheckpointError(
            f"{bridge.path}: the {WORDS[name]} reads features of width {read}, but the vision tower gives {channels}. "
            f"Give the tower it was trained with: {FLAGS['vision_tower']} "
            f"{usual('vision_tower', bridge) or 'NAME_OR_PATH'}; or the layers it reads: vision_tower.layers=[...]."
        )


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights."""
    return {name: info.shape for name, info in weights.infos.items()}
