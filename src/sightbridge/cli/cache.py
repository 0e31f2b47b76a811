"""``sightbridge cache``: compute what is frozen once, and look after what was computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sightbridge.cli.arguments import OverridesArgument, RecipeArgument
from sightbridge.cli.console import console, new_progress, new_table, show_table

if TYPE_CHECKING:
    from rich.table import Table

    from sightbridge.config.load import LoadedRecipe
    from sightbridge.training.cache_run import CachePlan, CacheResult, Progress


class _BuildUnlessNamed(TyperGroup):
    """``cache RECIPE`` is ``cache build RECIPE``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            args = ["build", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_BuildUnlessNamed,
    no_args_is_help=True,
    subcommand_metavar="RECIPE [KEY=VALUE]... | COMMAND ...",
    help="Store what a recipe's frozen parts make of its pictures, so that training need not.\n\n"
    "'sightbridge cache RECIPE' fills the cache; training reads it with data.cache=FOLDER.",
)

CacheArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="A feature cache.")]


@app.command("build")
def build(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 32,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be made, and how large it is.")
    ] = False,
) -> None:
    """Encode the pictures of a recipe that are not in its cache yet.

    The word 'build' can be left out. What is stored is the output of everything in front of the first trained weight:
    the vision tower, or the vision tower and the Q-Former. Give the same settings that you train with. It can be
    stopped at any time, and goes on where it was.

    \b
    Examples:
      sightbridge cache tiny/decoder-mlp data.cache=feature_cache
      sightbridge cache my_recipe.yaml data.cache=/fast/cache data.workers=8 --batch-size 128
      torchrun --nproc-per-node 8 -m sightbridge cache my_recipe.yaml data.cache=/fast/cache
    """
    from sightbridge.training.cache_run import build_recipe_cache

    loaded = _read(recipe, overrides or [])
    result = build_recipe_cache(loaded, _progress(dry_run), batch_size=batch_size, only_plan=dry_run)
    if _is_main() and not dry_run:
        _report(result, loaded, recipe)


def _read(recipe: str, overrides: list[str]) -> LoadedRecipe:
    """The recipe, with a folder for its cache in any case."""
    from sightbridge.config.load import read_recipe
    from sightbridge.config.qformer_recipe import ModelRecipe
    from sightbridge.errors import SettingsError
    from sightbridge.training.cache_run import DEFAULT_FOLDER
    from sightbridge.training.frozen_prefix import MEMORY

    loaded = read_recipe(recipe, overrides)
    if not isinstance(loaded.recipe, ModelRecipe):
        raise SettingsError(f"'{recipe}' trains no bridge behind a frozen vision tower, so there is nothing to store")
    if loaded.recipe.data.cache in (None, MEMORY):
        loaded = read_recipe(recipe, [*overrides, f"data.cache={DEFAULT_FOLDER}"])
    return loaded


def _is_main() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def _progress(dry_run: bool) -> Progress:
    """Say what is going to happen, then show a bar while it does."""

    @contextmanager
    def shown(plan: CachePlan) -> Iterator[Callable[[int], None]]:
        from rich import progress

        main = _is_main()
        if main:
            show_table(_plan_table(plan))
        columns = (
            progress.TextColumn("encoding pictures"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
        )
        with new_progress(*columns, shown=main and not dry_run) as bar:
            task = bar.add_task("", total=plan.missing)
            yield lambda pictures: bar.advance(task, pictures)

    return shown


def _plan_table(plan: CachePlan) -> Table:
    table = new_table("features", "")
    behind = {"tower": "the vision tower", "connector.read": "the vision tower and the connector's read"}
    table.add_row("output of", behind[plan.prefix])
    shape = " x ".join(map(str, plan.shape))
    table.add_row("of a picture", f"{shape}, {plan.key.dtype}: {size_text(plan.picture_bytes)}")
    table.add_row("there", f"{plan.there:,}")
    table.add_row("to make", f"{plan.missing:,}: {size_text(plan.nbytes)}")
    table.add_row("free", size_text(plan.free_bytes))
    table.add_row("folder", str(plan.folder))
    return table


def size_text(nbytes: float) -> str:
    """Bytes in decimal units, as disks are sold: ``723.7 KB``."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def _report(result: CacheResult, loaded: LoadedRecipe, recipe: str) -> None:
    from sightbridge.config.qformer_recipe import ModelRecipe

    assert isinstance(loaded.recipe, ModelRecipe)
    out = console()
    for reason in list(result.bad.values())[:5]:
        out.print(f"cannot be used: {reason}", soft_wrap=True, markup=False)
    if len(result.bad) > 5:
        out.print(f"and {len(result.bad) - 5} more; all are listed in {result.plan.folder}", soft_wrap=True)
    settings = f"data.cache={loaded.recipe.data.cache}"
    out.print("Train with it, and with the same settings:", soft_wrap=True)
    out.print(f"  sightbridge train {recipe} {settings}", soft_wrap=True, markup=False)


@app.command("info")
def info(folder: CacheArgument) -> None:
    """Show what a cache holds."""
    from sightbridge.data.feature_cache_tools import list_contents

    table = new_table("key", "output of", "picture", "type", "entries", "files", "size", "made")
    total = 0
    for contents in list_contents(folder):
        about, key = contents.about, contents.key
        tower = f"{key.prefix} of {about.get('vision tower', '?')}"
        made = f"{about.get('made', '?')} for {about.get('recipe', '?')}"
        pixels = f"{key.image.get('size')} px, {key.image.get('fit')}"
        size = size_text(contents.nbytes)
        table.add_row(
            contents.folder.name, tower, pixels, key.dtype, f"{contents.entries:,}", f"{contents.shards:,}", size, made
        )
        total += contents.nbytes
    show_table(table)
    console().print(f"{size_text(total)} in all")


@app.command("verify")
def verify(
    folder: CacheArgument,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is damaged, to be made again.")] = False,
) -> None:
    """Read every byte of a cache and compare it with the hashes it was written with."""

    from sightbridge.data.feature_cache_tools import find_damage

    damaged: list[Path] = []
    checked = 0
    with new_progress() as progress:
        task = progress.add_task("verifying", total=len(list(folder.glob("*/*.safetensors"))))
        for path, intact in find_damage(folder):
            checked += 1
            progress.advance(task)
            if not intact:
                damaged.append(path)
    out = console()
    for path in damaged:
        out.print(f"damaged: {path}", soft_wrap=True, markup=False)
        if delete:
            path.unlink()
    deleted = "; they were deleted, run 'sightbridge cache RECIPE' again" if delete else ""
    out.print(f"{checked:,} files read, {len(damaged)} damaged{deleted if damaged else ''}")
    if damaged and not delete:
        raise typer.Exit(1)


@app.command("gc")
def gc(
    folder: CacheArgument,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="Keep only what these recipes use: names, YAML files, or the settings.yaml of runs."),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without, only say what would be deleted.")] = False,
) -> None:
    """Delete what nothing uses.

    Without --recipe: what killed builds have left, and the features of pictures that are gone or have changed.

    \b
    Examples:
      sightbridge cache gc feature_cache
      sightbridge cache gc feature_cache --recipe runs/a/settings.yaml --recipe runs/b/settings.yaml --delete
    """
    from sightbridge.data.feature_cache_tools import find_garbage, remove_garbage

    used = None
    if recipe:
        from sightbridge.training.cache_run import used_entries

        used = used_entries(folder, [_read(name, [f"data.cache={folder}"]) for name in recipe])
    garbage = find_garbage(folder, used)
    if delete:
        remove_garbage(garbage)
    what = "deleted" if delete else "would be deleted (add --delete)"
    console().print(f"{garbage.entries:,} entries, {size_text(garbage.nbytes)}: {what}")
