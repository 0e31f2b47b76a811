"""One run, top to bottom: check, build, train, save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from sightbridge.checkpoints.folder import AnyProcessor, save_model
from sightbridge.checkpoints.init_from import check_init_from, init_from
from sightbridge.checkpoints.quantized import quantize_language_model, remember_source
from sightbridge.config.base import Settings
from sightbridge.config.load import LoadedRecipe
from sightbridge.config.qformer_recipe import ModelRecipe
from sightbridge.config.recipe import Recipe
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.errors import SettingsError
from sightbridge.models.build import part_summary
from sightbridge.models.kinds import AnyModel, build_any
from sightbridge.models.lora import describe_lora, is_adapter
from sightbridge.models.parts import set_trainable
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.training.checkpoints import Checkpoint, Checkpoints
from sightbridge.training.deepspeed_state import why_no_checkpoints
from sightbridge.training.features import check_cache_is_there, make_features
from sightbridge.training.log import LOG, read_log
from sightbridge.training.loop import make_accelerator, train, with_accumulation
from sightbridge.training.milestones import Evaluate, Save
from sightbridge.training.order import describe_order
from sightbridge.training.preflight import Checked, Watch, check_run
from sightbridge.training.report import write_run_report
from sightbridge.training.resume import is_finished, resume_from
from sightbridge.training.run_data import RunData
from sightbridge.training.run_folder import MODEL, check_run_folder, describe_run, start_run_folder
from sightbridge.training.samples import write_samples
from sightbridge.training.sharding import check_launcher, uses_deepspeed

EvaluateModel = Callable[[Any, Any, Sequence[Record], int], dict[str, Any]]
"""Called with the bare model in evaluation mode, its processor, the validation records and the steps taken; its values
go into the log."""


def run_recipe(
    loaded: LoadedRecipe,
    folder: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    evaluate: EvaluateModel | None = None,
    console: Console | None = None,
    title: str = "training",
) -> list[dict[str, Any]]:
    """Train what the recipe says and return the log's lines.

    All mistakes that are cheap to find are looked for before a weight is loaded. Afterwards ``folder`` (new, empty, or
    of another run if ``overwrite``) holds the trained model in ``model`` and the other files that ``run_folder`` lists.
    The model is evaluated and saved every ``training.evaluate_every`` and ``save_every`` steps and after the last one.
    An evaluation is the mean loss per target token on ``data.validation`` (``validation_loss``) and what ``evaluate``
    returns. ``console`` is to report on, stdout by default.

    With ``resume`` the run in ``folder`` goes on after its newest checkpoint as if it had never stopped, or begins if
    there is none; a finished run's log is returned as it is.

    Raises ``SightbridgeError`` for a mistake in settings, data, sources or the folder, or settings that cannot change.
    """
    given, accelerator = loaded.recipe, _find_machine(loaded)
    assert isinstance(given, ModelRecipe), "parents have trainers of their own"
    loaded = replace(loaded, recipe=_settle(loaded, accelerator))
    recipe = cast(ModelRecipe, loaded.recipe)
    console = (console or Console(highlight=False)) if accelerator.is_main_process else Console(quiet=True)
    watch = progress_bars(shown=accelerator.is_main_process)

    check_run_folder(folder, overwrite or resume)
    say = partial(console.print, markup=False, soft_wrap=True)
    with loaded.locating():
        checkpoint = resume_from(folder, given, say) if resume else None
    if checkpoint and is_finished(checkpoint, given):
        return read_log(folder / LOG, checkpoint.step)
    checked = _check(loaded, recipe, evaluate, watch, say)
    # a resumed run, too: what init_from fills may be frozen, and its checkpoint has what is trained alone
    model = _remember_sources(build_start(loaded, recipe, console, accelerator.device), recipe, accelerator)
    checkpoints = Checkpoints(folder, given.model_dump(mode="json"), recipe.training.keep_checkpoints)
    _open_folder(folder, given, accelerator, checkpoints, checkpoint, overwrite or resume)
    features = make_features(loaded, checked, model, accelerator, watch)
    data = RunData(recipe, checked, folder, accelerator, features)
    history = train(
        model,
        data.training_batches(),
        recipe.training,
        recipe.optim,
        folder,
        evaluate=_evaluation(data, evaluate) if checked.validation or evaluate else None,
        save=_saving(recipe, loaded.name, checked.processor, folder / MODEL),
        checkpoints=checkpoints if keeps_checkpoints(accelerator, say) else None,
        resume=checkpoint,
        data=data,
        title=title,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        _look_back(model, data, folder)
    return history


def _check(
    loaded: LoadedRecipe,
    recipe: ModelRecipe,
    evaluate: EvaluateModel | None,
    watch: Watch,
    say: Callable[[str], None],
) -> Checked:
    """Everything that can be found wrong before a weight is loaded; ``say`` is told in what order records come."""
    checked = check_run(loaded, watch)
    with loaded.locating():
        check_evaluation(recipe, bool(checked.validation), evaluate)
    check_cache_is_there(loaded)
    for line in describe_order(recipe, checked.order):
        say(line)
    return checked


def keeps_checkpoints(accelerator: Accelerator, say: Callable[[str], None]) -> bool:
    """Whether the run can be resumed; ``say`` is told why not."""
    reason = why_no_checkpoints(accelerator) if uses_deepspeed(accelerator) else None
    if reason:
        say(f"{reason}: this run writes no checkpoints to resume from")
    return reason is None


def _remember_sources(model: AnyModel, recipe: ModelRecipe, accelerator: Accelerator) -> AnyModel:
    """DeepSpeed casts the whole model; a saved one is to reference frozen parts as they are where they come from."""
    rounds = uses_deepspeed(accelerator) and recipe.training.precision != "fp32"
    for name in type(recipe.training.parts).model_fields if rounds else ():
        part = model.get_submodule(name)
        referenced = getattr(getattr(recipe.model, name), "source", None) and not hasattr(part, "filled_by_init_from")
        if referenced and getattr(recipe.training.parts, name).train != "full":
            remember_source(part)
    return model


def _find_machine(loaded: LoadedRecipe) -> Accelerator:
    with loaded.locating():
        return make_accelerator(cast(ModelRecipe, loaded.recipe).training.precision)


def _settle(loaded: LoadedRecipe, accelerator: Accelerator) -> ModelRecipe:
    """The recipe with what depends on the number of processes filled in."""
    recipe = cast(ModelRecipe, loaded.recipe)
    with loaded.locating():
        check_launcher(recipe, accelerator)
        training = with_accumulation(recipe.training, accelerator.num_processes)
    return recipe.model_copy(update={"training": training})


def _open_folder(
    folder: Path,
    given: ModelRecipe,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
    overwrite: bool,
) -> None:
    """Make the run's folder, or go back to what it held when the checkpoint was written."""
    accelerator.wait_for_everyone()  # until then another process may be looking at the folder
    if accelerator.is_main_process and checkpoint:
        checkpoints.go_back_to(checkpoint.step)
        describe_run(folder, given)
    elif accelerator.is_main_process:
        start_run_folder(folder, given, overwrite)
    accelerator.wait_for_everyone()


def _look_back(model: AnyModel, data: RunData, folder: Path) -> None:
    """Write the run's page, with some answers if the model gives any.

    With several processes the model may lie in pieces on all of them, so none is asked.
    """
    processor = data.checked.processor
    alone = data.accelerator.num_processes == 1
    if alone and isinstance(model, VisionLanguageModel) and isinstance(processor, Processor):
        generation = cast(Recipe, data.recipe).generation
        write_samples(model, processor, data.checked.validation or data.checked.train, generation, folder)
    write_run_report(folder)


def check_evaluation(recipe: ModelRecipe, validates: bool, evaluate: EvaluateModel | None) -> None:
    """Check that there will be something to measure."""
    if validates:
        return
    if recipe.training.best and not evaluate:
        best = recipe.training.best
        raise SettingsError(f"there is no evaluation to measure '{best}': give data.validation", key="training.best")
    if isinstance(recipe, Recipe) and recipe.evaluation.metrics:
        raise SettingsError("there are no records to answer: give data.validation", key="evaluation.metrics")


def build_start(
    loaded: LoadedRecipe, recipe: ModelRecipe, console: Console, device: torch.device | str = "cpu"
) -> AnyModel:
    """The model with its frozen parts frozen and the weights it starts with, and a table of what it consists of.

    If its language model is to be quantised, the rounded layers are on ``device`` already.
    """
    start = recipe.training.init_from
    starts = [start] if isinstance(start, str) else start or []
    for folder in starts:
        check_init_from(folder)
    with loaded.locating(), Console(stderr=True, quiet=console.quiet).status("loading weights"):
        model = build_any(recipe.model, seed=recipe.training.seed)
        set_trainable(model, recipe.training.parts)
    console.print(parts_table(model, recipe.model))
    if isinstance(recipe, Recipe) and recipe.model.lora:
        console.print(describe_lora(model, recipe.model.lora), markup=False, soft_wrap=True)
    for number, folder in enumerate(starts):
        choice = recipe.training.init_parts, recipe.training.fresh_projection
        with loaded.locating():
            report = init_from(model, folder, *choice, after_another=number > 0)
        for line in (*(f"taken: {line}" for line in report.taken), *(f"left: {line}" for line in report.left)):
            console.print(f"weights of {folder}: {line}", markup=False, soft_wrap=True)
    if isinstance(recipe, Recipe) and recipe.training.parts.connector.only and not start:
        trained = ", ".join(recipe.training.parts.connector.only)
        message = f"of the connector only {trained} trains, and the rest stays random: give training.init_from a folder"
        console.print(message, style="yellow", markup=False, soft_wrap=True)
    kind = recipe.model.language_model.quantize if isinstance(recipe, Recipe) else None
    if kind and isinstance(model, VisionLanguageModel):
        with loaded.locating():
            layers = quantize_language_model(model.language_model, kind, device)
        console.print(f"language model: {len(layers)} linear layers held in {kind}, the rest as it is", soft_wrap=True)
    return model


def _evaluation(data: RunData, extra: EvaluateModel | None) -> Evaluate:
    """Validation, if there is anything to validate on, and the caller's own evaluation, if there is one."""

    def evaluate(bare: nn.Module, step: int) -> dict[str, Any]:
        values: dict[str, Any] = data.validate(bare) if data.checked.validation else {}
        return values | (extra(bare, data.checked.processor, data.checked.validation, step) if extra else {})

    return evaluate


def _saving(recipe: ModelRecipe, name: str, processor: AnyProcessor, folder: Path) -> Save:
    """Write the model folder, in place of an earlier one."""

    def save(bare: nn.Module, step: int) -> None:
        save_model(
            cast(AnyModel, bare),
            processor,
            recipe.model,
            folder,
            trained_parts=trained_parts(recipe.training.parts),
            provenance={"recipe": name, "steps": step, "seed": recipe.training.seed},
        )

    return save


def trained_parts(parts: Settings) -> list[str]:
    """Names of the parts whose weights change."""
    return [name for name in type(parts).model_fields if getattr(parts, name).train != "frozen"]


def parts_table(model: AnyModel, settings: Settings) -> Table:
    """What the model consists of: each part's class, source and size, and whether it trains, or its adapters."""
    table = Table("part", "model", "source", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("")
    for name, what, parameters, trained in part_summary(model):
        source = getattr(getattr(settings, name), "source", None) or "random weights"
        adapters = any(is_adapter(n) and p.requires_grad for n, p in model.get_submodule(name).named_parameters())
        state = "LoRA" if adapters else "trained" if trained else "frozen"
        table.add_row(name.replace("_", " "), what, source, f"{parameters:,}", state)
    return table


def progress_bars(shown: bool) -> Watch:
    """Progress bars on stderr that go away when they are full; none without a terminal."""
    terminal = Console(stderr=True)
    hidden = not (shown and terminal.is_terminal)
    return lambda records, what: track(records, what, console=terminal, transient=True, disable=hidden)
