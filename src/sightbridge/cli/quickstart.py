"""``sightbridge quickstart``: the main job on embedded data."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sightbridge.cli.console import console, new_table

if TYPE_CHECKING:
    from sightbridge.quickstart.run import QuickstartSettings


class Connector(StrEnum):
    """Kinds of bridge."""

    LINEAR = "linear"
    MLP = "mlp"
    QFORMER = "qformer"


class LanguageModel(StrEnum):
    """Kinds of language model."""

    DECODER = "decoder"
    ENCODER_DECODER = "encoder-decoder"


class Data(StrEnum):
    """Embedded sets of pictures."""

    SCENES = "scenes"
    DIGITS = "digits"


def quickstart(
    connector: Annotated[Connector, typer.Option(help="The bridge that is trained.")] = Connector.MLP,
    language_model: Annotated[
        LanguageModel, typer.Option(help="The frozen language model; pictures enter its input, or its encoder.")
    ] = LanguageModel.DECODER,
    data: Annotated[
        Data, typer.Option(help="Drawn shapes, or real scanned handwriting (digits in coloured ink).")
    ] = Data.SCENES,
    out: Annotated[Path, typer.Option(help="Folder for model, report and pictures.")] = Path("runs/quickstart"),
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the frozen parents too, instead of the shipped ones.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of pictures, questions and weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")] = False,
) -> None:
    """Train a tiny bridge on this machine, show what it learned, write a report.

    A frozen vision tower and a frozen language model, neither of which has ever met the other's kind of data, are
    joined by a bridge: the only thing that trains. Needs no network and no GPU.

    \b
    Examples:
      sightbridge quickstart
      sightbridge quickstart --connector qformer --language-model encoder-decoder
      sightbridge quickstart --data digits --out runs/digits
    """
    from sightbridge.quickstart.run import QuickstartSettings, run_quickstart

    settings = QuickstartSettings(
        connector=connector.value,
        language_model=language_model.value,
        data="digits" if data is Data.DIGITS else "shapes",
        folder=out,
        from_scratch=from_scratch,
        overwrite=overwrite,
        seed=seed,
    )
    out_console = console()
    results = run_quickstart(settings, out_console)
    out_console.print(_table(results))
    _print_summary(results, settings)


def _table(results: dict[str, Any]) -> Table:
    table = new_table("question about", "with picture", "without picture", "commonest answer")
    for type_, share in results["accuracy"].items():
        others = results["text_only_baseline"][type_], results["chance"][type_]
        if type_ == "mean":
            table.add_section()
        table.add_row(type_, f"[bold]{share:.1%}[/]", *(f"{other:.1%}" for other in others))
    return table


def _print_summary(results: dict[str, Any], settings: QuickstartSettings) -> None:
    out = console()
    trained, frozen = results["trained_parameters"], results["frozen_parameters"]
    out.print(f"pairs of kind and colour never seen by the bridge: {results['accuracy_new_combinations']:.1%}")
    out.print(
        f"trained {trained:,} weights of {trained + frozen:,}; the frozen ones are bit-identical before and after"
    )
    out.print("seconds: " + ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in results["seconds"].items()))
    out.print(f"\nreport   {settings.folder / 'report.html'}")
    out.print(f"results  {settings.folder / 'results.json'}")
    out.print("\nask it about a picture of your own:")
    out.print(f'  sightbridge ask {settings.folder / "model"} PICTURE "How many red circles are there?"')
