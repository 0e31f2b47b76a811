"""Evaluating a model: every task's records answered, on disk as they come, then measured."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

from pydantic import ValidationError

from sightbridge.config.load import write_atomically
from sightbridge.config.task import TaskSettings
from sightbridge.data.processor import Processor
from sightbridge.data.qformer_processor import QFormerProcessor
from sightbridge.data.readers.benchmarks.matches import Comparison
from sightbridge.data.record import Record
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.evaluation.metrics import CAPTION_METRICS, Row, check_metrics, check_rows
from sightbridge.evaluation.predictions import (
    FOLDER,
    appending,
    file_of,
    files_of,
    line_of,
    match_line,
    rank_line,
    read_lines,
    to_row,
    write_lines,
)
from sightbridge.evaluation.retrieval import rank_pairs
from sightbridge.evaluation.task import Item, Part
from sightbridge.evaluation.tokenize import segmenter_version
from sightbridge.generation.answer import answer_batch
from sightbridge.images.load import ImageSource
from sightbridge.models.qformer_pretraining import QFormerPretraining
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.scoring.pictures import Pictures, find_pictures
from sightbridge.scoring.scorer import Scorer

RUN = "run.json"
HOW_SCORED = ("kind", "question_template", "answer_template", "reduction", "answer_eos", "version")
"""What is kept of a score's description, in every line."""
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
    for one in work:
        check_ids(one)
        _check_metrics(one)
    if not allow_missing:
        for one in work:
            _check_pictures(one, data)
    return work


def _check_metrics(work: Work) -> None:
    """See that every metric is a measure of these records, before they are answered."""
    kind = work.part.task.settings.kind
    for item in work.items:
        if isinstance(item, Comparison):
            row = to_row(match_line(item, [[0.0] * len(item.texts)] * len(item.images)), str)
        elif kind == "retrieval":
            if not item.meta.get("references"):
                raise DataError(f"{item.where}: retrieval needs pictures with captions; this record has none.")
            row = Row(item.id, meta={"text_rank": 0, "image_ranks": []})
        else:
            row = to_row(line_of(item, "en", ""), str)
            if not row.truths:
                continue
        for name in work.part.task.settings.metrics:
            try:
                check_rows(name, [row])
            except SettingsError as error:
                raise SettingsError(f"task '{work.part.task.name}': {error} ({item.where})") from error


def _check_pictures(work: Work, data: Path) -> None:
    files = {Path(image) for item in work.items for image in item.images if _is_file_name(image)}
    gone = sorted(str(path) for path in files if not path.is_file())
    if gone:
        named = ", ".join(gone[:SHOWN]) + (", ..." if len(gone) > SHOWN else "")
        raise DataError(
            f"{work.part.label}: {len(gone)} of {len(files)} pictures are missing from {work.part.images(data)} "
            f"({named}). Get for it: {work.part.task.settings.get}. With --allow-missing they are left out and counted."
        )


def _is_file_name(image: ImageSource) -> TypeGuard[str | Path]:
    return isinstance(image, Path) or (isinstance(image, str) and not image.startswith("data:"))


def segmenters(part: Part) -> dict[str, str]:
    """What parts the captions of a part into words, with its version: of a language that is written without spaces.

    Raises ``SettingsError`` if it is not installed.
    """
    if not part.task.settings.languages or CAPTION_METRICS.isdisjoint(part.task.settings.metrics):
        return {}
    version = segmenter_version(part.name)
    return {part.name: version} if version else {}


def begin(
    out: Path,
    model: str,
    work: Sequence[Work],
    limit: int | None,
    overwrite: bool,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Make the folder of an evaluation, or go on with it if it is the same one.

    ``left_out``: of every task that was named but has none of the wanted parts, why.

    Raises ``SettingsError`` if the folder has answers to other questions, or by another model.
    """
    asked = {one.part.task.name: one.part.task.settings for one in work}
    path = out / RUN
    tasks, missed = asked, dict(left_out)
    if path.is_file() and overwrite:
        shutil.rmtree(out / FOLDER, ignore_errors=True)
    elif path.is_file():
        before = read_run(out)
        if (before["model"], before["limit"]) != (model, limit):
            raise SettingsError(
                f"--out: {out} holds the answers of {before['model']} (limit {before['limit'] or 'none'}), not of "
                f"{model} (limit {limit or 'none'}); choose another folder, or --overwrite to lose those"
            )
        for name in asked.keys() & before["tasks"].keys():
            now, then = asked[name].model_dump(), before["tasks"][name].model_dump()
            changed = [key for key, value in now.items() if then[key] != value]
            if changed:
                raise SettingsError(
                    f"--out: {out} holds answers to the task '{name}' with other settings ({', '.join(changed)}); "
                    "choose another folder, or --overwrite to lose those"
                )
        tasks = before["tasks"] | asked
        missed = {name: why for name, why in (before["left_out"] | missed).items() if name not in tasks}
    elif out.is_dir() and any(out.iterdir()):
        raise SettingsError(f"--out: {out} holds something else than an evaluation; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    settings = {name: one.model_dump(mode="json") for name, one in tasks.items()}
    description = {"model": model, "limit": limit, "tasks": settings} | ({"left_out": missed} if missed else {})
    write_atomically(path, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def read_run(out: Path) -> dict[str, Any]:
    """What was asked of which model: ``model``, ``limit``, the settings of ``tasks`` by their names, and why some were
    ``left_out``.

    Raises ``DataError`` for a folder that holds no evaluation, or a damaged file.
    """
    path = out / RUN
    if not path.is_file():
        raise DataError(f"{out}: no {RUN} in it, so it is not the folder of an evaluation.")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        model, limit, given = run["model"], run["limit"], dict(run["tasks"])
        left_out = {str(name): str(why) for name, why in dict(run.get("left_out", {})).items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged: {error}.") from error
    tasks = {}
    for name, settings in given.items():
        try:
            tasks[name] = TaskSettings.model_validate(settings)
            check_metrics(tasks[name])
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            wrong = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise DataError(f"{path}: task '{name}' cannot be read: {wrong}.") from error
        except SettingsError as error:
            raise SettingsError(f"{path}: task '{name}': {error}") from error
    return {"model": model, "limit": limit, "tasks": tasks, "left_out": left_out}


def do_part(
    work: Work,
    done_by: Callable[[Part, Sequence[Any]], Iterable[dict[str, Any]]],
    out: Path,
    window: int,
    process: int = 0,
    processes: int = 1,
    on_items: Callable[[int], None] = lambda count: None,
) -> None:
    """Write a line for every item of a part that has none on disk yet, or one with an error, this process' share.

    Args:
        work: the part.
        done_by: makes lines of some of its items: ``answering`` or ``matching`` a model.
        out: the folder of the evaluation.
        window: so many items are given to it at a time.
        process: of ``processes``.
        on_items: hears how many more are done, those of an earlier run first.
    """
    done = {line["id"] for line in read_lines(files_of(work.part, out)) if "error" not in line}
    mine = work.items[process::processes]
    todo = [item for item in mine if item.id not in done]
    if work.part.task.settings.kind == "retrieval":  # everything is ranked among everything, by the first process
        mine = work.items if process == 0 else []
        todo = mine if any(item.id not in done for item in mine) else []
        window = len(work.items)
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
        tables = [[[next(scores) for _ in item.texts] for _ in item.images] for item in items]
        described = scorer.backend.changed(**part.task.settings.score).describe()
        how = {name: described[name] for name in HOW_SCORED if name in described}
        return [match_line(item, table, scored=how) for item, table in zip(items, tables, strict=True)]

    return lines


def retrieving(
    model: QFormerPretraining, processor: QFormerProcessor, batch_size: int
) -> Callable[[Part, Sequence[Record]], Iterable[dict[str, Any]]]:
    """Lines of ranks; all records of a part have to be given at once. One whose picture does not open is not among
    those that are ranked, and gets a line with ``error``."""

    def lines(part: Part, records: Sequence[Record]) -> Iterable[dict[str, Any]]:
        sources = [record.images[0] for record in records]
        broken = Pictures(find_pictures(sources), processor.transform).check(range(len(records)))
        used = [record for number, record in enumerate(records) if number not in broken]
        ranks = rank_pairs(model, processor, used, batch_size=batch_size, **part.task.settings.score) if used else []
        failed = [rank_line(records[number], {"error": error}) for number, error in broken.items()]
        return [rank_line(record, own) for record, own in zip(used, ranks, strict=True)] + failed

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
