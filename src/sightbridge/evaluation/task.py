"""Tasks: what is evaluated. Each is a YAML file of settings; reading its records is all that is done here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

from sightbridge.config.load import read_tree
from sightbridge.config.problems import validate
from sightbridge.config.task import TaskSettings
from sightbridge.data.readers import READERS
from sightbridge.data.readers.benchmarks import BENCHMARK_READERS, MATCH_READERS
from sightbridge.data.readers.benchmarks.matches import Comparison
from sightbridge.data.record import Record
from sightbridge.data.records import Prompted
from sightbridge.errors import DataError, SettingsError, nearest
from sightbridge.evaluation.metrics import check_metrics
from sightbridge.scoring.settings import AnswerSettings, change_settings
from sightbridge.text.languages import TASK_NAMES, language_name

TASKS = Path(__file__).parent / "tasks"
"""Folder of the shipped tasks."""


Item = Record | Comparison
"""What a task is made of: something to be answered, or pictures and texts to be compared."""


@dataclass(frozen=True)
class Part:
    """One file of a task: its only one (``name`` ""), or that of a language or a split."""

    task: Task
    name: str

    @property
    def label(self) -> str:
        """``xgqa/de``, or the task's name alone."""
        return f"{self.task.name}/{self.name}" if self.name else self.task.name

    def language_of(self, item: Item) -> str:
        """Code of the language that a record is in."""
        return self.name if self.task.settings.languages else getattr(item, "language", "en")

    def path(self, data: Path) -> Path:
        """The annotation file."""
        return data / self._fill(self.task.settings.path)

    def images(self, data: Path) -> Path:
        """The folder of the pictures."""
        return data / self._fill(self.task.settings.images)

    def read(self, data: Path, limit: int | None = None) -> Sequence[Item]:
        """Read the records, the prompt around their words. Raises ``DataError`` for a row that is wrong."""
        settings = self.task.settings
        reader = readers_of(settings.kind)[settings.reader]
        options = {
            key: self._fill(value) if isinstance(value, str) else value for key, value in settings.options.items()
        }
        records = list(islice(reader(self.path(data), self.images(data), **options), limit))
        if not records:
            raise DataError(f"{self.path(data)}: holds no records for the task '{self.label}'.")
        if settings.kind != "answers" or settings.prompt is None:
            return records
        return Prompted(records, self._fill(settings.prompt))

    def _fill(self, text: str) -> str:
        """Put in the part's name and the language's; other braces stay."""
        text = text.replace("{part}", self.name)
        if "{language}" in text:
            text = text.replace("{language}", language_name(self.name, TASK_NAMES.get(self.task.settings.names or "")))
        return text


@dataclass(frozen=True)
class Task:
    """A task by its name."""

    name: str
    settings: TaskSettings

    def parts(self) -> list[Part]:
        """All of its parts."""
        return [Part(self, name) for name in self.settings.parts or [""]]


def choose_parts(tasks: Sequence[Task], wanted: Sequence[str]) -> tuple[list[Part], dict[str, str]]:
    """Those of the parts of tasks that are wanted, or all; and of every task that has none of them, why it is left out.

    Wanted languages choose among tasks in several languages, splits among those of several splits; all others are
    taken whole. Raises ``SettingsError`` for a part that no task has.
    """
    for name in wanted:
        if not any(name in task.settings.parts for task in tasks):
            have = "; ".join(f"task '{task.name}' {_has(task)}" for task in tasks)
            known = [part for task in tasks for part in task.settings.parts]
            raise SettingsError(f"no task has a part '{name}': {have}.{nearest(name, known)}")
    languages = [name for name in dict.fromkeys(wanted) if any(name in task.settings.languages for task in tasks)]
    splits = [name for name in dict.fromkeys(wanted) if any(name in task.settings.splits for task in tasks)]
    parts: list[Part] = []
    left_out = {}
    for task in tasks:
        asked = languages if task.settings.languages else splits if task.settings.splits else []
        own = [part for part in task.parts() if not asked or part.name in asked]
        parts += sorted(own, key=lambda part: asked.index(part.name)) if asked else own
        if not own:
            left_out[task.name] = f"no {', '.join(asked)}: it {_has(task)}"
    return parts, left_out


def _has(task: Task) -> str:
    return f"has {', '.join(task.settings.parts)}" if task.settings.parts else "is one file"


def _check_options(settings: TaskSettings) -> None:
    """Raise ``SettingsError`` for an option that a reader does not have, or a setting that a score does not have."""
    known = [*signature(readers_of(settings.kind)[settings.reader]).parameters][2:]  # after the file and the pictures
    for name in settings.options:
        if name not in known:
            raise SettingsError(
                f"the reader '{settings.reader}' has no option '{name}'. Known: {', '.join(known) or 'none'}."
                f"{nearest(name, known)}",
                key="options",
            )
    if settings.kind == "matches":
        change_settings(AnswerSettings(), settings.score)


def readers_of(kind: str) -> Mapping[str, Callable[..., Iterable[Any]]]:
    """Readers of a kind of task, by name."""
    return MATCH_READERS if kind == "matches" else {**READERS, **BENCHMARK_READERS}


def task_names() -> list[str]:
    """Names of all shipped tasks, sorted."""
    return sorted(path.relative_to(TASKS).with_suffix("").as_posix() for path in TASKS.rglob("*.yaml"))


def find_task(name: str, beside: Path | None = None) -> Path:
    """File of a shipped task or a path; raises ``SettingsError`` with the nearest name for one that is not there."""
    names = task_names()
    if name in names:
        return TASKS / f"{name}.yaml"
    path = (beside or Path()) / Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise SettingsError(f"task file '{path}' does not exist")
    raise SettingsError(
        f"unknown task '{name}'.{nearest(name, names)} 'sightbridge tasks' lists them; a file of your own ends in .yaml"
    )


def load_task(name_or_path: str, overrides: Sequence[str] = ()) -> Task:
    """Load a shipped task, or a YAML file that may have a shipped one as its ``base``.

    Args:
        name_or_path: ``xgqa``, or ``mine.yaml``.
        overrides: such as ``prompt=Question: {}`` and ``generation.num_beams=1``.

    Raises ``SettingsError`` for anything unknown or wrong in it.
    """
    path = find_task(name_or_path)
    settings = validate(TaskSettings, read_tree(path, overrides, find_task))
    readers = list(readers_of(settings.kind))
    if settings.reader not in readers:
        known = ", ".join(readers)
        raise SettingsError(
            f"{path}: unknown reader '{settings.reader}'. Known: {known}.{nearest(settings.reader, readers)}"
        )
    check_metrics(settings)
    _check_options(settings)
    name = path.relative_to(TASKS).with_suffix("").as_posix() if path.is_relative_to(TASKS) else path.stem
    return Task(name, settings)
