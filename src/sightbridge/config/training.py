"""Settings of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sightbridge.config.base import Settings


class PartTraining(Settings):
    """Whether one part of the model trains, and how fast."""

    train: Literal["full", "frozen"] = "frozen"
    lr: float | None = Field(None, gt=0, description="learning rate of this part, if not optim.lr")
    weight_decay: float | None = Field(None, ge=0, description="weight decay of this part, if not optim.weight_decay")


class PartsSettings(Settings):
    """The three parts; by default only the bridge trains."""

    vision_tower: PartTraining = PartTraining()
    connector: PartTraining = PartTraining(train="full")
    language_model: PartTraining = PartTraining()


class OptimSettings(Settings):
    """AdamW and its schedule: linear warm-up, then cosine to ``min_lr``, set before every optimiser step."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end")
    warmup_lr: float = Field(0.0, ge=0, description="learning rate at the start of the warm-up")
    warmup_steps: int | None = Field(None, ge=0, description="length of the warm-up in optimiser steps")
    warmup_ratio: float | None = Field(None, ge=0, lt=1, description="length of the warm-up as a share of all steps")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0, description="not applied to biases, norms and other 1-D parameters")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    clip_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null = no clipping")

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimSettings:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("give 'warmup_steps' or 'warmup_ratio', not both")
        return self


class TrainingSettings(Settings):
    """The run itself."""

    steps: int | None = Field(None, ge=1, description="optimiser steps; give this or 'epochs'")
    epochs: float | None = Field(None, gt=0, description="passes over the training records; give this or 'steps'")
    batch_size: int = Field(32, ge=1, description="records per forward pass and process")
    accumulation: int = Field(1, ge=1, description="forward passes per optimiser step")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 = autocast around the forward pass")
    seed: int = Field(42, ge=0, description="of weights, data order and augmentation")
    log_every: int = Field(10, ge=1, description="optimiser steps between lines in the log")
    evaluate_every: int | None = Field(None, ge=1, description="optimiser steps between evaluations; null = at the end")
    save_every: int | None = Field(None, ge=1, description="optimiser steps between checkpoints; null = at the end")
    parts: PartsSettings = PartsSettings()
    tensorboard: bool = Field(False, description="also write TensorBoard files (needs sightbridge[train])")

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self
