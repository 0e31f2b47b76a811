"""What differs when the launcher asked for FSDP2 or DeepSpeed: preparing, stepping, and getting whole weights back.

With one process, or with DistributedDataParallel, every process holds the whole model and the functions here do next
to nothing. FSDP2 and ZeRO-3 leave each process a slice of every weight. Whatever runs the model must then run on all
processes, in lockstep; whatever reads weights must gather them first. ZeRO-1 and 2 slice the optimiser only, but its
step belongs to DeepSpeed's engine all the same.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
)
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modeling_layers import GradientCheckpointingLayer

from sightbridge.config.qformer_recipe import ModelRecipe
from sightbridge.config.recipe import Recipe
from sightbridge.config.training import OptimSettings, TrainingSettings
from sightbridge.errors import SettingsError
from sightbridge.models.parts import trains

SHARDED_PARTS = ("vision_tower", "language_model")
"""Parts whose transformer layers are gathered one by one; all else, such as connector and head, is gathered at once."""


class Prepared(NamedTuple):
    """A model and its optimiser as ``accelerate`` wrapped them, and the bare model's ``skeleton`` if it is sharded."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    skeleton: nn.Module | None


def use_launcher(accelerator: Accelerator) -> Accelerator:
    """Put right what accelerate makes of the launcher's wishes.

    FSDP2 may run on CPUs as well; accelerate would fall back to DistributedDataParallel there without a word. And under
    ZeRO-3 transformers is not to slice weights while it makes or reads a model: here models are cut and resized first.

    Raises:
        SettingsError: the launcher asks for the first version of FSDP, or for DeepSpeed where it cannot be had.
    """
    if asks_for_deepspeed() and not uses_deepspeed(accelerator):
        raise SettingsError("the launcher asks for DeepSpeed and for the CPU; for that set DS_ACCELERATOR=cpu instead")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise SettingsError(
                "the launcher asks for the first version of FSDP, which cannot mix frozen and trained weights; set "
                "fsdp_version: 2, or use the fsdp2.yaml that 'sightbridge recipes --launcher fsdp2' shows"
            )
        if accelerator.distributed_type == DistributedType.MULTI_CPU:
            accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
            accelerator.state.distributed_type = DistributedType.FSDP
            # accelerate copies this one over the other whenever anything asks for its state
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if uses_deepspeed(accelerator):
        _deepspeed_plugin(accelerator).dschf = None
        unset_hf_deepspeed_config()
    return accelerator


def asks_for_deepspeed() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def launcher_options(no_gpu: bool) -> dict[str, Any]:
    """What an ``Accelerator`` must be told besides the precision.

    Told to use the CPU, accelerate switches DeepSpeed off; not told so, it finds no way for processes to speak.
    """
    if no_gpu and asks_for_deepspeed():
        return {"kwargs_handlers": [InitProcessGroupKwargs(backend="gloo")]}
    return {"cpu": no_gpu}


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether a process holds but a slice of the weights."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return _deepspeed_plugin(accelerator).zero_stage == 3
    return accelerator.distributed_type == DistributedType.FSDP


def _deepspeed_plugin(accelerator: Accelerator) -> DeepSpeedPlugin:
    plugin = accelerator.state.deepspeed_plugin
    assert plugin is not None, "DeepSpeed is in use"
    return plugin


def uses_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed's engine does backward pass and step."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def check_launcher(recipe: ModelRecipe, accelerator: Accelerator) -> None:
    """Check that the launcher can deal with the model; raises ``SettingsError``."""
    quantized = isinstance(recipe, Recipe) and recipe.model.language_model.quantize
    if quantized and (is_sharded(accelerator) or uses_deepspeed(accelerator)):
        raise SettingsError(
            "weights in 8 or 4 bits can be neither sliced by FSDP nor cast by DeepSpeed; use the ddp launcher, with "
            "which every process holds all of them, or quantize=null",
            key="model.language_model.quantize",
        )


def prepare(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: TrainingSettings,
    optim: OptimSettings,
) -> Prepared:
    """Move model and optimiser to the device and wrap them for all processes.

    A frozen tower is kept whole on every process. It is small beside a language model; and a process whose batch has no
    picture skips it, which would leave the others waiting for its slices for ever.

    Raises:
        SettingsError: a part should compute in float32 under DeepSpeed, which holds the whole model in half precision.
    """
    if uses_deepspeed(accelerator):
        _tell_deepspeed(accelerator, training, optim)
    if accelerator.is_fsdp2:
        _tell_fsdp(accelerator, model)
    if not is_sharded(accelerator):
        model, optimizer = accelerator.prepare(model, optimizer)
        return Prepared(model, optimizer, None)

    skeleton = _skeleton(model)
    model.lockstep = True  # type: ignore[assignment] - see VisionLanguageModel
    # ZeRO-3 slices each module by itself and fetches ahead, in the order that it has seen: chunks of logits must not
    # be more on one process than on another. FSDP2 gathers the head with all that is no transformer layer.
    model.logits_at_once = uses_deepspeed(accelerator)  # type: ignore[assignment]
    tower = getattr(model, "vision_tower", None)
    if tower is not None and not trains(tower):
        model.vision_tower = nn.Identity()
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        _put_back(accelerator, model, tower, training)
    else:
        wrapped, optimizer = accelerator.prepare(model, optimizer)
    return Prepared(wrapped, optimizer, skeleton)


def backward(accelerator: Accelerator, loss: Tensor, last: bool) -> None:
    """Add to the gradients; ``last`` says that ``take_step`` comes next."""
    if uses_deepspeed(accelerator):
        engine = _engine(accelerator)
        engine.set_gradient_accumulation_boundary(is_boundary=last)
        engine.backward(loss)
    else:
        accelerator.backward(loss)


def clip_gradients(accelerator: Accelerator, parameters: list[Tensor], clip_norm: float | None) -> float:
    """Return the gradients' norm, over all processes, before it is brought down to ``clip_norm``.

    DeepSpeed clips, and knows the norm, only in its step (``take_step``); until then it is 0 here.
    """
    if uses_deepspeed(accelerator):
        return 0.0
    most = float("inf") if clip_norm is None else clip_norm
    if accelerator.is_fsdp2:  # accelerate would compare the slices of unlike weights, and fail
        accelerator.unscale_gradients()
        norm = nn.utils.clip_grad_norm_(parameters, most)
    else:
        norm = accelerator.clip_grad_norm_(parameters, most)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)  # type: ignore[arg-type]


def take_step(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> float | None:
    """Change the weights and forget the gradients; returns their norm if it is known only now."""
    if uses_deepspeed(accelerator):
        engine = _engine(accelerator)
        engine.step()
        return float(engine.get_global_grad_norm() or 0.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return None


def trained_state(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor]:
    """Return the whole weights that train, by name, on the CPU. To be called by all processes; only the main one
    gets them.

    Under DeepSpeed these are the optimiser's float32 weights, not the engine's half-precision copies.
    """
    bare = accelerator.unwrap_model(model)
    return _gather(accelerator, {name: p for name, p in bare.named_parameters() if p.requires_grad})


def whole_model(accelerator: Accelerator, prepared: Prepared) -> nn.Module | None:
    """Return the bare model with all its weights, to be saved. To be called by all processes; None on all but the main.

    Unless it is sharded this is the model itself. Otherwise it is a copy on the CPU.
    """
    bare = accelerator.unwrap_model(prepared.model)
    if prepared.skeleton is None:
        return bare if accelerator.is_main_process else None
    tower = getattr(bare, "vision_tower", nn.Identity())  # not among DeepSpeed's, see prepare
    apart = {f"vision_tower.{name}": parameter for name, parameter in tower.named_parameters()}
    weights = _gather(accelerator, apart | dict(bare.named_parameters()))
    if not accelerator.is_main_process:
        return None
    whole = copy.deepcopy(prepared.skeleton)
    for name, parameter in list(whole.named_parameters()):
        filled = nn.Parameter(weights[name], requires_grad=parameter.requires_grad)
        torch.utils.swap_tensors(parameter, filled)  # in place, so that shared tables stay shared
    return whole.eval()


@contextmanager
def outside_training(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Let a sharded model's methods be called by themselves, as generation does, by all processes in lockstep.

    FSDP2 gathers what stands outside of its layers only when the model as a whole is called.
    """
    bare = accelerator.unwrap_model(model)
    if isinstance(bare, FSDPModule):
        bare.unshard()
        yield
        bare.reshard()
    else:
        yield


def in_lockstep(
    accelerator: Accelerator, batches: Iterable[Any], exchanges: bool = False
) -> Iterator[tuple[Any, bool]]:
    """Yield batches, and whether each counts: of a sharded model every process must run as many as the others.

    So it must of one whose forward pass ``exchanges`` tensors between processes. A process that runs out of batches
    repeats its last one, which then does not count.

    Raises:
        SettingsError: a process has no batch at all.
    """
    if not (is_sharded(accelerator) or (exchanges and accelerator.num_processes > 1)):
        yield from ((batch, True) for batch in batches)
        return
    source, batch = iter(batches), None
    while True:
        following = next(source, None)
        state = torch.tensor([following is not None, following is None and batch is None], device=accelerator.device)
        running, empty = accelerator.reduce(state.long(), "sum").tolist()  # type: ignore[union-attr]
        if not running:
            return
        if empty:
            raise SettingsError(
                f"{empty} of {accelerator.num_processes} processes have no record to validate on, but all "
                "must run in step; give data.validation at least as many records as there are processes"
            )
        batch = batch if following is None else following
        yield batch, following is not None


def _engine(accelerator: Accelerator) -> Any:
    return accelerator.deepspeed_engine_wrapped.engine  # type: ignore[union-attr]


def _tell_deepspeed(accelerator: Accelerator, training: TrainingSettings, optim: OptimSettings) -> None:
    """Fill in what DeepSpeed wants to know itself; accumulation and the division of losses stay ours."""
    parts = {name: getattr(training.parts, name) for name in type(training.parts).model_fields}
    in_fp32 = [name for name, part in parts.items() if part.fp32]
    if in_fp32 and training.precision != "fp32":
        raise SettingsError(
            f"DeepSpeed holds the whole model in {training.precision}, so the {in_fp32[0].replace('_', ' ')} cannot "
            "compute in float32; use the fsdp2 or ddp launcher, or remove the setting",
            key=f"training.parts.{in_fp32[0]}.fp32",
        )
    config = _deepspeed_plugin(accelerator).deepspeed_config
    config["train_micro_batch_size_per_gpu"] = training.batch_size
    config["gradient_accumulation_steps"] = 1
    config["gradient_clipping"] = optim.clip_norm or 0.0  # 0 = none


def _tell_fsdp(accelerator: Accelerator, model: nn.Module) -> None:
    """Say what is gathered layer by layer, and leave precision to autocast, as without FSDP.

    FSDP2's own mixed precision would hand float32 parts weights in bf16.
    """
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None, "FSDP is in use"
    plugin.mixed_precision_policy = None
    if plugin.transformer_cls_names_to_wrap is None:
        names = set()
        for part in SHARDED_PARTS:
            module = getattr(model, part, None)
            if module is not None and (trains(module) or part == "language_model"):
                names |= {type(m).__name__ for m in module.modules() if isinstance(m, GradientCheckpointingLayer)}
        plugin.transformer_cls_names_to_wrap = sorted(names)


def _put_back(accelerator: Accelerator, model: nn.Module, tower: nn.Module, training: TrainingSettings) -> None:
    """Give the model its frozen tower again, after all else was sliced."""
    in_half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[training.precision]
    tower.to(accelerator.device, in_half if uses_deepspeed(accelerator) else None)
    if uses_deepspeed(accelerator):  # it looks for its marks on every weight it finds; these have none
        del model._modules["vision_tower"]
        model.__dict__["vision_tower"] = tower
    else:
        model.vision_tower = tower


def _skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of the model without its weights; shared ones stay shared."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def _gather(accelerator: Accelerator, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Bring parameters together one by one, and keep them on the main process."""
    gathered = {}
    for name, parameter in parameters.items():
        whole = _whole(accelerator, parameter)
        if accelerator.is_main_process:
            gathered[name] = whole.detach().to("cpu", copy=True)
    return gathered


def _whole(accelerator: Accelerator, parameter: nn.Parameter) -> Tensor:
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    if uses_deepspeed(accelerator):
        from deepspeed.runtime.zero import GatheredParameters  # type: ignore[import-not-found]
        from deepspeed.utils import safe_get_full_fp32_param  # type: ignore[import-not-found]

        if parameter.requires_grad and (trained := safe_get_full_fp32_param(parameter)) is not None:
            return trained
        if hasattr(parameter, "ds_id"):
            with GatheredParameters([parameter]):
                return parameter.detach().clone()
    return parameter
