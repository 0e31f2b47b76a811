"""From records to batches: templates, tokenizer and image transform of one model, bundled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sightbridge.batch import IGNORE_INDEX, Batch
from sightbridge.config.model import ImageSettings, PromptSettings
from sightbridge.data.connector_text import ConnectorText
from sightbridge.data.feature_store import FeatureStore
from sightbridge.data.marks import drawing, realise
from sightbridge.data.record import Record
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.images.fast import TRAIN_TRANSFORMS
from sightbridge.images.load import ImageSource, load_image
from sightbridge.images.transforms import ImageTransform
from sightbridge.text.encode import Encoded, NoTargetError, encode
from sightbridge.text.render import as_written, render
from sightbridge.text.template import load_template
from sightbridge.text.turns import IMAGE_MARKER, Turn

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Row:
    """A record made ready: its text as ids, and its n pictures as ``pixels`` (n, 3, H, W) or ``features`` (n, S, C).

    ``asked``: ids of what is asked about each picture, for a connector that reads it. ``segments`` and
    ``decoder_segments``: of a packed row, the number of the record that each position belongs to (see ``packing``).
    """

    id: str
    encoded: Encoded
    pixels: Tensor | None = None
    features: Tensor | None = None
    asked: tuple[list[int], ...] = ()
    segments: list[int] | None = None
    decoder_segments: list[int] | None = None


class Processor:
    """Everything that stands between a record and a model: prompt template, tokenizer, image transform, padding.

    Args:
        tokenizer: of the language model, with a padding token (see ``load_tokenizer``).
        prompt: template, system text, switches, greatest length.
        image: how pictures become pixels.
        tokens_per_image: slots that one picture fills.
        encoder_decoder: whether the language model is one; the template must agree.
        seed: of what is drawn while training (crops, marks, ``split_answer``), together with epoch and record.
        decode: how pictures are opened while training; "fast" gives bytes, which the vision tower normalises.
        connector_text: tokenises the question for a connector that reads it; ``None`` for every other connector.

    Raises ``SettingsError`` for an unknown template or switch, or a template of the wrong kind.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: PromptSettings,
        image: ImageSettings,
        *,
        tokens_per_image: int,
        encoder_decoder: bool,
        seed: int = 0,
        decode: Literal["exact", "fast"] = "exact",
        connector_text: ConnectorText | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.connector_text = connector_text
        self.prompt_settings = prompt
        self.image_settings = image
        self.tokens_per_image = tokens_per_image
        self.encoder_decoder = encoder_decoder
        self.seed = seed
        self.template = load_template(prompt.template)
        self.template.resolve(prompt.switches)
        if self.template.encoder_decoder != encoder_decoder and not self.template.from_tokenizer:
            kinds = {True: "encoder-decoder", False: "decoder-only"}
            raise SettingsError(
                f"prompt template '{prompt.template}' is for {kinds[not encoder_decoder]} language models, "
                f"but this one is {kinds[encoder_decoder]}. Choose another template.",
                key="prompt.template",
            )
        self.transform = ImageTransform(image)
        self.train_transform = TRAIN_TRANSFORMS[decode](image, seed)
        self.eos_ids, self.stop_strings = self._find_ends()

    def __call__(
        self,
        records: Sequence[Record],
        padding_side: PaddingSide | None = None,
        *,
        for_generation: bool = False,
        training: bool = False,
        epoch: int = 0,
    ) -> Batch:
        """Turn records into a batch.

        Args:
            records: one per row.
            padding_side: of the text. By default left for a decoder-only model that is to generate, else right.
            for_generation: leave each conversation open where the last answer goes (an answer there is taken out).
            training: draw augmentations; what is drawn depends on ``seed``, ``epoch`` and the record alone.
            epoch: see ``training``.

        Raises ``DataError`` or ``ImageError``, naming the record, for one that cannot be used.
        """
        rows = [
            self.prepare(record, for_generation=for_generation, training=training, epoch=epoch) for record in records
        ]
        if padding_side is None:
            padding_side = "left" if for_generation and not self.encoder_decoder else "right"
        return self.collate(rows, padding_side)

    def prepare(
        self,
        record: Record,
        *,
        for_generation: bool = False,
        training: bool = False,
        epoch: int = 0,
        features: FeatureStore | None = None,
    ) -> Row:
        """Make one record ready; ``features`` replaces opening its pictures. Arguments and errors as for a call."""
        drawn_in = epoch if features is None else features.views.epoch_seen(epoch)
        record = realise(record, self.seed, drawn_in) if training else record  # words and marks from one draw
        encoded = self.encode(record, for_generation=for_generation, training=training, epoch=epoch)
        images = record.images[: encoded.images]  # the switch drop_cut_images may have dropped the last ones
        if not images:
            return Row(record.id, encoded)
        asked = tuple(self.connector_text.ids(record.turns)[: len(images)]) if self.connector_text else ()
        if features is not None:
            stored = [self._look_up(features, record, i, training, epoch) for i in range(len(images))]
            return Row(record.id, encoded, features=torch.stack(stored), asked=asked)
        pixels = [self._open(source, record, i, training, epoch) for i, source in enumerate(images)]
        return Row(record.id, encoded, pixels=torch.stack(pixels), asked=asked)

    def encode(
        self, record: Record, *, for_generation: bool = False, training: bool = False, epoch: int = 0
    ) -> Encoded:
        """Make ids, slots and labels of a record without opening its pictures. Arguments and errors as for a call."""
        record = realise(record, self.seed, epoch) if training else record
        try:
            rendered = render(
                self.template,
                open_answer(record.turns) if for_generation else record.turns,
                images=len(record.images),
                switches=self.prompt_settings.switches,
                system=self.prompt_settings.system,
                # every epoch draws anew, and two seeds never meet in each other's epochs
                seed=self.seed * 1_000_003 + epoch if training else self.seed,
                record_id=record.id,
                tokenizer=self.tokenizer,
            )
            encoded = encode(
                rendered,
                self.tokenizer,
                self.tokens_per_image,
                max_length=self.prompt_settings.max_length,
                max_answer_length=self.prompt_settings.max_answer_length,
            )
        except DataError as error:
            raise type(error)(f"{record.where}: {error}" if record.where else str(error)) from error
        return self._check_targets(encoded, record, for_generation)

    def encode_written(self, prompt: str, images: int) -> Encoded:
        """Encode a prompt that has all of a template's words in it already; see ``as_written``."""
        rendered = as_written(self.template, prompt, images=images, switches=self.prompt_settings.switches)
        return encode(rendered, self.tokenizer, self.tokens_per_image, max_length=self.prompt_settings.max_length)

    def _check_targets(self, encoded: Encoded, record: Record, for_generation: bool) -> Encoded:
        """Earlier answers are no targets of a prompt, and a row that is no prompt must have some."""
        if for_generation:
            return replace(encoded, labels=[IGNORE_INDEX] * len(encoded.labels), n_target_tokens=0)
        if encoded.n_target_tokens == 0:
            raise NoTargetError(
                f"{record.where or record.id}: nothing to learn in it: its last turn waits for an answer. Give the "
                "answer, or ask for a batch to generate from (for_generation=True)."
            )
        return encoded

    def _open(self, source: ImageSource, record: Record, position: int, training: bool, epoch: int) -> Tensor:
        marks = drawing(record, position, (self.seed, epoch) if training else None)
        try:
            source = marks.on(source, self.image_settings.anchor)
            if training:
                return self.train_transform.open(source, epoch=epoch, record_id=record.id, position=position)
            return self.transform(load_image(source))
        except ImageError as error:
            raise ImageError(f"{record.where or record.id}, picture {position + 1}: {error}") from error

    def _look_up(self, features: FeatureStore, record: Record, position: int, training: bool, epoch: int) -> Tensor:
        """Find what ``_open`` would have opened, already encoded."""
        view = features.views.seen(record, position, training=training, epoch=epoch)
        try:
            return features[view]
        except ImageError as error:
            raise ImageError(f"{record.where or record.id}, picture {position + 1}: {error}") from error

    def collate(self, rows: Sequence[Row], padding_side: PaddingSide = "right") -> Batch:
        """Pad rows to a common length and stack their pictures. The decoder's labels are always padded right.

        The first position of a decoder-only row has nothing to be predicted from: its label is ignored, whichever
        side the padding is on, so that a row's loss does not depend on the rows beside it.
        """
        pad_id = self.tokenizer.pad_token_id
        encoded = [row.encoded for row in rows]
        has_labels = any(row.n_target_tokens for row in encoded)
        labels = None
        if has_labels and self.encoder_decoder:
            labels = pad([row.labels for row in encoded], IGNORE_INDEX, "right")
        elif has_labels:
            labels = pad([[IGNORE_INDEX, *row.labels[1:]] for row in encoded], IGNORE_INDEX, padding_side)
        pixels = [row.pixels for row in rows if row.pixels is not None]
        features = [row.features for row in rows if row.features is not None]
        assert not (pixels and features), "the rows of a batch bring pixels or features, not both"
        segments = [row.segments for row in rows if row.segments is not None]
        assert len(segments) in (0, len(rows)), "either all rows of a batch are packed or none"
        decoder_segments = [row.decoder_segments for row in rows if row.decoder_segments is not None]
        connector_ids, connector_mask = self._collate_asked([ids for row in rows for ids in row.asked])
        return Batch(
            input_ids=pad([row.input_ids for row in encoded], pad_id, padding_side),
            attention_mask=pad([[1] * len(row.input_ids) for row in encoded], 0, padding_side),
            image_slots=pad([row.image_slots for row in encoded], False, padding_side),
            images_per_row=torch.tensor([row.images for row in encoded]),
            pixel_values=torch.cat(pixels) if pixels else None,
            image_features=torch.cat(features) if features else None,
            connector_ids=connector_ids,
            connector_mask=connector_mask,
            segments=pad(segments, 0, padding_side) if segments else None,
            decoder_segments=pad(decoder_segments, 0, "right") if decoder_segments else None,
            labels=labels,
            n_target_tokens=sum(row.n_target_tokens for row in encoded),
            ids=tuple(row.id for row in rows),
        )

    def _collate_asked(self, asked: Sequence[list[int]]) -> tuple[Tensor | None, Tensor | None]:
        """Pad the questions of all pictures and mask the padding, if there is a connector that reads them."""
        if self.connector_text is None or not any(asked):
            return None, None
        ids = pad(asked, self.connector_text.tokenizer.pad_token_id, "right")
        return ids, pad([[1] * len(one) for one in asked], 0, "right")

    def prompt(self, images: ImageSource | Sequence[ImageSource], question: str = "") -> Batch:
        """Make a batch of one prompt about pictures, ready to generate from.

        Without ``<image>`` markers in ``question`` the pictures go in front of it; with them, each takes its place.
        """
        return self([prompt_record(images, question)], for_generation=True)

    def decode(self, ids: Tensor | Sequence[Sequence[int]], stop: Sequence[str] = ()) -> list[str]:
        """Turn generated ids (B, L), without the prompt, into answers: up to the first end, without special tokens.

        An end is an EOS, or one of the texts in ``stop`` or of the prompt template.
        """
        rows = ids.tolist() if isinstance(ids, Tensor) else ids
        answers = []
        for row in rows:
            end = next((i for i, token in enumerate(row) if token in self.eos_ids), len(row))
            # Tidying spaces in front of full stops, which some tokenizers' files ask for, changes what was written.
            text = self.tokenizer.decode(row[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for end_text in (*self.stop_strings, *stop):
                text = text.split(end_text)[0]
            answers.append(text.strip())
        return answers

    def _find_ends(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """What ends an answer: ids of special tokens, and texts that are no single token."""
        special = {str(token): number for number, token in self.tokenizer.added_tokens_decoder.items()}
        eos = self.tokenizer.eos_token_id
        ids = [] if eos is None else [eos]
        ids += [special[stop] for stop in self.template.stop if stop in special and special[stop] != eos]
        return tuple(ids), tuple(stop for stop in self.template.stop if stop not in special)


def prompt_record(images: ImageSource | Sequence[ImageSource], question: str = "") -> Record:
    """Make a record that asks ``question`` about ``images`` (one or several), markers put in front if it has none."""
    sources = tuple(images) if isinstance(images, list | tuple) else (images,)
    if IMAGE_MARKER not in question:
        question = "\n".join([IMAGE_MARKER] * len(sources) + ([question] if question else []))
    return Record("prompt", sources, (Turn("user", question), Turn("assistant", None)))  # type: ignore[arg-type]


def open_answer(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns with an open assistant turn at the end, in place of a last answer if there is one."""
    if turns and turns[-1].role == "assistant":
        return (*turns[:-1], replace(turns[-1], text=None))
    return (*turns, Turn("assistant", None))


def pad(rows: Sequence[Sequence[Any]], value: Any, side: PaddingSide) -> Tensor:
    """Pad lists of numbers to a common length: (B, L)."""
    length = max(len(row) for row in rows)
    filled = []
    for row in rows:
        padding = [value] * (length - len(row))
        filled.append([*padding, *row] if side == "left" else [*row, *padding])
    return torch.tensor(filled)
