"""All that changes while a run trains, written down so that a killed run goes on as if nothing had happened.

RUN/checkpoints/step-00000100/ holds (see ``checkpoints``):

    weights.safetensors   the trained weights by name, whole even if processes hold slices of them
    optimizer.pt          the optimiser's state by the weights' names, and the loss scale of fp16
    processes.pt          for each process its random state and what its data remember
    state.json            steps taken, place in the data, sums since the last line of the log, settings, file hashes
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from sightbridge.errors import CheckpointError
from sightbridge.training import deepspeed_state
from sightbridge.training.log import Meter
from sightbridge.training.sharding import Prepared, trained_state, uses_deepspeed

WEIGHTS, OPTIMIZER, PROCESSES = "weights.safetensors", "optimizer.pt", "processes.pt"


class Stateful(Protocol):
    """What remembers something from step to step, such as the list of bad samples."""

    def state_dict(self) -> dict[str, Any]:
        """What to remember: numbers, texts, tensors, and lists and mappings of them."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go back to where ``state`` was taken."""
        ...


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: optimiser steps taken.
        epoch, taken: the epoch the next batch is from, and how many batches of it were taken.
        overflows: steps in a row, up to the last one, that fp16's gradients overflowed in.
        best, best_step: the best evaluation so far by ``training.best``, and after which step it was.
    """

    step: int = 0
    epoch: int = 0
    taken: int = 0
    overflows: int = 0
    best: float | None = None
    best_step: int | None = None


@dataclass
class RunState:
    """A running training. ``write`` and ``read`` are called by all processes."""

    accelerator: Accelerator
    prepared: Prepared
    progress: Progress
    meter: Meter
    total_steps: int
    batches_per_epoch: float
    data: Stateful | None = None

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files into ``folder`` (on the main process) and return what belongs into ``state.json``."""
        weights = trained_state(self.accelerator, self.prepared.model)
        optimizer = {"state": self._optimizer_state(), "scaler": self._scaler_state()}
        own = {"random": random_state(self.accelerator.device), "data": self.data.state_dict() if self.data else {}}
        processes = gather_object([own])
        if self.accelerator.is_main_process:
            save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS)
            torch.save(optimizer, folder / OPTIMIZER)
            torch.save(processes, folder / PROCESSES)
        return {
            "progress": asdict(self.progress),
            "meter": self.meter.state_dict(),
            "total_steps": self.total_steps,
            "batches_per_epoch": self.batches_per_epoch,
            "processes": self.accelerator.num_processes,
        }

    def read(self, folder: Path, state: dict[str, Any]) -> None:
        """Go on where ``write`` was called.

        Raises:
            CheckpointError: other weights train here, other data are there, or another number of processes.
        """
        if state["processes"] != self.accelerator.num_processes:
            raise CheckpointError(
                f"{folder}: trained by {state['processes']} processes, and this run has "
                f"{self.accelerator.num_processes}, which would see the records in another order. Use as many as "
                "before, or start a new run from its model with training.init_from."
            )
        if state["batches_per_epoch"] != self.batches_per_epoch:
            raise CheckpointError(
                f"{folder}: trained with {state['batches_per_epoch']:g} batches per epoch, and now there are "
                f"{self.batches_per_epoch:g}: the data have changed, so records would be left out or come twice. Bring "
                "the data back, or start a new run from its model with training.init_from."
            )
        self._load_weights(load_file(folder / WEIGHTS), folder)
        optimizer = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
        self._load_optimizer(optimizer["state"])
        if self.accelerator.scaler is not None and optimizer["scaler"]:
            self.accelerator.scaler.load_state_dict(optimizer["scaler"])
        self.progress.__dict__.update(state["progress"])
        self.meter.load_state_dict(state["meter"])
        own = torch.load(folder / PROCESSES, weights_only=True)[self.accelerator.process_index]
        if self.data:
            self.data.load_state_dict(own["data"])
        set_random_state(own["random"], self.accelerator.device)

    def _load_weights(self, saved: dict[str, Tensor], folder: Path) -> None:
        trained = self._trained()
        shapes = {name: deepspeed_state.whole_shape(weight) for name, weight in trained.items()}
        if shapes != {name: weight.shape for name, weight in saved.items()}:
            names = sorted(set(trained) ^ set(saved)) or [n for n, s in shapes.items() if s != saved[n].shape]
            raise CheckpointError(f"{folder}: holds other weights than those that train here, such as '{names[0]}'")
        if uses_deepspeed(self.accelerator):
            deepspeed_state.load_weights(self.accelerator, trained, saved)
            return
        with torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(_sliced_like(weight, saved[name]))

    def _optimizer_state(self) -> dict[str, dict[str, Any]]:
        """The optimiser's state by the names of the weights, whole."""
        if uses_deepspeed(self.accelerator):
            return deepspeed_state.optimizer_state(self.accelerator, self._trained())
        states = self._optimizer().state
        return {
            name: {key: _whole(value) for key, value in states[weight].items()}
            for name, weight in self._trained().items()
            if weight in states
        }

    def _load_optimizer(self, saved: dict[str, dict[str, Any]]) -> None:
        """Fill in the state; rates and decays are those of this run's settings."""
        if uses_deepspeed(self.accelerator):
            deepspeed_state.load_optimizer_state(self.accelerator, self._trained(), saved)
            return
        optimizer = self._optimizer()
        names = {id(weight): name for name, weight in self._trained().items()}
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        state = {
            index: {key: _sliced_like(weight, value) for key, value in saved[names[id(weight)]].items()}
            for index, weight in enumerate(weights)
            if names[id(weight)] in saved
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def _scaler_state(self) -> dict[str, Any]:
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}

    def _trained(self) -> dict[str, nn.Parameter]:
        bare = self.accelerator.unwrap_model(self.prepared.model)
        return {name: weight for name, weight in bare.named_parameters() if weight.requires_grad}

    def _optimizer(self) -> torch.optim.Optimizer:
        """The optimiser inside accelerate's wrapper."""
        return getattr(self.prepared.optimizer, "optimizer", self.prepared.optimizer)


def _whole(value: Any) -> Any:
    """A tensor on the CPU, whole if processes hold slices of it; other values as they are."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _sliced_like(weight: Tensor, value: Any) -> Any:
    """This process's slice of a whole tensor, if ``weight`` is sliced and ``value`` is of its shape."""
    if isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape:
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return value


def random_state(device: torch.device) -> dict[str, Any]:
    """State of every generator that a step or an evaluation may draw from."""
    numpy: Sequence[Any] = np.random.get_state()  # type: ignore[assignment]
    kind, keys, *rest = numpy
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on drawing where ``random_state`` was called."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])
