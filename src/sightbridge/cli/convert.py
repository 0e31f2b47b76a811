"""``sightbridge convert``: files in any format become a model folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightbridge.cli.console import console, new_progress, new_table, show_table

if TYPE_CHECKING:
    from sightbridge.checkpoints.convert import Converted, Progress

VisionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vision",
        metavar="NAME_OR_PATH",
        help="What gives the vision tower: a Hugging Face name or folder, or any file that holds one.",
        show_default=False,
    ),
]
BridgeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bridge",
        metavar="PATH",
        help="What gives the connector, or the first stage's Q-Former: any file that holds one, or a model folder.",
        show_default=False,
    ),
]
LanguageModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--language-model",
        metavar="NAME_OR_PATH",
        help="What gives the language model: a Hugging Face name or folder, or any file that holds one.",
        show_default=False,
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="NAME_OR_PATH",
        help="The tokenizer, if it is neither beside the file nor the language model.",
        show_default=False,
    ),
]
SelfContainedOption = Annotated[
    bool, typer.Option("--self-contained", help="Copy Hugging Face parts that would only be referenced.")
]
LaterWinsOption = Annotated[
    bool,
    typer.Option("--later-wins", help="Of a weight that two files of one part hold, take the later file's."),
]
AllowNanOption = Annotated[bool, typer.Option("--allow-nan", help="Take weights that are not finite as they are.")]
SettingsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings of the model that no file tells, such as prompt.template=vicuna_v1.",
        show_default=False,
    ),
]


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A file or folder of LAVIS, PaddleMIX, Hugging Face, LLaVA, ...", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New model folder.", show_default=False)],
    settings: SettingsArgument = None,
    vision: VisionOption = None,
    bridge: BridgeOption = None,
    language_model: LanguageModelOption = None,
    tokenizer: TokenizerOption = None,
    self_contained: SelfContainedOption = False,
    later_wins: LaterWinsOption = False,
    allow_nan: AllowNanOption = False,
) -> None:
    """Make a model folder of a file in another project's format.

    The format is told by what is in the file. Parts that it lacks come from --vision, --bridge and --language-model: a
    Hugging Face model is referenced, a part of another file is copied. Nothing the file holds is replaced, nothing is
    random, and names and shapes are checked before a weight is read. An interrupted conversion goes on when the same
    command is given again.

    \b
    Examples:
      sightbridge convert llava-v1.5-7b OUT
      sightbridge convert blip2_pretrained_flant5xl.pth OUT \\
          --vision eva_vit_g.pth --language-model google/flan-t5-xl
      sightbridge convert blip2_pretrained.pth OUT --vision eva_vit_g.pth
      sightbridge convert llava-hf/llava-1.5-7b-hf OUT prompt.template=vicuna_v1
      sightbridge inspect model blip2_pretrained.pth    (what is in it)
    """
    convert_and_show(
        source,
        out,
        vision=vision,
        bridge=bridge,
        language_model=language_model,
        tokenizer=tokenizer,
        settings=settings or (),
        self_contained=self_contained,
        later_wins=later_wins,
        allow_nan=allow_nan,
    )


def convert_and_show(source: Path | None, out: Path, **options: Any) -> None:
    """Convert under a progress bar, and say what became of what; ``options`` are those of ``checkpoints.convert``."""
    from sightbridge.checkpoints.convert import convert

    with _showing_progress() as progress:
        done = convert(source, out, **options, progress=progress)
    _show(done)


@contextmanager
def _showing_progress() -> Iterator[Progress]:
    """A bar of bytes on stderr, if that is a terminal."""
    from rich import progress

    columns = (
        progress.TextColumn("converting"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[weight]}", style="dim"),
    )
    with new_progress(*columns) as bar:
        task = bar.add_task("", total=None, weight="reading names")

        def advance(done: int, total: int, weight: str) -> None:
            bar.update(task, completed=done, total=total, weight=weight)

        yield advance


def _show(done: Converted) -> None:
    """What became of what, part by part, and what there is to know about it."""
    out = console()
    for line in done.what:
        out.print(line, markup=False, soft_wrap=True)
    table = new_table("part", "weights", "parameters", "type")
    for name, entry in done.manifest.parts.items():
        where = entry.file or (entry.source or "").removeprefix("./")
        stored = entry.file or (entry.source or "").startswith("./")
        weights = f"{done.folder.name}/{where}" if stored else f"referenced: {where}"
        table.add_row(name.replace("_", " "), weights, f"{entry.parameters:,}", entry.dtype)
    adapter = getattr(done.manifest, "adapter", None)
    if adapter:
        table.add_row("adapters", f"{done.folder.name}/adapter, {adapter.layers} layers", f"{adapter.parameters:,}", "")
    show_table(table)
    for note in done.notes:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    if done.resumed:
        files = "1 file was" if done.resumed == 1 else f"{done.resumed} files were"
        out.print(f"{files} there from an interrupted conversion.", markup=False, soft_wrap=True)
    out.print(f"Written to {done.folder}.", markup=False, soft_wrap=True)
