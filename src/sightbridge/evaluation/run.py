"""Evaluating a model: every task's records answered, on disk as they come, then measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sightbridge.config.load import write_atomically
from sightbridge.data.processor import Processor
from sightbridge.data.qformer_processor import QFormerProcessor
from sightbridge.data.readers.benchmarks.matches import Comparison
from sightbridge.data.record import Record
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.evaluation.metrics import CAPTION_METRICS
from sightbridge.evaluation.predictions import (
    appending,
    file_of,
    files_of,
    line_of,
    match_line,
    rank_line,
    read_lines,
    write_lines,
)
from sightbridge.evaluation.retrieval import rank_pairs
from sightbridge.evaluation.task import Item, Part
from sightbridge.evaluation.tokenize import segmenter_version
from sightbridge.generation.answer import answer_batch
from sightbridge.images.load import ImageSource
from sightbridge.models.qformer_pretraining import QFormerPretraining
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.scoring.scorer import Scorer

RUN = "run.json"
SHOWN = 3
"""So many of the missing files are named in a message."""


@dataclass(frozen=True)
class Work:
    """A part, and what it is made of."""

    part: Part
    items: Sequence[Item]


def read_work(parts: Sequence[Part], data: Path, limit: int | None = None, allow_missing: bool = False) -> list[Work]:
    """Read the records of every part, and see that all files are there, before any model is loaded.

    Args:
        parts: of tasks.
        data: the folder that their paths start from.
        limit: the first so many records of each part.
        allow_missing: whether pictures may be missing; their records are then counted as errors.

    Raises ``DataError`` with everything that is missing and where to get it, or for the first wrong row.
    """
    missing = [part for part in parts if not part.path(data).is_file()]
    if missing:
        lines = [f"{part.label}: there is no {part.path(data)}" for part in missing]
        wanted = {part.task.name: part.task.settings.get for part in missing}
        lines += [f"get for {name}: {get}" for name, get in wanted.items()]
        raise DataError("\n  ".join(["annotation files are missing", *lines]))
    for part in parts:
        segmenters(part)
    work = [Work(part, part.read(data, limit)) for part in parts]
    if not allow_missing:
        for one in work:
            _check_pictures(one, data)
    return work


def _check_pictures(work: Work, data: Path) -> None:
    files = {Path(image) for item in work.items for image in item.images if _is_file_name(image)}
    gone = sorted(str(path) for path in files if not path.is_file())
    if gone:
        named = ", ".join(gone[:SHOWN]) + (", ..." if len(gone) > SHOWN else "")
        raise DataError(
            f"{work.part.label}: {len(gone)} of {len(files)} pictures are missing from {work.part.images(data)} "
            f"({named}). Get for it: {work.part.task.settings.get}. With --allow-missing they are left out and counted."
        )


def _is_file_name(image: ImageSource) -> bool:
    return isinstance(image, Path) or (isinstance(image, str) and not image.startswith("data:"))


def segmenters(part: Part) -> dict[str, str]:
    """What parts the captions of a part into words, with its version: of a language that is written without spaces.

    Raises ``SettingsError`` if it is not installed.
    """
    if not part.task.settings.languages or CAPTION_METRICS.isdisjoint(part.task.settings.metrics):
        return {}
    version = segmenter_version(part.name)
    return {part.name: version} if version else {}


def begin(out: Path, model: str, work: Sequence[Work], limit: int | None, overwrite: bool) -> None:
    """Make the folder of an evaluation, or go on with it if it is the same one.

    Raises ``SettingsError`` if the folder has answers to other questions, or by another model.
    """
    asked = {one.part.task.name: one.part.task.settings.model_dump(mode="json") for one in work}
    description = {"model": model, "limit": limit, "tasks": asked}
    path = out / RUN
    if path.is_file() and not overwrite:
        before = json.loads(path.read_text(encoding="utf-8"))
        if (before["model"], before["limit"]) != (model, limit):
            raise SettingsError(
                f"--out: {out} holds the answers of {before['model']} (limit {before['limit'] or 'none'}), not of "
                f"{model} (limit {limit or 'none'}); choose another folder, or --overwrite to lose those"
            )
        for name in asked.keys() & before["tasks"].keys():
            changed = [key for key, value in asked[name].items() if before["tasks"][name].get(key) != value]
            if changed:
                raise SettingsError(
                    f"--out: {out} holds answers to the task '{name}' with other settings ({', '.join(changed)}); "
                    "choose another folder, or --overwrite to lose those"
                )
        description["tasks"] = before["tasks"] | asked
    elif out.is_dir() and any(out.iterdir()) and not path.is_file():
        raise SettingsError(f"--out: {out} holds something else than an evaluation; choose another folder")
    if overwrite:
        for one in work:
            for file in files_of(one.part, out):
                file.unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def do_part(
    work: Work,
    done_by: Callable[[Part, Sequence[Any]], Iterable[dict[str, Any]]],
    out: Path,
    window: int,
    process: int = 0,
    processes: int = 1,
    on_items: Callable[[int], None] = lambda count: None,
) -> None:
    """Write a line for every item of a part that has none on disk yet, this process' share of them.

    Args:
        work: the part.
        done_by: makes lines of some of its items: ``answering`` or ``matching`` a model.
        out: the folder of the evaluation.
        window: so many items are given to it at a time.
        process: of ``processes``.
        on_items: hears how many more are done, those of an earlier run first.
    """
    done = {line["id"] for line in read_lines(files_of(work.part, out))}
    check_ids(work)
    mine = work.items[process::processes]
    todo = [item for item in mine if item.id not in done]
    if work.part.task.settings.kind == "retrieval":  # everything is ranked among everything, by the first process
        todo, window = list(work.items) if process == 0 and todo else [], max(1, len(work.items))
        for path in files_of(work.part, out) if todo else ():
            path.unlink()
    on_items(len(mine) - len(todo))
    with appending(file_of(work.part, out, process)) as file:
        for start in range(0, len(todo), window):
            chosen = todo[start : start + window]
            write_lines(file, done_by(work.part, chosen))
            on_items(len(chosen))


def answering(
    model: VisionLanguageModel, processor: Processor, batch_size: int
) -> Callable[[Part, Sequence[Record]], Iterable[dict[str, Any]]]:
    """Lines of answers. A record that cannot be used, for its picture or its length, gets one with ``error``."""

    def lines(part: Part, records: Sequence[Record]) -> Iterable[dict[str, Any]]:
        try:
            said = answer_batch(model, processor, records, part.task.settings.generation, batch_size)
        except (ImageError, DataError) as error:  # one of them, so they are answered one by one
            if len(records) == 1:
                return [line_of(records[0], part.language_of(records[0]), None, str(error))]
            return chain.from_iterable(lines(part, [record]) for record in records)
        return [line_of(record, part.language_of(record), text) for record, text in zip(records, said, strict=True)]

    return lines


def matching(scorer: Scorer) -> Callable[[Part, Sequence[Comparison]], Iterable[dict[str, Any]]]:
    """Lines of scores, every picture with every text of a comparison."""

    def lines(part: Part, items: Sequence[Comparison]) -> Iterable[dict[str, Any]]:
        pairs = [(image, text) for item in items for image in item.images for text in item.texts]
        try:
            found = scorer.pairs([image for image, _ in pairs], [text for _, text in pairs], **part.task.settings.score)
        except (ImageError, DataError) as error:
            if len(items) == 1:
                return [match_line(items[0], None, str(error))]
            return chain.from_iterable(lines(part, [item]) for item in items)
        scores = iter(found.tolist())
        return [match_line(item, [[next(scores) for _ in item.texts] for _ in item.images]) for item in items]

    return lines


def retrieving(
    model: QFormerPretraining, processor: QFormerProcessor, batch_size: int
) -> Callable[[Part, Sequence[Record]], Iterable[dict[str, Any]]]:
    """Lines of ranks; all records of a part have to be given at once."""

    def lines(part: Part, records: Sequence[Record]) -> Iterable[dict[str, Any]]:
        ranks = rank_pairs(model, processor, records, batch_size=batch_size, **part.task.settings.score)
        return [rank_line(record, own) for record, own in zip(records, ranks, strict=True)]

    return lines


def check_ids(work: Work) -> None:
    """Raise ``DataError`` for two records of one id: answers are told apart by it."""
    seen: dict[str, str] = {}
    for item in work.items:
        if item.id in seen:
            raise DataError(f"{item.where}: a second record '{item.id}', after {seen[item.id]}.")
        seen[item.id] = item.where


def identity(folder: Path) -> str:
    """What tells a model from another one: where it is, and a hash of its manifest, which has those of its weights."""
    manifest = (folder / "sightbridge.json").read_bytes()
    return f"{folder.resolve()} ({hashlib.sha256(manifest).hexdigest()[:12]})"
