"""Answers in words: to one question, to many records at once, and piece by piece while they are written."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Any

from torch import Tensor

from sightbridge.batch import Batch
from sightbridge.config.generation import GenerationSettings
from sightbridge.config.problems import validate
from sightbridge.config.yaml_tree import Given
from sightbridge.data.feature_store import FeatureStore, keep_in_memory
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.errors import SettingsError
from sightbridge.generation.generate import GREEDY, generate, in_evaluation_mode
from sightbridge.images.load import ImageSource
from sightbridge.models.vlm import VisionLanguageModel

WINDOW = 8
"""``answer_batch`` looks so many batches ahead for rows of one length and for pictures that come again."""

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""A byte of UTF-8 that SentencePiece found no piece for."""
Images = ImageSource | Sequence[ImageSource]


def ask(model: VisionLanguageModel, processor: Processor, image: Images, question: str = "", **settings: Any) -> str:
    """Ask a question about a picture (or several), as in ``ask(model, processor, "photo.jpg", "What is it?")``.

    Args:
        model: as ``sightbridge.load`` returns it.
        processor: that came with the model.
        image: file, ``data:`` URL, bytes, Pillow picture or pixels; a list for several, an empty one for none.
        question: text; ``<image>`` in it marks where a picture goes, otherwise pictures come first.
        settings: fields of ``GenerationSettings``, such as ``max_new_tokens=20``.

    Raises:
        SettingsError: a setting is unknown or wrong.
        DataError: markers and pictures disagree, or the prompt is too long.
        ImageError: a picture cannot be opened.
    """
    return answer(model, processor, image, question, _read_settings(settings))


def answer(
    model: VisionLanguageModel,
    processor: Processor,
    images: Images,
    question: str = "",
    settings: GenerationSettings = GREEDY,
) -> str:
    """Answer one question. Arguments and errors as for ``ask``; several answers come from ``answers``."""
    _check_one_answer(settings)
    return answers(model, processor, images, question, settings)[0]


def answers(
    model: VisionLanguageModel,
    processor: Processor,
    images: Images,
    question: str = "",
    settings: GenerationSettings = GREEDY,
) -> list[str]:
    """Give ``settings.num_answers`` answers to one question, of a beam search the best first."""
    return _answer(model, processor, processor.prompt(images, question), settings)


def answer_batch(
    model: VisionLanguageModel,
    processor: Processor,
    records: Sequence[Record],
    settings: GenerationSettings = GREEDY,
    batch_size: int = 8,
) -> list[str]:
    """Answer the last question of every record; an answer that stands there already is not looked at.

    The answers are those that the records would get one by one, in the order of the records. Records of about one
    length are taken together, and a picture that several nearby records ask about goes through the tower once.

    Raises:
        DataError, ImageError: naming the first record that cannot be used.
    """
    _check_one_answer(settings)
    texts: dict[int, str] = {}
    for start in range(0, len(records), WINDOW * batch_size):
        window = range(start, min(start + WINDOW * batch_size, len(records)))
        lengths = {i: len(processor.encode(records[i], for_generation=True).input_ids) for i in window}
        features = keep_in_memory(
            (records[i] for i in window), processor.image_settings, lambda p: encode_images(model, p), batch_size
        )
        in_order = sorted(window, key=lambda i: lengths[i])
        for first in range(0, len(in_order), batch_size):
            chosen = in_order[first : first + batch_size]
            batch = _collate(processor, [records[i] for i in chosen], features)
            texts.update(zip(chosen, _answer(model, processor, batch, settings), strict=True))
    return [texts[i] for i in range(len(records))]


def stream(
    model: VisionLanguageModel,
    processor: Processor,
    images: Images,
    question: str = "",
    settings: GenerationSettings = GREEDY,
) -> Generator[str, None, None]:
    """Answer one question in pieces of text, as they are written; put together they are what ``answer`` returns.

    A piece is given out once nothing that follows can change it. The tokens are made in a thread, which ends with the
    iterator, also if that is closed early; what goes wrong in it is raised here.

    Raises:
        SettingsError: for beam search, whose answer is known at its end only, and for several answers.
    """
    _check_one_answer(settings)
    if settings.num_beams > 1:
        raise SettingsError("A beam search cannot be streamed: set num_beams to 1.", key="num_beams")
    return stream_batch(model, processor, processor.prompt(images, question), settings)


def stream_batch(
    model: VisionLanguageModel,
    processor: Processor,
    batch: Batch,
    settings: GenerationSettings = GREEDY,
    stopping: Event | None = None,
) -> Generator[str, None, None]:
    """Answer a batch of one prompt as ``stream`` does; the answer of a beam search comes in one piece, at its end.

    ``stopping``, set from a signal handler or another thread, ends the answer after the token that is being made.
    """
    stops = [*processor.stop_strings, *settings.stop]
    sent, ids = "", []
    for ids in _steps(model, processor, batch, settings, stopping or Event()):
        if settings.num_beams > 1:  # what is best so far may not begin what is best in the end
            continue
        whole = without_open_bytes(ids, processor.tokenizer)
        piece = settled(processor.decode([whole], settings.stop)[0], stops)[len(sent) :]
        if piece:
            yield piece
            sent += piece
    if rest := processor.decode([ids], settings.stop)[0][len(sent) :]:
        yield rest


def without_open_bytes(ids: list[int], tokenizer: Any) -> list[int]:
    """Leave out a run of byte tokens at the end, as in a SentencePiece vocabulary.

    All of a run become replacement characters if it is no UTF-8 as a whole, even those that were letters before.
    """
    end = len(ids)
    while end and (ids[end - 1] in tokenizer.all_special_ids or BYTE_TOKEN.fullmatch(_token(ids[end - 1], tokenizer))):
        end -= 1
    return ids[:end]


def _token(token_id: int, tokenizer: Any) -> str:
    return tokenizer.convert_ids_to_tokens(token_id) or ""  # rows of the head beyond the vocabulary have no token


def settled(text: str, stops: Sequence[str]) -> str:
    """The part of an unfinished text that will not change: no half character, beginning of a stop text, space."""
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    beginnings = [stop[:n] for stop in stops for n in range(1, len(stop))]
    # at the very front, the text has lost the spaces that a stop text may begin with
    held = [len(part.lstrip()) for part in beginnings if text.endswith(part) or text == part.lstrip()]
    return text[: len(text) - max(held, default=0)].rstrip()


def _steps(
    model: VisionLanguageModel, processor: Processor, batch: Batch, settings: GenerationSettings, stopping: Event
) -> Generator[list[int], None, None]:
    """The ids of one row so far, after every step of a generation that runs in a thread, and once more at its end."""
    steps: SimpleQueue[list[int] | None] = SimpleQueue()
    closed = Event()

    def watch(ids: Tensor) -> bool:
        steps.put(ids[0].tolist())
        return closed.is_set() or stopping.is_set()

    with ThreadPoolExecutor(1, "sightbridge-stream") as pool:  # leaving it waits for the thread
        done = pool.submit(generate_ids, model, processor, batch, settings, watch)
        done.add_done_callback(lambda _: steps.put(None))
        try:
            while (ids := steps.get()) is not None:
                yield ids
            yield done.result()[0].tolist()
        finally:
            closed.set()


def _answer(model: VisionLanguageModel, processor: Processor, batch: Batch, settings: GenerationSettings) -> list[str]:
    ids = generate_ids(model, processor, batch, settings)
    return processor.decode(ids, settings.stop)


def generate_ids(
    model: VisionLanguageModel, processor: Processor, batch: Batch, settings: GenerationSettings, watch: Any = None
) -> Tensor:
    """Generate with what ends an answer in the processor's prompt template as well."""
    stops = [*processor.stop_strings, *settings.stop]
    tokenizer = processor.tokenizer
    return generate(
        model,
        batch,
        settings.model_copy(update={"stop": stops}),
        eos_ids=[*processor.eos_ids, *stop_ids(stops, tokenizer)],
        pad_id=tokenizer.pad_token_id,
        tokenizer=tokenizer,
        watch=watch,
    )


def stop_ids(stops: Sequence[str], tokenizer: Any) -> list[int]:
    """The stop texts that are a single token: ends like EOS, so that ``min_new_tokens`` holds them back.

    LAVIS ends OPT's captions by the newline token and keeps it out of their first ``min_length`` tokens.
    """
    encoded = [(stop, tokenizer(stop, add_special_tokens=False)["input_ids"]) for stop in stops]
    return [ids[0] for stop, ids in encoded if len(ids) == 1 and stop in tokenizer.decode(ids)]


def _collate(processor: Processor, records: Sequence[Record], features: FeatureStore) -> Batch:
    """Make a batch to generate from, its pictures looked up in ``features``."""
    rows = [processor.prepare(record, for_generation=True, features=features) for record in records]
    return processor.collate(rows, "right" if processor.encoder_decoder else "left")


def encode_images(model: VisionLanguageModel, pixels: Tensor) -> Tensor:
    """Features (n, S, C) of pictures (n, 3, H, W), without dropout, on the model's device."""
    with in_evaluation_mode(model):
        return model.encode_images(pixels.to(model.language_model.model.device))


def _check_one_answer(settings: GenerationSettings) -> None:
    if settings.num_answers > 1:
        raise SettingsError(
            f"num_answers is {settings.num_answers}, but one text is returned here; 'answers' returns several.",
            key="num_answers",
        )


def _read_settings(options: dict[str, Any]) -> GenerationSettings:
    """Settings from keyword arguments, checked and complained about like those of a recipe."""

    def given(value: Any) -> Given:
        return Given([given(item) for item in value] if isinstance(value, list | tuple) else value, "ask")

    return validate(GenerationSettings, Given({name: given(value) for name, value in options.items()}, "ask"))
