"""A conversation as a JSON file: what was said, which pictures were shown when, and how answers were made."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from sightbridge.config.base import Settings
from sightbridge.config.generation import GenerationSettings
from sightbridge.config.load import write_atomically
from sightbridge.errors import DataError
from sightbridge.generation.chat import Chat, Exchange, Picture
from sightbridge.images.load import load_image
from sightbridge.text.turns import IMAGE_MARKER

FORMAT = "sightbridge-chat"
MAX_BYTES = 256 * 2**20
"""Largest file that is read; pictures that were no files are inside it."""


class SavedExchange(Settings):
    """One exchange; ``pictures`` are files (relative ones beside the conversation's) or ``data:`` URLs."""

    question: str
    answer: str
    pictures: list[str] = Field(default_factory=list)
    stopped: bool = False


class SavedChat(Settings):
    """A whole conversation. ``system`` of ``None`` is the template's own system text."""

    format: Literal["sightbridge-chat"] = FORMAT
    version: Literal[1] = 1
    system: str | None = None
    settings: GenerationSettings
    exchanges: list[SavedExchange]
    waiting: list[str] = Field(default_factory=list, description="pictures for the next question")


def save_chat(chat: Chat, path: str | Path) -> Path:
    """Write a conversation to a JSON file, or over an earlier one; returns its path.

    Raises ``DataError`` if the file is something else already, or cannot be written.
    """
    path = Path(path).expanduser().resolve()
    if path.exists():
        _read(path)
    exchanges = [
        SavedExchange(
            question=exchange.question,
            answer=exchange.answer,
            pictures=[_written(picture) for picture in exchange.pictures],
            stopped=exchange.stopped,
        )
        for exchange in chat.exchanges
    ]
    saved = SavedChat(
        system=chat.processor.prompt_settings.system,
        settings=chat.settings,
        exchanges=exchanges,
        waiting=[_written(picture) for picture in chat.waiting],
    )
    try:
        write_atomically(path, json.dumps(saved.model_dump(), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot write the conversation: {error.strerror}.") from error
    return path


def load_chat(chat: Chat, path: str | Path) -> None:
    """Let ``chat`` go on with the conversation in a file: its turns, pictures, system text and settings.

    The model stays; it may be another one than the conversation was held with.

    Raises:
        DataError: the file is missing or is no conversation, or markers and pictures of an exchange disagree.
        ImageError: a picture is no longer there.
        SettingsError: the model's template has no place for the system text.

    After an error ``chat`` is as it was.
    """
    path = Path(path).expanduser().resolve()
    saved = _read(path)
    loaded = Chat(chat.model, chat.processor, system=saved.system, settings=saved.settings, context=chat.context)
    if saved.system is None:
        loaded.set_system(None)
    for exchange in saved.exchanges:
        pictures = tuple(_open(loaded, exchange.pictures, path))
        loaded.exchanges.append(Exchange(exchange.question, exchange.answer, pictures, exchange.stopped))
    waiting = _open(loaded, saved.waiting, path)
    chat.processor, chat.settings = loaded.processor, loaded.settings
    chat.exchanges, chat.waiting, chat.left_out = loaded.exchanges, waiting, 0


def _read(path: Path) -> SavedChat:
    """Read a conversation and check it, all but its pictures."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot read the conversation: {error.strerror}.") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES:,} bytes, so no conversation that was saved here.")
    try:
        saved = SavedChat.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its beginning"
        raise DataError(f"{path}: not a conversation saved by 'sightbridge chat': {place}: {first['msg']}.") from error
    for number, exchange in enumerate(saved.exchanges, start=1):
        markers = exchange.question.count(IMAGE_MARKER)
        if markers != len(exchange.pictures):
            raise DataError(
                f"{path}: question {number} has {markers} '{IMAGE_MARKER}' marker(s), but "
                f"{len(exchange.pictures)} picture(s)."
            )
    return saved


def _open(chat: Chat, written: Sequence[str], path: Path) -> list[Picture]:
    """Open pictures as ``chat`` would, without leaving them there."""
    pictures = [
        chat.add_picture(text if text.startswith("data:") else path.parent / Path(text).expanduser())
        for text in written
    ]
    chat.waiting = []
    return pictures


def _written(picture: Picture) -> str:
    """The picture's file, or, if it never was one, the picture itself."""
    if picture.path is not None:
        return str(picture.path.resolve())
    if isinstance(picture.source, str):
        return picture.source
    file = io.BytesIO()
    load_image(picture.source).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
