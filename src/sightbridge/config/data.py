"""Settings of training and validation data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sightbridge.config.base import Settings

CacheDtype = Literal["float32", "bfloat16", "float16", "fp8"]


class SourceSettings(Settings):
    """One annotation file and the folder its pictures are in."""

    format: str = Field(description="name of a reader: llava, coco_caption, ...")
    path: str = Field(description="annotation file, relative to data.root; tars and tables: a pattern too")
    images: str | None = Field(default=None, description="folder of the pictures, relative to data.root")
    skip: int = Field(default=0, ge=0, description="leave out the first so many records, which validation may have")
    limit: int | None = Field(default=None, ge=1, description="read only so many records, behind those left out")
    weight: float | None = Field(
        default=None,
        gt=0,
        description="with mixture=weights: how often to draw from it, relative to the other sources; null = its number "
        "of records",
    )
    clean: Literal["blip_caption", "blip_question"] | None = Field(
        default=None, description="LAVIS' clean-up of the answers (blip_caption) or of the questions (blip_question)"
    )
    prompt: str | None = Field(
        default=None, description="what the user says behind the pictures, with {} for the words of the record's turn"
    )
    frames: int | None = Field(
        default=None, ge=1, le=512, description="pictures of each video, evenly spread over it; null = the format's own"
    )
    regions: Literal["corrected", "exact"] | None = Field(
        default=None,
        description="format vip_llava: region data as it was meant to be (corrected, the default), or exactly as "
        "ViP-LLaVA's code made it, rows without their pictures included",
    )


class DataSettings(Settings):
    """What is trained and validated on."""

    root: str = Field(default=".", description="folder that relative paths start from")
    train: list[SourceSettings] = Field(default_factory=list, description="sources, joined as 'mixture' says")
    validation: list[SourceSettings] = Field(default_factory=list, description="sources, read in order")
    mixture: Literal["concatenate", "weights"] = Field(
        default="concatenate",
        description="concatenate: every record comes once per epoch; weights: every draw picks a source by its weight, "
        "then that source's next record, and an epoch is as many draws as there are records",
    )
    group_by_length: bool | Literal["llava"] = Field(
        default=False,
        description="make batches of records of similar length, all with pictures or all without; llava: exactly as "
        "LLaVA's group_by_modality_length, by words",
    )
    pack: bool = Field(
        default=False,
        description="join records to rows of up to model.prompt.max_length positions, unseen by one another; "
        "training.batch_size counts such rows, except in validation, which does not pack",
    )
    no_target: Literal["error", "skip"] = Field(
        default="error",
        description="a record without a single target token stops the run, or is skipped, counted and listed",
    )
    padding_side: Literal["left", "right"] = Field(
        default="right",
        description="where training rows are filled up; the loss is the same, and an encoder-decoder takes right alone",
    )
    bad_limit: float = Field(
        default=0.01, ge=0, le=1, description="largest share of records that may be unusable before the run stops"
    )
    decode: Literal["exact", "fast"] = Field(
        default="exact",
        description="how pictures are opened in training: exact, as by transformers' Pillow processors; fast, two to "
        "three times as many per core, up to 2 of 255 grey levels off. Validation and caches are always exact",
    )
    workers: int = Field(
        default=0, ge=0, le=256, description="processes that open pictures; 0 = in the training process"
    )
    cache: str | None = Field(
        default=None,
        description="where the output of what is frozen in front of the first trained weight is kept, so that it runs "
        "once per picture: a folder made by 'sightbridge cache', relative to the working directory, or 'memory'; "
        "null = run it in every step",
    )
    cache_views: int | None = Field(
        default=None, ge=1, description="augmented views stored per picture and record; epoch e sees view e modulo this"
    )
    cache_dtype: CacheDtype = Field(
        default="bfloat16", description="type the features are stored in; fp8 = e4m3 with a scale per token"
    )

    @model_validator(mode="after")
    def _order_of_one_kind(self) -> DataSettings:
        if self.pack and self.group_by_length:
            raise ValueError("give 'pack' or 'group_by_length', not both: packed rows are all about as long")
        if self.mixture != "weights" and any(source.weight is not None for source in self.train):
            raise ValueError("a source's 'weight' counts only with mixture: weights")
        return self
