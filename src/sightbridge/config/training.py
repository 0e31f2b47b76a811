"""Settings of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sightbridge.config.base import Settings

Precision = Literal["fp32", "bf16", "fp16"]


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
    layer_decay: float | None = Field(
        default=None, gt=0, le=1, description="learning rate of a layer as a share of the next one's; null = all alike"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute this part's layers in the backward pass instead of keeping what they made"
    )
    fp32: bool = Field(default=False, description="keep this part's forward pass in float32, out of bf16 and fp16")

    @model_validator(mode="after")
    def _only_what_trains(self) -> PartTraining:
        if self.only and self.train != "full":
            raise ValueError(f"'only' says what of this part trains, but 'train' is {self.train}; set train=full")
        return self


class TrainedPart(PartTraining):
    """A part that trains unless it is told not to, also if only its learning rate is given."""

    train: Literal["full", "frozen"] = Field(default="full", description="train all weights of this part, or none")


class LanguageModelTraining(PartTraining):
    """The language model, whose adapters may train instead of its own weights."""

    train: Literal["full", "lora", "frozen"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="frozen", description="train all weights of this part, the adapters of model.lora alone, or none"
    )


class PartsSettings(Settings):
    """The three parts; by default only the bridge trains."""

    vision_tower: PartTraining = PartTraining()
    connector: TrainedPart = TrainedPart()
    language_model: LanguageModelTraining = LanguageModelTraining()


class OptimSettings(Settings):
    """AdamW and its schedule: linear warm-up, then cosine to ``min_lr``, set before every optimiser step."""

    kind: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw", description="adamw_8bit holds its state in 8 bits (needs sightbridge[quant])"
    )
    lr: float = Field(default=1e-4, gt=0, description="peak learning rate")
    min_lr: float = Field(default=0.0, ge=0, description="learning rate at the end")
    warmup_lr: float = Field(default=0.0, ge=0, description="learning rate at the start of the warm-up")
    warmup_steps: int | None = Field(default=None, ge=0, description="length of the warm-up, in 'warmup_unit'")
    warmup_unit: Literal["step", "batch"] = Field(
        default="step",
        description="what warmup_steps counts: optimiser steps, or batches of a process (LAVIS' iterations), of which "
        "training.accumulation make a step",
    )
    warmup_ratio: float | None = Field(
        default=None, ge=0, lt=1, description="length of the warm-up as a share of all steps"
    )
    schedule: Literal["cosine", "lavis_epoch_cosine", "linear", "constant"] = Field(
        default="cosine", description="after the warm-up; lavis_epoch_cosine is constant within an epoch"
    )
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
    global_batch: int | None = Field(
        default=None, ge=1, description="records per optimiser step over all processes; accumulation follows from it"
    )
    precision: Precision = Field(
        default="fp32", description="bf16, fp16 = autocast around the forward pass; fp16 scales the loss"
    )
    seed: int = Field(default=42, ge=0, lt=2**63, description="of weights, data order and augmentation")
    log_every: int = Field(default=10, ge=1, description="optimiser steps between lines in the log")
    evaluate_every: int | None = Field(
        default=None, ge=1, description="optimiser steps between evaluations; null = at the end"
    )
    evaluate_first: bool = Field(default=False, description="evaluate before the first step, too")
    save_every: int | None = Field(
        default=None, ge=1, description="optimiser steps between checkpoints; null = at the end"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints that stay in the run's folder")
    best: str | None = Field(
        default=None, description="value of the evaluations, such as validation_loss, whose best model is the run's"
    )
    best_mode: Literal["min", "max"] = Field(default="min", description="which value of 'best' is the better one")
    init_from: str | list[str] | None = Field(
        default=None,
        description="model folder to start from, or a file or folder of another project (LAVIS, LLaVA, PaddleMIX, "
        "Hugging Face, ...): its weights alone; of several, a later one over an earlier one",
    )
    init_parts: list[Literal["vision_tower", "connector", "language_model", "qformer", "adapters"]] | None = Field(
        default=None, description="what to take from init_from; null = all that is stored there"
    )
    fresh_projection: bool = Field(
        default=False,
        description="begin with a random layer between Q-Former and language model although init_from has one; where "
        "their widths differ it is random in any case (mBLIP: random_init_projection)",
    )
    parts: PartsSettings = PartsSettings()
    tensorboard: bool = Field(default=False, description="also write TensorBoard files (needs sightbridge[train])")

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self

    @model_validator(mode="after")
    def _one_batch_size(self) -> TrainingSettings:
        if self.global_batch is not None and self.accumulation != 1:
            raise ValueError("'accumulation' follows from 'global_batch'; give one of them")
        return self
