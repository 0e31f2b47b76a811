"""Trading time for memory, and precision where half of it is not enough: settings of each part while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from pydantic import BaseModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from sightbridge.errors import SettingsError
from sightbridge.models.language_model import T5_FAMILY

ENTRANCES = ("forward", "read", "output", "look", "head")
"""What the model calls of a part: also single steps of a connector or Q-Former, and the language model's head."""

Forward = Callable[..., Any]


@contextmanager
def memory_settings(model: nn.Module, parts: BaseModel, precision: str = "fp32") -> Iterator[None]:
    """Apply ``gradient_checkpointing`` and ``fp32`` of every part for as long as the context lasts.

    A frozen language model is worth checkpointing too: gradients pass through it to the connector, so it keeps what all
    of its layers made, as a trained one does.

    Args:
        model: has the parts as submodules of the same names.
        parts: ``PartTraining`` by name, as in ``TrainingSettings.parts``.
        precision: of the training; under ``fp16`` the second feed-forward layer of T5 stays in float32 as well.

    Raises:
        SettingsError: a part has no layers to checkpoint, or should compute in float32 with weights in half precision.
    """
    with ExitStack() as changes:
        for name in type(parts).model_fields:
            part, settings = model.get_submodule(name), getattr(parts, name)
            if settings.gradient_checkpointing:
                for layer in transformer_layers(part, name):
                    changes.enter_context(changed_method(layer, "forward", recomputed_in_backward))
            if settings.fp32:
                check_full_precision(part, name)
                for entrance in ENTRANCES:
                    called = getattr(part, entrance, None)
                    if isinstance(called, nn.Module):
                        changes.enter_context(changed_method(called, "forward", out_of_autocast))
                    elif called is not None:
                        changes.enter_context(changed_method(part, entrance, out_of_autocast))
        if precision == "fp16":
            for layer in overflowing_layers(model):
                changes.enter_context(changed_method(layer, "forward", out_of_autocast))
        yield


def transformer_layers(part: nn.Module, name: str) -> list[nn.Module]:
    """Return the layers of a part that transformers, too, would checkpoint.

    Raises:
        SettingsError: there are none.
    """
    layers: list[nn.Module] = [layer for layer in part.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise SettingsError(
            f"gradient_checkpointing: the {name.replace('_', ' ')} ({type(part).__name__}) has no transformer layers, "
            "so there is nothing to recompute; remove the setting.",
            key=f"training.parts.{name}.gradient_checkpointing",
        )
    return layers


def recomputed_in_backward(forward: Forward) -> Forward:
    """Keep only the inputs of ``forward``; what it makes inside is made again in the backward pass.

    transformers has a switch for this, but it acts on layers in training mode only. A frozen part is in evaluation
    mode, and switching just its layers over would wake up the dropout of those that apply it themselves (OPT's do).
    """

    @wraps(forward)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return checkpointed


def check_full_precision(part: nn.Module, name: str) -> None:
    """Check that a part's weights are in float32; raises ``SettingsError``."""
    for parameter in part.parameters():
        if parameter.dtype != torch.float32:
            held = str(parameter.dtype).removeprefix("torch.")
            raise SettingsError(
                f"fp32: the {name.replace('_', ' ')} holds weights in {held}, which cannot compute in float32; set "
                f"model.{name}.dtype=float32 as well, or remove the setting.",
                key=f"training.parts.{name}.fp32",
            )


def out_of_autocast(forward: Forward) -> Forward:
    """Let ``forward`` compute in float32 under autocast, whatever it is given; its output is float32 too."""

    @wraps(forward)
    def in_fp32(*args: Any, **kwargs: Any) -> Any:
        device = next(value.device.type for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        with torch.autocast(device, enabled=False):
            return forward(*convert_to_fp32(args), **convert_to_fp32(kwargs))

    return in_fp32


def overflowing_layers(model: nn.Module) -> list[nn.Module]:
    """Return the ``wo`` layers of every T5, mT5 and umT5 in ``model``, in float32 from now on.

    Their output overflows float16 in released FlanT5 and mT5. transformers therefore keeps their weights in float32
    when a model is loaded in float16 (``T5PreTrainedModel._keep_in_fp32_modules``), but autocast takes no notice of
    that and would multiply in float16 nevertheless. bfloat16 has float32's range, so neither transformers nor LAVIS,
    which runs FlanT5 in it, makes an exception there.
    """
    t5 = [
        module for module in model.modules() if getattr(getattr(module, "config", None), "model_type", "") in T5_FAMILY
    ]
    layers = {module for stack in t5 for name, module in stack.named_modules() if name.split(".")[-1] == "wo"}
    return [layer.float() for layer in layers if next(layer.parameters()).is_floating_point()]


@contextmanager
def changed_method(module: nn.Module, name: str, change: Callable[[Forward], Forward]) -> Iterator[None]:
    """Let one module have a method of its own: ``change`` of the one it had.

    ``module(...)`` still runs its hooks, and runs them once: those of FSDP and DeepSpeed bring weights together.
    """
    before = vars(module).get(name)
    setattr(module, name, change(getattr(module, name)))
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)
