"""A conversation about pictures with a model: its turns, its pictures, and as much of both as the model can take in.

    chat = Chat(model, processor, ["photo.jpg"])
    chat.ask("What is in the picture?")
    for piece in chat.stream("And what is left of it?"):
        print(piece, end="")

Nothing in here knows a terminal or a web page.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Generator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, TypeGuard

import torch
from torch import Tensor

from sightbridge.batch import Batch
from sightbridge.config.generation import GenerationSettings
from sightbridge.config.problems import validate
from sightbridge.config.yaml_tree import Given
from sightbridge.data.feature_store import FeatureStore, View, Views
from sightbridge.data.processor import Processor, prompt_record
from sightbridge.data.record import Record
from sightbridge.errors import DataError, SettingsError
from sightbridge.generation.answer import encode_images, stream_batch
from sightbridge.generation.pointing import point_at
from sightbridge.images.load import ImageSource, describe_source, image_key, load_image, read_bytes
from sightbridge.models.context import context_length
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.text.template import PromptTemplate, RoleFormat
from sightbridge.text.turns import IMAGE_MARKER, Turn, as_text
from sightbridge.visual_prompts import Mark, draw

LONGEST_ANSWER = 512
"""Without other settings, answers are cut after so many tokens (as MiniGPT4Qwen's are), or after half the context."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that was shown. ``path`` is where it came from, if that was a file; its bytes are held all the same.

    ``marks`` are drawn on it already: ``<bbox>`` in a question is the phrase of one.
    """

    name: str
    source: ImageSource
    path: Path | None = None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A question, its answer, and the pictures that came with the question: one marker in it for each.

    ``stopped``: the answer was ended by somebody before the model did.
    """

    question: str
    answer: str
    pictures: tuple[Picture, ...] = ()
    stopped: bool = False


class Chat:
    """A conversation with one model.

    A picture belongs to the question it came with; one that was added since waits for the next question. Of a
    conversation that has grown too long, the model is shown the newest exchanges that fit, whole ones only. The
    pictures of those left out stay in sight: they move to the front of the oldest question that is shown. (The
    reference, MiniGPT4Qwen, counts neither pictures nor the new question and fails when a picture's turn falls out.)

    With a template that writes nothing between turns (captioning, mBLIP) a model cannot tell who said what, so it is
    shown the new question and all pictures, and no earlier exchange; see ``remembers``.

    Args:
        model: decoder-only or encoder-decoder.
        processor: that came with the model. Its greatest length, one of training, does not hold here.
        pictures: to begin with.
        system: system text in place of the model's own; ``None`` keeps that, ``""`` leaves it out.
        settings: how answers are made; by default greedy ones of at most 512 tokens, or half the context.
        context: positions that the model takes; ``None`` reads it from the model's configuration.

    Attributes:
        exchanges: all questions and answers, the oldest first.
        waiting: pictures that go with the next question.
        left_out: how many of the oldest exchanges did not fit when the last question was asked.
        settings: of the next answer.

    Raises:
        SettingsError: the template has no place for a system text, or the settings ask for several answers.
        ImageError: a picture cannot be opened.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        processor: Processor,
        pictures: Sequence[ImageSource] = (),
        *,
        system: str | None = None,
        settings: GenerationSettings | None = None,
        context: int | None = None,
    ) -> None:
        self.model = model
        self.context = context or context_length(model.language_model.config)
        self.processor = _with_prompt(processor, max_length=None, max_answer_length=None)
        if system is not None:
            self.set_system(system)
        self.default_settings = settings or GenerationSettings(
            max_new_tokens=max(1, min(LONGEST_ANSWER, self.context // 2))
        )
        self.settings = _check_settings(self.default_settings)
        self.exchanges: list[Exchange] = []
        self.waiting: list[Picture] = []
        self.left_out = 0
        self._features = _Features(model, self.processor)
        self._stopping = Event()
        for picture in pictures:
            self.add_picture(picture)

    @property
    def remembers(self) -> bool:
        """Whether the template tells turns apart, so that earlier ones can be shown."""
        return tells_turns_apart(self.processor.template)

    @property
    def room(self) -> int:
        """Tokens that a prompt may take: a decoder-only model's context holds the answer as well."""
        return self.context if self.processor.encoder_decoder else self.context - self.settings.max_new_tokens

    @property
    def pictures(self) -> list[Picture]:
        """Every picture, in the order in which they were shown, those that wait last."""
        return [*_pictures_of(self.exchanges), *self.waiting]

    @property
    def marks(self) -> list[Mark]:
        """The marks of all pictures, in the order of these: ``<bbox0>`` in a question is the first one."""
        return [mark for picture in self.pictures for mark in picture.marks]

    @property
    def system(self) -> str:
        """The system text that the model is given, its template's own if no other was set."""
        own = self.processor.prompt_settings.system
        return self.processor.template.default_system if own is None else own

    def set_system(self, text: str | None) -> None:
        """Give another system text; ``None`` means the template's. Raises ``SettingsError``."""
        template = self.processor.template
        if text and not takes_system(template):
            raise SettingsError(f"the model's prompt template '{template.name}' has no place for a system text")
        self.processor = _with_prompt(self.processor, system=text)

    def add_picture(self, source: ImageSource) -> Picture:
        """Show a picture with the next question. Raises ``ImageError`` if it cannot be opened."""
        path = Path(source).expanduser() if _is_file(source) else None
        name = describe_source(path or source)
        held = read_bytes(path, name) if path else source
        load_image(held, name=name)
        picture = Picture(name, held, path)
        self.waiting.append(picture)
        return picture

    def remove_picture(self, number: int) -> Picture:
        """Take picture ``number`` of ``pictures``, counted from 1, out of the conversation; what was said stays.

        Raises ``DataError`` if there is none.
        """
        picture = self.picture(number)
        for index, exchange in enumerate(self.exchanges):
            if picture in exchange.pictures:
                self.exchanges[index] = _without_picture(exchange, exchange.pictures.index(picture))
                return picture
        self.waiting.remove(picture)
        return picture

    def picture(self, number: int) -> Picture:
        """Picture ``number`` of ``pictures``, counted from 1. Raises ``DataError`` if there is none."""
        count = len(self.pictures)
        if not 1 <= number <= count:
            there = f"there are {count}, counted from 1" if count else "there is none"
            raise DataError(f"there is no picture {number}; {there}.")
        return self.pictures[number - 1]

    def mark(self, number: int, marks: Sequence[Mark]) -> Picture:
        """Draw marks on picture ``number``: the model sees it so from now on, and earlier questions about it too.

        Line widths are in pixels of the picture as the model sees it; what is random about a mark is the same every
        time. Raises ``DataError`` if there is no such picture, or for a box outside of it.
        """
        before = self.picture(number)
        anchor = self.processor.image_settings.anchor
        drawn = draw(load_image(before.source, name=before.name), marks, random.Random(0), anchor=anchor)
        after = Picture(before.name, drawn, marks=(*before.marks, *marks))
        self.waiting = [after if picture is before else picture for picture in self.waiting]
        for index, exchange in enumerate(self.exchanges):
            pictures = tuple(after if picture is before else picture for picture in exchange.pictures)
            self.exchanges[index] = replace(exchange, pictures=pictures)
        return after

    def clear(self) -> None:
        """Forget what was said. The pictures stay: they go with the next question."""
        self.waiting = self.pictures
        self.exchanges = []
        self.left_out = 0

    def configure(self, **changes: Any) -> None:
        """Change generation settings. A temperature, top_p or top_k means to sample, unless ``sample`` says otherwise.

        Raises ``SettingsError`` for a setting that is unknown or wrong.
        """
        if changes.keys() & {"temperature", "top_p", "top_k"}:
            changes = {"sample": True, **changes}
        options = self.settings.model_dump() | changes
        tree = Given({name: _given(value) for name, value in options.items()}, "settings")
        self.settings = _check_settings(validate(GenerationSettings, tree))

    def ask(self, question: str) -> str:
        """Answer a question and remember both. Errors as for ``stream``."""
        return "".join(self.stream(question))

    def stream(self, question: str) -> Generator[str, None, None]:
        """Answer a question in pieces of text, as they are written; a beam search gives a single piece.

        Question and answer become part of the conversation when the iterator ends or is closed. An answer that was
        stopped is remembered as far as it was given out; if that is nothing, the question was never asked.

        Raises:
            DataError: the question is too long by itself, its markers and the pictures that wait disagree, or it says
                ``<bbox>`` where there is no such mark.
        """
        asked = self._exchange(question)
        batch = self._prompt(asked)
        self._stopping.clear()
        return self._answer(batch, asked)

    def stop(self) -> None:
        """End the answer that is being written, after the current token; for signal handlers and other threads."""
        self._stopping.set()

    def _exchange(self, question: str) -> Exchange:
        """The new question, every picture that waits with its marker."""
        markers = question.count(IMAGE_MARKER)
        if markers and markers != len(self.waiting):
            raise DataError(
                f"'{IMAGE_MARKER}' in a question marks the place of a picture that was added since the last one: "
                f"{len(self.waiting)} wait, but the question has {markers} marker(s). Without any, pictures go first."
            )
        record = prompt_record([picture.source for picture in self.waiting], point_at(question, self.marks))
        return Exchange(record.turns[0].text or "", "", tuple(self.waiting))

    def _prompt(self, asked: Exchange) -> Batch:
        """What the model is shown; finds out how much that is."""
        earlier = len(self.exchanges)

        def fits(left_out: int) -> bool:
            return self._length(asked, left_out) <= self.room

        first = 0 if self.remembers else earlier
        left_out = first + bisect_left(range(first, earlier), True, key=fits)
        if left_out == earlier and not fits(earlier):
            raise DataError(self._too_long(asked))
        self.left_out = left_out
        self._features.keep(self.pictures)
        record = self._record(asked, left_out)
        row = self.processor.prepare(record, for_generation=True, features=self._features)
        return self.processor.collate([row])

    def _record(self, asked: Exchange, left_out: int) -> Record:
        """The conversation without its oldest exchanges, whose pictures move to the oldest that is left."""
        shown = [*self.exchanges[left_out:], asked]
        moved = _pictures_of(self.exchanges[:left_out])
        shown[0] = replace(
            shown[0],
            question=f"{IMAGE_MARKER}\n" * len(moved) + shown[0].question,
            pictures=(*moved, *shown[0].pictures),
        )
        turns = []
        for exchange in shown:  # a model may write a marker too, but no picture goes there
            turns += [
                Turn("user", exchange.question),
                Turn("assistant", as_text(exchange.answer)),
            ]
        sources = tuple(picture.source for picture in _pictures_of(shown))
        return Record("chat", sources, (*turns[:-1], Turn("assistant", None)))

    def _length(self, asked: Exchange, left_out: int) -> int:
        """Tokens of the prompt, pictures counted with all of theirs."""
        return len(self.processor.encode(self._record(asked, left_out), for_generation=True).input_ids)

    def _too_long(self, asked: Exchange) -> str:
        length, count = self._length(asked, len(self.exchanges)), len(self.pictures)
        tokens = self.processor.tokens_per_image
        pictures = f" and {count} picture(s) of {tokens} tokens each" if count else ""
        answer, shorter = (
            f" (context {self.context}, answer {self.context - self.room})",
            ", set a smaller max_new_tokens",
        )
        if self.processor.encoder_decoder:
            answer = shorter = ""
        return (
            f"the question{pictures} take {length} tokens even without any earlier turn, but there is room for "
            f"{max(self.room, 0)}{answer}. Ask in fewer words{', remove a picture' if count else ''}{shorter}."
        )

    def _answer(self, batch: Batch, asked: Exchange) -> Generator[str, None, None]:
        said, is_over = "", False
        try:
            for piece in stream_batch(self.model, self.processor, batch, self.settings, self._stopping):
                said += piece
                yield piece
            is_over = True
        except GeneratorExit:
            self._stopping.set()
            is_over = True
            raise
        finally:
            stopped = self._stopping.is_set()
            if is_over and (said or not stopped):
                self.exchanges.append(replace(asked, answer=said, stopped=stopped))
                self.waiting = [picture for picture in self.waiting if picture not in asked.pictures]


class _Features(FeatureStore):
    """Features of the pictures of a conversation, made when one is first asked about and kept while it is there."""

    def __init__(self, model: VisionLanguageModel, processor: Processor) -> None:
        super().__init__(Views(processor.image_settings.model_copy(update={"augment": "none"})))
        self._model = model
        self._kept: dict[tuple[str, str], Tensor] = {}

    def __getitem__(self, view: View) -> Tensor:
        key = image_key(view.source), view.name
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = encode_images(self._model, self.views.open(view)[None])[0]
        return self._kept[key]

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, pictures: Sequence[Picture]) -> None:
        """Forget all others."""
        keys = {image_key(picture.source) for picture in pictures}
        self._kept = {key: features for key, features in self._kept.items() if key[0] in keys}


def takes_system(template: PromptTemplate) -> bool:
    """Whether a template has a place for a system text: marks around it, or one of its own."""
    return template.from_tokenizer or template.system != RoleFormat() or bool(template.default_system)


def tells_turns_apart(template: PromptTemplate) -> bool:
    """Whether a template writes something before every answer and before every question after the first."""
    user, assistant = template.user, template.assistant
    before_answer = user.end + user.after + assistant.open + assistant.header + assistant.lead
    before_question = assistant.end + assistant.after + template.between + user.open + user.header
    return template.from_tokenizer or bool(before_answer.strip() and before_question.strip())


def _with_prompt(processor: Processor, **changes: Any) -> Processor:
    """The same processor with other prompt settings; the given one stays as it is."""
    changed = copy(processor)
    changed.prompt_settings = processor.prompt_settings.model_copy(update=changes)
    return changed


def _check_settings(settings: GenerationSettings) -> GenerationSettings:
    if settings.num_answers > 1:
        raise SettingsError("num_answers: a conversation goes on from one answer; set it to 1", key="num_answers")
    return settings


def _given(value: Any) -> Given:
    return Given([_given(item) for item in value] if isinstance(value, list | tuple) else value, "settings")


def _is_file(source: ImageSource) -> TypeGuard[str | Path]:
    return isinstance(source, Path) or (isinstance(source, str) and not source.startswith("data:"))


def _pictures_of(exchanges: Sequence[Exchange]) -> list[Picture]:
    return [picture for exchange in exchanges for picture in exchange.pictures]


def _without_picture(exchange: Exchange, place: int) -> Exchange:
    """Take a picture out, with its marker and the line break that set it off."""
    parts, pictures = exchange.question.split(IMAGE_MARKER), exchange.pictures
    after = IMAGE_MARKER.join(parts[place + 1 :]).removeprefix("\n")
    question = IMAGE_MARKER.join(parts[: place + 1]) + after
    return replace(exchange, question=question, pictures=pictures[:place] + pictures[place + 1 :])
