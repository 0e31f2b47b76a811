"""Answers on disk: a line of JSON for each record, written as they come, so that a killed run goes on where it was.

    OUT/run.json                       what was asked of whom: model, tasks with every setting
    OUT/predictions/xgqa/de.jsonl      {"id", "images", "prompt", "answer", "truths", "language", "meta"} or "error";
                                       of what is compared {"id", "images", "texts", "scores", "scored", "meta"};
                                       of retrieval {"id", "images", "texts", "text_rank", "image_ranks"}
    OUT/results.json, OUT/report.html  made of these alone

Further processes write ``de.1.jsonl`` and so on beside the first one's ``de.jsonl``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator

from sightbridge.config.load import atomic_file
from sightbridge.data.marks import drawing, located
from sightbridge.data.readers.benchmarks.matches import Comparison
from sightbridge.data.record import Record
from sightbridge.errors import DataError, ImageError
from sightbridge.evaluation.metrics import Row
from sightbridge.evaluation.task import Part
from sightbridge.images.load import ImageSource, describe_source
from sightbridge.visual_prompts import Mark

FOLDER = "predictions"
MARK = TypeAdapter(Mark)
ANCHOR = 336
"""Side of the pictures that widths of marks are drawn for on a page: that of LLaVA's tower."""
KEPT_META = (
    *("type", "tags", "rating", "label", "image_id", "question_type", "answer_type", "question", "question_id"),
    *("objects", "synonyms"),
)
"""Of an item's ``meta``: what metrics and reports look at."""


class _Line(BaseModel):
    """What every line has. Lines may be edited by hand before they are measured again."""

    model_config = ConfigDict(strict=True, extra="allow")
    id: str
    images: list[str] = []
    meta: dict[str, Any] = {}

    @field_validator("meta")
    @classmethod
    def _tags_are_names(cls, meta: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(meta.get("tags", []), list):
            raise ValueError("'tags' should be a list")
        return meta


class _Answer(_Line):
    answer: str
    truths: list[str]
    prompt: str = ""
    language: str = "en"


class _Match(_Line):
    texts: list[str]
    scores: list[list[float]]
    scored: dict[str, Any] = {}


class _Ranks(_Line):
    texts: list[str] = []
    text_rank: int
    image_ranks: list[int]


class _Failed(_Line):
    error: str


FORMS: dict[str, type[_Line]] = {"error": _Failed, "answer": _Answer, "scores": _Match, "text_rank": _Ranks}
"""What a line looks like, by a key that only it has."""


def file_of(part: Part, out: Path, process: int = 0) -> Path:
    """The file that a process writes a part's answers to."""
    stem = f"{part.task.name}/{part.name or 'all'}"
    return out / FOLDER / (f"{stem}.{process}.jsonl" if process else f"{stem}.jsonl")


def files_of(part: Part, out: Path) -> list[Path]:
    """The files of all processes that answered a part."""
    first = file_of(part, out)
    others = [path for path in first.parent.glob(f"{first.stem}.*.jsonl") if path.suffixes[-2][1:].isdigit()]
    return [path for path in [first, *sorted(others)] if path.is_file()]


def line_of(record: Record, language: str, answer: str | None, error: str | None = None) -> dict[str, Any]:
    """What is kept of a record and the answer to it."""
    truths = record.meta.get("references") or record.meta.get("answers") or [record.turns[-1].text]
    asked = next((turn.text or "" for turn in reversed(record.turns) if turn.role == "user"), "")
    line = {
        "id": record.id,
        "images": [describe_source(image) for image in record.images],
        "prompt": asked,
        "answer": answer,
        "truths": [text for text in truths if text is not None],
        "language": language,
        "meta": {key: record.meta[key] for key in KEPT_META if key in record.meta},
    }
    marks = [_written(mark) for mark in record.marks] if answer is not None else []
    return line | ({"marks": marks} if marks else {}) | ({"error": error} if error else {})


def _written(mark: Mark) -> dict[str, Any]:
    return asdict(located(mark))


def marked_pictures(line: dict[str, Any], anchor: int = ANCHOR) -> Iterator[ImageSource]:
    """The pictures of a line that are still there, with the marks that the model saw on them.

    ``anchor``: as of ``Drawing.on``; the model's own is not kept, so lines may be a little wider or narrower here.

    Raises ``DataError`` for marks that are none.
    """
    try:
        marks = tuple(MARK.validate_python(mark) for mark in line.get("marks", ()))
    except (ValidationError, TypeError) as error:
        raise DataError(f"the marks of the record '{line['id']}' were damaged: {error}.") from error
    record = Record(str(line["id"]), tuple(line["images"]), (), marks=marks)
    for place, image in enumerate(record.images):
        with suppress(ImageError):
            yield drawing(record, place).on(image, anchor)


def match_line(
    item: Comparison,
    scores: Sequence[Sequence[float]] | None,
    error: str | None = None,
    scored: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What is kept of a comparison and its scores, a list per picture with one for every text; ``scored`` says how."""
    line = {
        "id": item.id,
        "images": [str(image) for image in item.images],
        "texts": list(item.texts),
        "scores": scores,
        "scored": dict(scored),
        "meta": {key: item.meta[key] for key in KEPT_META if key in item.meta},
    }
    return line | ({"error": error} if error else {})


def rank_line(record: Record, ranks: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a picture's captions and their ranks."""
    line = {"id": record.id, "images": [describe_source(image) for image in record.images]}
    return line | {"texts": list(record.meta["references"])} | ranks


@contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """Open a file of answers to write more of them; half a line that a killed run left is taken away first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        with path.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    with path.open("a", encoding="utf-8", errors="replace") as file:  # half a character in a record stops no run
        yield file


def write_lines(file: TextIO, lines: Iterable[dict[str, Any]]) -> None:
    """Append lines and hand them to the system at once."""
    file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    file.flush()


def read_lines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the lines of several files, but half a last one; raises ``DataError`` for one that is damaged.

    Of several lines of one record the last answer holds: a record without one is tried again by the next run.
    """
    return [kept.line for kept in _read(paths)[0]]


def settle(paths: Sequence[Path]) -> None:
    """Leave one line of every record, the one that holds, in the place of its first. A file is replaced as a whole, and
    only if there is something to be left out."""
    kept, counts = _read(paths)
    for path in paths:
        own = [one.text for one in kept if one.path == path]
        if len(own) < counts[path]:
            with atomic_file(path) as file:
                file.writelines(own)


@dataclass
class _Kept:
    path: Path
    text: str
    line: dict[str, Any]


def _read(paths: Iterable[Path]) -> tuple[list[_Kept], Counter[Path]]:
    """The line of each record that holds, with the file that its first one is in; and how many each file has."""
    kept: dict[str, _Kept] = {}
    counts = Counter[Path]()
    for path in paths:
        for number, text in whole_lines(path):
            try:
                line = _checked(json.loads(text))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not a line of answers: {error}.") from error
            counts[path] += 1
            known = kept.setdefault(line["id"], _Kept(path, text, line))
            if "error" in known.line or "error" not in line:
                known.text, known.line = text, line
    return list(kept.values()), counts


def whole_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a file but half a last one; they end with a line feed alone, which JSON has no other use
    for."""
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if text.endswith(b"\n"):
                try:
                    yield number, text.decode()
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}, line {number}: not UTF-8 text ({error.reason}).") from error


def _checked(line: Any) -> dict[str, Any]:
    """The line with everything that its kind has; raises ``ValueError`` for anything else."""
    if not isinstance(line, dict) or not (form := next((FORMS[key] for key in FORMS if key in line), None)):
        raise ValueError(f"expected an object with one of {', '.join(FORMS)}")
    try:
        return form.model_validate(line).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def to_row(line: dict[str, Any], clean: Callable[[str], str]) -> Row:
    """Make what metrics measure of a line without an error."""
    meta = line["meta"]
    if "scores" in line:
        return Row(line["id"], meta=meta, scores=tuple(map(tuple, line["scores"])))
    if "text_rank" in line:
        return Row(line["id"], meta=line)
    return Row(line["id"], clean(line["answer"]), tuple(line["truths"]), line["language"], meta)
