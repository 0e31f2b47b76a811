"""Adapters inside a frozen language model: where they go, that all of them are there, and how to tell them apart.

``peft`` puts them into the model in place. So the model stays the transformers model that generation, packing,
gradient checkpointing, the head in chunks and sharding know; only its adapted layers are ``peft``'s.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from sightbridge.config.model import LoraSettings
from sightbridge.errors import SettingsError, nearest
from sightbridge.models.language_model import LanguageModel
from sightbridge.models.lora_families import FAMILIES, find_family

ADAPTER_MODULES = ("lora_A", "lora_B", "lora_dropout")
"""What ``peft`` puts beside an adapted layer, which it moves to ``base_layer``."""


def add_lora(language_model: LanguageModel, lora: LoraSettings) -> None:
    """Put fresh adapters into a language model, in place; they change nothing until they are trained.

    Adapters are float32 whatever the model is held in: small steps would be lost in half precision. Every parameter
    requires gradients afterwards, as in a model just built.

    Raises:
        SettingsError: the ``peft`` package is not there, or the targets are wrong, see ``find_targets``.
    """
    try:
        from peft import LoraConfig, TaskType, inject_adapter_in_model
    except ImportError as error:
        message = "model.lora needs the peft package: pip install 'sightbridge[lora]'"
        raise SettingsError(message, key="model.lora") from error
    model = language_model.model
    targets = find_targets(model, lora)
    names = lora.targets or sorted({target.rpartition(".")[2] for target in targets})
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names,
        fan_in_fan_out=any(isinstance(model.get_submodule(target), Conv1D) for target in targets),
        task_type=TaskType.SEQ_2_SEQ_LM if language_model.is_encoder_decoder else TaskType.CAUSAL_LM,
    )
    inject_adapter_in_model(config, model)
    for name in adapter_modules(model):
        model.get_submodule(name).float()
    language_model.requires_grad_(True).eval()
    language_model.assert_heads_untied()
    assert adapted_layers(model) == targets, "peft follows the names as find_targets does"


def find_targets(model: nn.Module, lora: LoraSettings) -> list[str]:
    """Return the full names of the linear layers that get an adapter, in the model's order.

    A preset's layers are counted against what its family promises for a model of this configuration; each name of
    ``targets`` must match something. The output head and embeddings are never adapted: a T5's head would be in danger
    of being tied, and an adapter of a table of 250k rows is no small thing.

    Args:
        model: a transformers language model, which may be on the meta device.
        lora: what to adapt.

    Raises:
        SettingsError: the family has no preset, or layers are missing, or targets match what cannot be adapted.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    if lora.preset is None:
        return _custom_targets(model, modules, linear, lora.targets or [])
    config: Any = model.config
    family = find_family(config)
    if family is None:
        raise SettingsError(
            f"there is no preset '{lora.preset}' for language models of type '{config.model_type}', only for "
            f"{', '.join(FAMILIES)}. Give model.lora.targets the names of its layers instead of a preset; the linear "
            f"ones are: {_counted(linear)}.",
            key="model.lora.preset",
        )
    names = family.adapted(lora.preset)
    found = [name for name in modules if name in linear and name.rpartition(".")[2] in names]
    promised = family.promise(lora.preset, config)
    if len(found) != promised:
        raise SettingsError(
            f"the preset '{lora.preset}' promises {promised} adapted layers in this {config.model_type} "
            f"({', '.join(sorted(names))}), but {len(found)} were found: {_counted(found)}. The linear layers here "
            f"are: {_counted(linear)}. Name those to adapt in model.lora.targets instead.",
            key="model.lora.preset",
        )
    return found


def _custom_targets(model: Any, modules: dict[str, nn.Module], linear: set[str], targets: list[str] | str) -> list[str]:
    """Match names as ``peft`` does: a list by the ends of names, a single text as a regular expression."""
    found: list[str] = []
    for target in [targets] if isinstance(targets, str) else targets:
        if isinstance(targets, str):
            matching = [name for name in modules if _pattern(target).fullmatch(name)]
        else:
            matching = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not matching:
            leaves = sorted({name.rpartition(".")[2] for name in linear})
            raise SettingsError(
                f"'{target}' matches no layer of the {model.config.model_type} language model; its linear layers are: "
                f"{_counted(linear)}.{nearest(target, leaves)}",
                key="model.lora.targets",
            )
        found += matching
    barred = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    wrong = [name for name in found if name not in linear or id(modules[name]) in barred]
    if wrong:
        raise SettingsError(
            f"the targets match '{wrong[0]}' ({type(modules[wrong[0]]).__name__}), but only linear layers of the "
            f"blocks can be adapted, not the head nor embeddings; those are: {_counted(linear)}.",
            key="model.lora.targets",
        )
    return [name for name in modules if name in set(found)]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        message = f"'{text}' is no regular expression ({error}); names of layers belong into a list"
        raise SettingsError(message, key="model.lora.targets") from error


def _counted(names: Any) -> str:
    """Leaf names and how often they occur: ``q_proj (2), v_proj (2)``."""
    counts = Counter(name.rpartition(".")[2] for name in names)
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "none"


def adapted_layers(model: nn.Module) -> list[str]:
    """Full names of the layers that have an adapter."""
    return [name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")]


def adapter_modules(model: nn.Module) -> list[str]:
    """Names of the modules that make up the adapters; they train while all else is frozen."""
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] in ADAPTER_MODULES]


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' weights by name."""
    return {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}


def is_adapter(name: str) -> bool:
    """Whether a weight of this name belongs to an adapter."""
    return any(part in ADAPTER_MODULES for part in name.split("."))


def base_name(name: str) -> str:
    """Name that a weight has where there are no adapters."""
    return name.replace(".base_layer.", ".")


def describe_lora(model: nn.Module, lora: LoraSettings) -> str:
    """One line for a report: how many layers of which names are adapted, and how many weights that makes."""
    layers, size = adapted_layers(model), sum(p.numel() for p in adapter_parameters(model).values())
    kind = f"preset {lora.preset}" if lora.preset else "targets"
    return (
        f"LoRA: {len(layers)} layers adapted ({kind}: {_counted(layers)}), r {lora.r}, alpha {lora.alpha}, "
        f"{size:,} weights"
    )
