"""What happens between steps: evaluations, the best of them, saved models, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from sightbridge.config.training import TrainingSettings
from sightbridge.errors import SettingsError, nearest
from sightbridge.training.checkpoints import Checkpoints
from sightbridge.training.log import RunLog
from sightbridge.training.sharding import outside_training, whole_model
from sightbridge.training.state import RunState

Evaluate = Callable[[nn.Module, int], dict[str, Any]]
"""Called with the bare model (in evaluation mode) and the steps taken; what it returns goes into the log."""

Save = Callable[[nn.Module, int], None]
"""Called on the main process with the bare model (a copy if it is sharded) and the steps taken; writes atomically."""


@dataclass
class Milestones:
    """Evaluates, saves and writes checkpoints when that is due. All processes call the methods at the same steps."""

    training: TrainingSettings
    state: RunState
    log: RunLog
    evaluate: Evaluate | None
    save: Save | None
    checkpoints: Checkpoints | None

    def before_first_step(self) -> None:
        """Evaluate the model as it starts, if that was asked for."""
        if self.evaluate and self.training.evaluate_first and self.state.progress.step == 0:
            self._keep_if_best(self._evaluate(self.evaluate))

    def after_step(self) -> None:
        """Do what is due after ``state.progress.step`` steps; everything is due after the last."""
        step = self.state.progress.step
        last = step == self.state.total_steps
        better = False
        if self.evaluate and (last or due(step, self.training.evaluate_every)):
            better = self._keep_if_best(self._evaluate(self.evaluate))
        write = last or due(step, self.training.save_every)
        if self.save and (better if self.training.best else write):
            whole = whole_model(self.state.accelerator, self.state.prepared)
            if whole is not None:
                self.save(whole, step)
        if self.checkpoints and (write or better):
            self.log.flush()
            self.checkpoints.write(self.state)

    def _evaluate(self, evaluate: Evaluate) -> dict[str, Any]:
        accelerator, step = self.state.accelerator, self.state.progress.step
        model = accelerator.unwrap_model(self.state.prepared.model)
        model.eval()
        with torch.no_grad(), outside_training(accelerator, self.state.prepared.model):
            values = evaluate(model, step)
        model.train()
        self.log.write("evaluation", step, values)
        return values

    def _keep_if_best(self, values: dict[str, Any]) -> bool:
        """Whether an evaluation is better than all before it, by the main process's word; it is remembered then."""
        name, progress = self.training.best, self.state.progress
        if name is None:
            return False
        (found,) = broadcast_object_list([values])
        assert found is not None
        if name not in found:
            known = list(found)
            raise SettingsError(
                f"the evaluations measure no '{name}', only {', '.join(known)}.{nearest(name, known)}",
                key="training.best",
            )
        value = found[name]
        if value is None or not math.isfinite(value):
            return False
        sign = 1 if self.training.best_mode == "max" else -1
        if progress.best is not None and sign * value <= sign * progress.best:
            return False
        progress.best, progress.best_step = value, progress.step
        return True


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every is not None and step % every == 0
