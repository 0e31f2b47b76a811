"""``sightbridge evaluate``: benchmarks whose files are in a folder of yours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightbridge.cli.arguments import ModelArgument, SourceOption, SystemOption, complete_task, read_part_sources
from sightbridge.cli.console import console, new_progress
from sightbridge.cli.rescore import show_results
from sightbridge.errors import SettingsError

if TYPE_CHECKING:
    from accelerate import PartialState

    from sightbridge.evaluation.run import Work
    from sightbridge.evaluation.task import Task

PartsOption = Annotated[
    list[str] | None,
    typer.Option(
        *("--part", "--language", "--languages"),
        help="Only these languages or splits, with commas between. Tasks in other languages are left out.",
    ),
]


def evaluate(
    model: ModelArgument,
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            help="Tasks ('sightbridge tasks' lists them), YAML files, and TASK.key=value.",
            autocompletion=complete_task,
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder that the files of the tasks are in.")] = Path(),
    out: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default="evaluation/ beside the model")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many records of each part.")] = None,
    part: PartsOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Records at a time.")] = 8,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out records whose pictures are missing, and count them.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Lose all answers that are in the folder already.")
    ] = False,
    system: SystemOption = None,
    source: SourceOption = None,
) -> None:
    """Evaluate a model on benchmarks whose files are in a folder of yours.

    Answers are written as they come, so a stopped run goes on where it was; 'sightbridge rescore' measures them again
    without the model. With 'accelerate launch' several processes share the records.

    \b
    Examples:
      sightbridge evaluate MODEL xgqa marvl pope --data /data
      sightbridge evaluate MODEL xm3600 --data /data --languages de,sw --limit 500
      sightbridge evaluate MODEL coco_caption coco_caption.prompt="a photo of" --data /data
      sightbridge evaluate MODEL mine.yaml --data .
    """
    from sightbridge.evaluation.predictions import files_of, settle
    from sightbridge.evaluation.run import begin, identity, read_work
    from sightbridge.evaluation.task import choose_parts

    chosen = read_tasks(tasks)
    parts, left_out = choose_parts(chosen, [name for given in part or () for name in given.split(",")])
    sources = read_part_sources(source)
    folder = out or model.parent / "evaluation"
    work = read_work(parts, data.expanduser(), limit, allow_missing)
    description = identity(model)
    with _alone_in(folder) as is_first:
        if is_first:
            begin(folder, description, work, limit, overwrite, left_out)
            for name, why in left_out.items():
                console(stderr=True).print(f"{name} is left out: {why}", markup=False, soft_wrap=True)
        _answer_all(model, sources, system, work, folder, batch_size)
        if is_first:
            for one in work:
                settle(files_of(one.part, folder))
            show_results(folder, [task.name for task in chosen])


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Hold the folder of a run, whose processes are the only ones to write there; whether this is the first of them."""
    from sightbridge.checkpoints.atomic import alone_in

    if not _processes().is_main_process:
        yield False
        return
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder, folder):
        yield True


def _processes() -> PartialState:
    """The processes of this run, all of which wait for the slowest one, however long that takes."""
    import torch
    from accelerate import PartialState

    # without being told so, accelerate takes several processes on a machine without a GPU for single ones
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))


def read_tasks(given: list[str]) -> list[Task]:
    """Load tasks, each with those of the arguments ``TASK.key=value`` that are its own."""
    from sightbridge.evaluation.task import load_task

    names = [one for one in given if "=" not in one]
    if not names:
        raise SettingsError("name at least one task; 'sightbridge tasks' lists them")
    overrides: dict[str, list[str]] = {name: [] for name in names}
    for one in given:
        if "=" in one:
            owner = next((name for name in names if one.startswith(f"{_stem(name)}.")), None)
            if owner is None:
                raise SettingsError(f"'{one}': expected TASK.key=value with one of the tasks {', '.join(names)}")
            overrides[owner].append(one.removeprefix(f"{_stem(owner)}."))
    tasks: dict[str, Task] = {}
    for name, own in overrides.items():
        task = load_task(name, own)
        if task.name in tasks:
            raise SettingsError(f"two of the tasks are called '{task.name}'; give the file '{name}' another name")
        tasks[task.name] = task
    return list(tasks.values())


def _stem(name: str) -> str:
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


def _answer_all(
    model: Path,
    sources: dict[str, str],
    system: str | None,
    work: list[Work],
    folder: Path,
    batch_size: int,
) -> None:
    """Answer every part under a progress bar, as one of possibly several processes."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from sightbridge.evaluation.run import do_part
    from sightbridge.generation.answer import WINDOW

    state = _processes()
    state.wait_for_everyone()
    do = _doers(model, sources, system, {one.part.task.settings.kind for one in work}, batch_size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with new_progress(*columns, shown=state.is_main_process) as bars:
        for one in work:
            mine = len(one.items[state.process_index :: state.num_processes])
            bar = bars.add_task(one.part.label, total=mine)
            do_part(
                one,
                do[one.part.task.settings.kind],
                folder,
                WINDOW * batch_size,
                state.process_index,
                state.num_processes,
                on_items=lambda count, bar=bar: bars.advance(bar, count),
            )
    state.wait_for_everyone()


def _doers(
    model: Path, sources: dict[str, str], system: str | None, kinds: set[str], batch_size: int
) -> dict[str, Callable[..., Any]]:
    """Load the model, and make of it what each kind of task needs."""
    import torch

    from sightbridge.checkpoints.folder import load_any_model
    from sightbridge.cli.loading import load_for_answers
    from sightbridge.data.qformer_processor import QFormerProcessor
    from sightbridge.evaluation.run import answering, matching, retrieving
    from sightbridge.models.qformer_pretraining import QFormerPretraining
    from sightbridge.scoring.load import make_backend
    from sightbridge.scoring.scorer import Scorer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    do: dict[str, Callable[..., Any]] = {}
    if "answers" in kinds:
        loaded, processor = load_for_answers(model, sources, system)
        do["answers"] = answering(loaded, processor, batch_size)
    else:
        loaded, processor = load_any_model(model, device, sources)
    if "matches" in kinds:
        do["matches"] = matching(Scorer(make_backend(loaded, processor, name=str(model)), batch_size=batch_size))
    if "retrieval" in kinds:
        if not isinstance(loaded, QFormerPretraining) or not isinstance(processor, QFormerProcessor):
            raise SettingsError(f"{model}: retrieval needs a model of BLIP-2's first stage; this one answers questions")
        do["retrieval"] = retrieving(loaded, processor, batch_size)
    return do
