"""MiniGPT4Qwen's rows (Coobiw/MPP-LLaVA): what the user says, what is answered, pictures anywhere in what is said.

    one turn        {"image": "a.jpg", "instruction": "<Img><ImageHere></Img> What?", "output": "A bus."}
    several turns   {"image": "a.jpg", "instruction": ["<ImageHere> What?", "Where?"], "output": ["A bus.", "Here."]}
    several images  {"image": ["a.jpg", "b.jpg"], "instruction": "<ImageHere> or <ImageHere>?", "output": "The first."}
    a video         {"video": "a.mkv", "instruction": "<Img><ImageHere></Img> What happens?", "output": "A bus stops."}

``<ImageHere>`` is where a picture goes; ``<Img>`` and ``</Img>`` around it are words like any others. In the place of a
video, a file or a folder of frames, go pictures of it, evenly spread (see ``images.video``). Without ``image`` and
``video`` a row is text alone, without ``output`` it waits for an answer. Without them ``id`` is the row's number and
``language`` is ``en``; every other key is kept in ``meta``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sightbridge.data.readers.rows import Row, find_image, read_rows, take, take_id, take_texts
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.images.load import ImageSource
from sightbridge.images.video import video_frames
from sightbridge.text.turns import IMAGE_MARKER, Turn, as_text

TAG = "<ImageHere>"
KNOWN_KEYS = ("id", "image", "video", "instruction", "output", "language")
FRAMES = 32
"""Pictures of a video, if a source does not say how many (``max_frames`` of MiniGPT4Qwen's videochatgpt data)."""


def read_minigpt4qwen(path: Path, images_folder: Path, frames: int = FRAMES) -> Iterator[Record]:
    """Yield a record for every row of ``path``; pictures and videos are looked up in ``images_folder``.

    Args:
        path: a JSON list, or one object per line.
        images_folder: of relative names.
        frames: pictures of a video.

    Raises ``DataError`` naming file, row and key for a row that is not in the format above, whose lists differ in
    length, or whose tags are not as many as its pictures or videos.
    """
    for number, where, row in read_rows(path):
        yield minigpt4qwen_record(row, images_folder, f"{path.stem}-{number}", where, frames)


def minigpt4qwen_record(row: Row, images_folder: Path, default_id: str, where: str, frames: int = FRAMES) -> Record:
    """Make a record of one row; arguments and errors as for ``read_minigpt4qwen``."""
    shown = _find_shown(row, images_folder, where, frames)
    return Record(
        id=take_id(row, "id", where) or default_id,
        images=tuple(image for images in shown for image in images),
        turns=_read_turns(row, [len(images) for images in shown], where),
        language=take(row, "language", (str,), where, "a language code") if "language" in row else "en",
        meta={key: value for key, value in row.items() if key not in KNOWN_KEYS},
        where=where,
    )


def _find_shown(row: Row, folder: Path, where: str, frames: int) -> list[Sequence[ImageSource]]:
    """The pictures of every tag: one, or those of a video."""
    keys = [key for key in ("image", "video") if row.get(key) is not None]
    if len(keys) > 1:
        raise DataError(f"{where}: has 'image' and 'video'. Give one of them; a video may be a folder of pictures.")
    if not keys:
        return []
    names = take_texts(row, keys[0], where, "a file name or a list of them")
    if keys[0] == "image":
        return [[find_image(name, folder)] for name in names]
    return [video_frames(folder / name, frames) for name in names]


def _read_turns(row: Row, pictures: list[int], where: str) -> tuple[Turn, ...]:
    """The turns, a marker for every picture in place of each tag."""
    said = take_texts(row, "instruction", where, "a text or a list of texts")
    waits = row.get("output") is None
    answers = [] if waits else take_texts(row, "output", where, "a text or a list of texts")
    if not waits and isinstance(row["instruction"], list) != isinstance(row["output"], list):
        raise DataError(f"{where}: 'instruction' and 'output' must both be texts, or both lists of one length.")
    if len(said) != max(len(answers), int(waits)) or not said:
        raise DataError(
            f"{where}: 'instruction' has {len(said)} turn(s), 'output' {len(answers)}. Give an answer for every turn."
        )
    tags = sum(text.count(TAG) for text in said)
    if tags != len(pictures):
        what = "videos in 'video'" if row.get("video") is not None else "pictures in 'image'"
        raise DataError(
            f"{where}: the number of {what} is {len(pictures)}, that of '{TAG}' tags in 'instruction' is {tags}. Give "
            "one tag for every one of them."
        )
    left = iter(pictures)
    turns: list[Turn] = []
    for question, answer in zip(said, answers or [None], strict=True):
        first, *others = as_text(question).split(TAG)  # the letters <image> mean no picture here
        marked = first + "".join(IMAGE_MARKER * next(left) + other for other in others)
        turns += [Turn("user", marked), Turn("assistant", None if answer is None else as_text(answer))]
    return tuple(turns)
