"""``sightbridge train``: run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightbridge.cli.arguments import OverridesArgument, RecipeArgument
from sightbridge.cli.console import console, new_table, show_table
from sightbridge.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sightbridge.config.load import LoadedRecipe
    from sightbridge.config.parent import ParentRecipe
    from sightbridge.config.recipe import Recipe
    from sightbridge.evaluation.run import Work
    from sightbridge.training.chain import StepResult


def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="runs/ and the recipe's name")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in that folder.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in that folder.")] = False,
) -> None:
    """Train what a recipe says, and save the model.

    Settings, data, pictures and targets are checked first. The run's folder holds the model in 'model', the settings
    in 'settings.yaml' (a recipe itself), a log in 'log.jsonl', and a page with curves and answers in 'report.html'.

    A run that was killed goes on with --resume where its newest checkpoint was written, exactly as if it had never
    stopped. Settings may change if the model and the order of the records stay; what changed is shown.

    \b
    Examples:
      sightbridge data scenes scenes && sightbridge train tiny/decoder-mlp
      sightbridge train tiny/decoder-mlp data.root=scenes optim.lr=1e-3 --out runs/slower
      sightbridge train my_recipe.yaml training.steps=100 --overwrite
      sightbridge train my_recipe.yaml training.save_every=500 --resume
      sightbridge train tiny/blip2-chain        several runs, one from another
    """
    from sightbridge.config.chain import ChainRecipe
    from sightbridge.config.load import read_recipe
    from sightbridge.config.parent import ParentRecipe

    if overwrite and resume:
        raise SettingsError("--resume goes on with a run and --overwrite loses it; give one of them")
    loaded = read_recipe(recipe, overrides or [])
    folder = out or Path("runs") / run_name(recipe)
    if isinstance(loaded.recipe, ParentRecipe):
        if resume:
            raise SettingsError("parents are trained in one go and cannot be resumed; leave --resume away")
        _train_parent(loaded, loaded.recipe, folder, overwrite)
    elif isinstance(loaded.recipe, ChainRecipe):
        _train_chain(loaded, folder, overwrite, resume)
    else:
        _train_model(loaded, folder, overwrite, resume)


def run_name(recipe: str) -> str:
    """Name of a recipe's runs: ``tiny-random`` of ``tiny/random``, ``mine`` of ``some/folder/mine.yaml``."""
    from sightbridge.config.catalogue import recipe_names

    return recipe.replace("/", "-") if recipe in recipe_names() else Path(recipe).stem


def _train_model(loaded: LoadedRecipe, folder: Path, overwrite: bool, resume: bool) -> None:
    from accelerate import PartialState

    from sightbridge.config.qformer_recipe import QFormerRecipe

    history = _run(loaded, folder, overwrite, resume)
    if PartialState().is_main_process:
        _report(history, folder, first_stage=isinstance(loaded.recipe, QFormerRecipe))


def _run(loaded: LoadedRecipe, folder: Path, overwrite: bool, resume: bool) -> list[dict[str, Any]]:
    """Train one recipe, measuring its answers by the metrics that it names."""
    from sightbridge.config.recipe import Recipe
    from sightbridge.evaluation.answers import measure_answers, measure_tasks
    from sightbridge.training.run import run_recipe

    recipe = loaded.recipe
    works = _read_tasks(recipe) if isinstance(recipe, Recipe) else []

    def evaluate(model: Any, processor: Any, records: Any, step: int) -> dict[str, float]:
        assert isinstance(recipe, Recipe), "only these answer"
        values = measure_answers(model, processor, records, recipe.evaluation, recipe.generation)
        return values | measure_tasks(model, processor, works, recipe.evaluation.batch_size)

    asked = isinstance(recipe, Recipe) and (recipe.evaluation.metrics or works)
    hook = evaluate if asked else None
    return run_recipe(loaded, folder, overwrite=overwrite, resume=resume, evaluate=hook, console=console())


def _read_tasks(recipe: Recipe) -> list[Work]:
    """Read the benchmarks that a recipe is measured by, before anything of the model is loaded."""
    from sightbridge.evaluation.run import read_work
    from sightbridge.evaluation.task import load_task

    tasks = [load_task(name) for name in recipe.evaluation.tasks]
    for task in tasks:
        if task.settings.kind != "answers":
            raise SettingsError(
                f"'{task.name}' compares pictures and texts; while a model trains it is measured by what it answers",
                key="evaluation.tasks",
            )
    parts = [part for task in tasks for part in task.parts()]
    data = Path(recipe.evaluation.root or recipe.data.root).expanduser()
    return read_work(parts, data, recipe.evaluation.records)


def _train_chain(loaded: LoadedRecipe, folder: Path, overwrite: bool, resume: bool) -> None:
    from sightbridge.training.chain import run_chain

    def run_step(step: LoadedRecipe, step_folder: Path) -> list[dict[str, Any]]:
        return _run(step, step_folder, overwrite, resume)

    _report_chain(run_chain(loaded, folder, run_step, console()))
    console().print(f"Every run has its page: {folder}/RUN/report.html", soft_wrap=True)


def _report_chain(results: Sequence[StepResult]) -> None:
    """Show what every run measured before and after: on the whole and, if records are in several, by language."""
    from sightbridge.evaluation.answers import UNMARKED
    from sightbridge.visual_prompts import SHAPES

    whole = new_table("run", "steps", "measured", "before", "after")
    by_language = new_table("run", "measured", "language", "before", "after")
    for result in results:
        for name, after in result.after.items():
            metric, _, part = name.partition("/")
            if name.startswith(("validation_loss", UNMARKED)) or part in SHAPES:
                continue
            before = result.before.get(name)
            numbers = ("" if before is None else f"{before:.3f}", f"{after:.3f}")
            if part and metric in result.after:
                by_language.add_row(result.name, metric, part, *numbers)
            else:
                whole.add_row(result.name, str(result.steps), name, *numbers)
    for table in (whole, by_language, _by_shape(results)):
        if table.row_count:
            show_table(table)


def _by_shape(results: Sequence[StepResult]) -> Table:
    """What the marks on pictures are worth, shape by shape: the same questions with and without them, at the end."""
    from sightbridge.evaluation.answers import UNMARKED

    table = new_table("run", "measured", "mark", "marked", "unmarked", "difference")
    for result in results:
        for name, unmarked in result.after.items():
            metric, _, shape = name.removeprefix(UNMARKED).partition("/")
            if name.startswith(UNMARKED):
                marked = result.after[name.removeprefix(UNMARKED)]
                numbers = (f"{marked:.3f}", f"{unmarked:.3f}", f"{marked - unmarked:+.3f}")
                table.add_row(result.name, metric, shape or "all", *numbers)
    return table


def _report(history: list[dict[str, Any]], folder: Path, first_stage: bool) -> None:
    table = new_table("after step", "training loss", "validation loss")
    evaluations = {line["step"]: line.get("validation_loss") for line in history if line["kind"] == "evaluation"}
    losses = {line["step"]: line["loss"] for line in history if line["kind"] == "train"}
    for step in (min(losses), max(losses)) if len(losses) > 1 else losses:
        validation = evaluations.get(step)
        table.add_row(str(step), *("" if loss is None else f"{loss:.4f}" for loss in (losses[step], validation)))
    show_table(table)
    out = console()
    bad = folder / "bad_samples.jsonl"
    if bad.exists():
        out.print(f"Some records could not be used, see {bad}", soft_wrap=True)
    if first_stage:
        _report_matching(history)
        out.print(f"The model is in {folder / 'model'}. Start a second stage from it:", soft_wrap=True)
        out.print(f"  sightbridge train RECIPE training.init_from={folder / 'model'}", soft_wrap=True)
        return
    out.print(f"The model is in {folder / 'model'}. Ask it something:", soft_wrap=True)
    out.print(f'  sightbridge ask {folder / "model"} PICTURE "QUESTION"', soft_wrap=True)
    out.print(f"The run's page: {folder / 'report.html'}", soft_wrap=True)


def _report_matching(history: list[dict[str, Any]]) -> None:
    evaluations = [line for line in history if "itm_accuracy" in line]
    if evaluations:
        table = new_table("after step", "matching", "recall@1 of captions", "recall@1 of pictures")
        names = ("itm_accuracy", "recall_at_1/text", "recall_at_1/image")
        for line in (evaluations[0], evaluations[-1]) if len(evaluations) > 1 else evaluations:
            table.add_row(str(line["step"]), *(f"{line[name]:.1%}" for name in names))
        show_table(table)


def _train_parent(loaded: LoadedRecipe, recipe: ParentRecipe, folder: Path, overwrite: bool) -> None:
    from sightbridge.parents.language import train_language_parent
    from sightbridge.parents.vision import train_vision_parent
    from sightbridge.training.run_folder import start_run_folder

    start_run_folder(folder, recipe, overwrite)
    trainers = {"vision": train_vision_parent, "language": train_language_parent}
    with loaded.locating():
        result = trainers[recipe.parent](recipe, folder)
    table = new_table("after step", str(result["step"]))
    for name, value in result.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4f}")
    show_table(table)
    console().print(f"The parent is in {folder}; a recipe can name it as the 'source' of a part.", soft_wrap=True)
