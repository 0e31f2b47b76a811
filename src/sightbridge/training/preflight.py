"""Everything that can be found wrong with a run before a single weight is loaded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from sightbridge.checkpoints.folder import AnyProcessor
from sightbridge.config.load import LoadedRecipe
from sightbridge.config.qformer_recipe import ModelRecipe
from sightbridge.config.recipe import Recipe
from sightbridge.data.bad_samples import BadSample, BadSamples, check_images
from sightbridge.data.feature_store import check_marks
from sightbridge.data.order import RecordOrder, RowLength
from sightbridge.data.readers import get_reader, read_sources
from sightbridge.data.record import Record
from sightbridge.data.records import select
from sightbridge.errors import DataError, SettingsError
from sightbridge.models.build import find_config
from sightbridge.models.connectors import check_connector
from sightbridge.models.context import position_limit
from sightbridge.text.encode import NoTargetError
from sightbridge.training.frozen_prefix import check_cache
from sightbridge.training.order import check_order, count_words, make_order, row_length
from sightbridge.training.processors import inside, make_any_processor

Which = Literal["train", "validation"]
Watch = Callable[[Sequence[Record], str], Iterable[Record]]
"""Shows progress through records that are checked; the second argument says what for."""


@dataclass(frozen=True)
class Checked:
    """A run that may start: its processor, its usable records, and the ones left out (already within the limit).

    ``order`` is the one that the training records come in.
    """

    processor: AnyProcessor
    train: Sequence[Record]
    validation: Sequence[Record]
    left_out: Mapping[Which, Sequence[BadSample]]
    order: RecordOrder


class Usable(NamedTuple):
    """The usable records of all sources, the lengths of their rows, how many each source has, and those left out."""

    records: Sequence[Record]
    lengths: list[RowLength]
    sizes: list[int]
    left_out: list[BadSample]


def check_run(loaded: LoadedRecipe, watch: Watch = lambda records, what: records) -> Checked:
    """Check settings, template, tokenizer, annotation files, pictures and every row's targets.

    Picture files are looked for, not opened: a broken one is found while training, and counted then.

    Raises:
        SettingsError: with the file and line, or the override, that the wrong setting was given in.
        CheckpointError: a tokenizer or a part's configuration was not found.
        DataError: an annotation file is wrong, a record leaves nothing to learn (unless ``data.no_target`` is "skip")
            or is longer than the language model can take, or more records than ``data.bad_limit`` cannot be used.
    """
    recipe = loaded.recipe
    assert isinstance(recipe, ModelRecipe), "a parent has no model to check"
    with loaded.locating():
        check_settings(recipe)
        processor = make_any_processor(recipe)
        if processor.encoder_decoder and recipe.data.padding_side == "left":
            raise SettingsError(
                "an encoder-decoder is padded on the right; left is for decoder-only language models",
                key="data.padding_side",
            )
    train = _usable(recipe, "train", processor, watch)
    validation = _usable(recipe, "validation", processor, watch)
    if not train.records:
        raise DataError(
            f"there is nothing to train on: none of the {len(train.left_out)} training records can be used; the last "
            f"reason: {train.left_out[-1].reason}"
        )
    left_out: dict[Which, list[BadSample]] = {"train": train.left_out, "validation": validation.left_out}
    order = make_order(recipe, train.sizes, train.lengths)
    return Checked(processor, train.records, validation.records, left_out, order)


def check_settings(recipe: ModelRecipe) -> None:
    """Check what one setting means for another."""
    if isinstance(recipe, Recipe):
        check_connector(recipe.model.connector)
    for which in ("train", "validation"):
        for index, source in enumerate(getattr(recipe.data, which)):
            with inside(f"data.{which}.{index}"):
                get_reader(source.format)
    if all(getattr(recipe.training.parts, name).train == "frozen" for name in type(recipe.training.parts).model_fields):
        bridge = "connector" if isinstance(recipe, Recipe) else "qformer"
        raise SettingsError(
            f"nothing to train: every part is frozen. Set training.parts.{bridge}.train=full", key="training.parts"
        )
    if isinstance(recipe, Recipe):
        check_lora(recipe)
    tower = recipe.model.vision_tower
    if recipe.training.parts.vision_tower.train != "frozen" and tower.dtype != "float32":
        raise SettingsError(
            f"a vision tower that trains cannot be held in {tower.dtype}: small steps are lost in it. Set it to "
            "float32; training.precision says what it computes in.",
            key="model.vision_tower.dtype",
        )
    if not recipe.data.train:
        raise SettingsError("there is nothing to train on: give at least one source", key="data.train")
    check_order(recipe)
    check_cache(recipe)


def check_lora(recipe: Recipe) -> None:
    """Check that adapters which are to train are there, and that the rest of the language model does not train."""
    train = recipe.training.parts.language_model.train
    if train == "full" and recipe.model.language_model.quantize:
        raise SettingsError(
            "a quantised language model cannot be trained in full, only adapters beside it: set "
            "training.parts.language_model.train=lora and model.lora.preset=lora_all, or quantize=null",
            key="model.language_model.quantize",
        )
    if train == "lora" and not recipe.model.lora:
        raise SettingsError(
            "there are no adapters to train: give model.lora a preset, such as model.lora.preset=lora_all",
            key="training.parts.language_model.train",
        )
    if train == "full" and recipe.model.lora:
        raise SettingsError(
            "model.lora adapts a language model that stays as it is: set training.parts.language_model.train=lora, or "
            "model.lora=null to train all of its weights",
            key="training.parts.language_model.train",
        )


class Room(NamedTuple):
    """Positions that a row may take in a language model that has ``limit`` (``None``: any number)."""

    limit: int | None
    for_answer: int

    @classmethod
    def of(cls, recipe: ModelRecipe, which: Which) -> Room:
        """Beside a validation row, a decoder-only model needs room for its own answer."""
        if not isinstance(recipe, Recipe):
            return cls(None, 0)
        config = find_config(recipe.model.language_model, "language_model")
        answers = which == "validation" and not config.is_encoder_decoder
        return cls(position_limit(config), recipe.generation.max_new_tokens if answers else 0)


def _check_room(length: RowLength, room: Room, record: Record) -> None:
    longest = max(length.tokens + room.for_answer, length.decoder_tokens)
    if room.limit is not None and longest > room.limit:
        answer = f" and generation.max_new_tokens {room.for_answer:,}" if room.for_answer else ""
        raise DataError(
            f"{record.where}: the row takes {max(length.tokens, length.decoder_tokens):,} positions{answer}, but the "
            f"language model has {room.limit:,}. Set model.prompt.max_length={room.limit - room.for_answer} (what is "
            "beyond is cut off the text, and counted), or leave the record out."
        )


def _usable(recipe: ModelRecipe, which: Which, processor: AnyProcessor, watch: Watch) -> Usable:
    """Read and measure the records of ``which``, and part those without pictures or targets from the others."""
    data, room = recipe.data, Room.of(recipe, which)
    records = read_sources(data, which)
    lengths: list[RowLength] = []
    left_out = check_images(records)
    BadSamples(len(records), data.bad_limit).add(left_out)
    for record in watch(records, f"checking {which} records"):
        if which == "train" and data.cache is not None:
            check_marks(record, data.cache_views)
        try:
            length = row_length(processor.encode(record, training=True), processor.encoder_decoder)
        except NoTargetError as error:
            if data.no_target == "error":
                message = f"{str(error).rstrip('.')}. To leave such records out, set data.no_target=skip."
                raise NoTargetError(message) from error
            left_out.append(BadSample(record.id, record.where, str(error), counts=False))
            length = RowLength(0, 0, 0)
        _check_room(length, room, record)
        lengths.append(length._replace(words=count_words(record)) if data.group_by_length == "llava" else length)
    usable: Sequence[int] = range(len(records))
    if places := {(bad.id, bad.where) for bad in left_out}:
        usable = [index for index, record in enumerate(records) if (record.id, record.where) not in places]
    ends = [bisect_left(usable, end) for end in (0, *records.ends)]
    sizes = [end - start for start, end in pairwise(ends)]
    return Usable(select(records, usable), [lengths[index] for index in usable], sizes, left_out)
