"""Checkpoints under DeepSpeed: its slices as whole tensors by the names of the weights, as with every other launcher.

ZeRO lays the float32 copies of what trains end to end, cuts them into a slice for each process, and has the optimiser
step on slices. ``deepspeed.utils`` brings single weights and their moments together; the way back is here. DeepSpeed's
own ``save_checkpoint`` does both, but in pickles that only as many GPUs under the same stage can read.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of a weight, besides the number of steps."""


def why_no_checkpoints(accelerator: Accelerator) -> str | None:
    """Say what of this run's state cannot be had from DeepSpeed; ``None`` if all can."""
    plugin: Any = accelerator.state.deepspeed_plugin
    if accelerator.mixed_precision == "fp16":
        return "DeepSpeed keeps the loss scale of fp16 to itself"
    if plugin.offload_optimizer_device not in (None, "none"):
        return "DeepSpeed keeps an optimiser's state that it has moved away to itself"
    return None


def optimizer_state(accelerator: Accelerator, weights: dict[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """Bring the state of all ``weights`` together. To be called by all processes; only the main one gets it."""
    from deepspeed.utils import safe_get_full_optimizer_state  # type: ignore[import-not-found]

    zero = _zero(accelerator)
    _link(zero)
    step = torch.as_tensor(zero.optimizer.state[_slices(zero)[0]]["step"]).cpu().clone()
    states: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        moments = {key: safe_get_full_optimizer_state(weight, key) for key in MOMENTS}
        if accelerator.is_main_process:
            states[name] = {"step": step, **{key: moment.cpu().clone() for key, moment in moments.items()}}
    return states


@torch.no_grad()
def load_weights(accelerator: Accelerator, weights: dict[str, nn.Parameter], saved: dict[str, Tensor]) -> None:
    """Fill what trains, both the float32 copies that steps go on from and what the forward pass computes with."""
    from deepspeed.runtime.zero import GatheredParameters  # type: ignore[import-not-found]

    for name, weight in weights.items():
        _fill(accelerator, weight, saved[name], None)
        if hasattr(weight, "ds_id"):  # ZeRO-3 cut it: the main process hands its own to all
            with GatheredParameters([weight], modifier_rank=0):
                weight.copy_(saved[name])
        else:
            weight.copy_(saved[name])


@torch.no_grad()
def load_optimizer_state(
    accelerator: Accelerator, weights: dict[str, nn.Parameter], saved: dict[str, dict[str, Tensor]]
) -> None:
    """Fill in what ``optimizer_state`` returned."""
    zero = _zero(accelerator)
    step = next(iter(saved.values()))["step"]
    for piece in _slices(zero):  # AdamW makes them in its first step, which is over
        zero.optimizer.state[piece] = {"step": step.clone(), **{key: torch.zeros_like(piece) for key in MOMENTS}}
    _link(zero)
    for name, weight in weights.items():
        for key in MOMENTS:
            _fill(accelerator, weight, saved[name][key], key)


def _fill(accelerator: Accelerator, weight: nn.Parameter, whole: Tensor, key: str | None) -> None:
    """Put this process's part of a weight, or of its moment ``key``, into the slice that it lies in."""
    from deepspeed.utils import (  # type: ignore[import-not-found]
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    whole = whole.float().to(accelerator.device)
    if hasattr(weight, "ds_id"):
        part = _part(whole, weight.ds_tensor.numel(), accelerator.process_index)  # type: ignore[attr-defined]
        return (
            safe_set_local_fp32_param(weight, part)
            if key is None
            else safe_set_local_optimizer_state(weight, part, key)
        )
    return safe_set_full_fp32_param(weight, whole) if key is None else safe_set_full_optimizer_state(weight, whole, key)


def _link(zero: Any) -> None:
    """Let ZeRO-2 find what the optimiser remembers of each weight.

    It looks after the first step, but of one group of weights only, and so finds nothing of the other groups.
    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state  # type: ignore[import-not-found]

    if hasattr(zero, "single_partition_of_fp32_groups"):
        for weights, piece in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(weights, piece, zero.optimizer.state)


def whole_shape(weight: nn.Parameter) -> torch.Size:
    """Shape of a weight, also of one that ZeRO-3 has taken away until it is needed."""
    return getattr(weight, "ds_shape", weight.shape)


def _part(whole: Tensor, size: int, number: int) -> Tensor:
    """Part ``number`` of a tensor that is cut into parts of ``size``, the last one filled up with zeros.

    DeepSpeed's setters of whole tensors under ZeRO-3 forget the filling up.
    """
    own = whole.flatten()[size * number : size * (number + 1)]
    return nn.functional.pad(own, (0, size - len(own)))


def _zero(accelerator: Accelerator) -> Any:
    """DeepSpeed's optimiser, which has AdamW inside."""
    return accelerator.deepspeed_engine_wrapped.engine.optimizer  # type: ignore[union-attr]


def _slices(zero: Any) -> list[Tensor]:
    """This process's slices of the float32 weights, in ZeRO-3 or in ZeRO-1 and 2."""
    return getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
