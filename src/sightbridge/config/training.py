"""Settings of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sightbridge.config.base import Settings


class PartTraining(Settings):
    """Whether one part of the model trains, and how fast."""

    train: Literal["full", "frozen"] = Field(default="frozen", description="train all weights of this part, or none")
    only: list[str] = Field(
        default=[], description="submodules that train, such as [output]; the rest of this part is frozen then"
    )
    lr: float | None = Field(default=None, gt=0, description="learning rate of this part, if not optim.lr")
    weight_decay: float | None = Field(
        default=None, ge=0, description="weight decay of this part, if not optim.weight_decay"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute this part's layers in the backward pass instead of keeping what they made"
    )
    fp32: bool = Field(default=False, description="keep this part's forward pass in float32, out of bf16 and fp16")

    @model_validator(mode="after")
    def _only_what_trains(self) -> PartTraining:
        if self.only and self.train == "frozen":
            raise ValueError("'only' says what of this part trains, but 'train' is frozen; set train=full")
        return self


class PartsSettings(Settings):
    """The three parts; by default only the bridge trains."""

    vision_tower: PartTraining = PartTraining()
    connector: PartTraining = PartTraining(train="full")
    language_model: PartTraining = PartTraining()


class OptimSettings(Settings):
    """AdamW and its schedule: linear warm-up, then cosine to ``min_lr``, set before every optimiser step."""

    lr: float = Field(default=1e-4, gt=0, description="peak learning rate")
    min_lr: float = Field(default=0.0, ge=0, description="learning rate at the end")
    warmup_lr: float = Field(default=0.0, ge=0, description="learning rate at the start of the warm-up")
    warmup_steps: int | None = Field(default=None, ge=0, description="length of the warm-up in optimiser steps")
    warmup_ratio: float | None = Field(
        default=None, ge=0, lt=1, description="length of the warm-up as a share of all steps"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="after the warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="not applied to biases, norms and other 1-D parameters")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's decay of the two moments")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's term against division by zero")
    clip_norm: float | None = Field(default=1.0, gt=0, description="largest gradient norm; null = no clipping")

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimSettings:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("give 'warmup_steps' or 'warmup_ratio', not both")
        return self


class TrainingSettings(Settings):
    """The run itself."""

    steps: int | None = Field(default=None, ge=1, description="optimiser steps; give this or 'epochs'")
    epochs: float | None = Field(
        default=None, gt=0, description="passes over the training records; give this or 'steps'"
    )
    batch_size: int = Field(default=32, ge=1, description="records per forward pass and process")
    accumulation: int = Field(default=1, ge=1, description="forward passes per optimiser step")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16 = autocast around the forward pass")
    seed: int = Field(default=42, ge=0, description="of weights, data order and augmentation")
    log_every: int = Field(default=10, ge=1, description="optimiser steps between lines in the log")
    evaluate_every: int | None = Field(
        default=None, ge=1, description="optimiser steps between evaluations; null = at the end"
    )
    save_every: int | None = Field(
        default=None, ge=1, description="optimiser steps between checkpoints; null = at the end"
    )
    parts: PartsSettings = PartsSettings()
    tensorboard: bool = Field(default=False, description="also write TensorBoard files (needs sightbridge[train])")

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self
