"""``sightbridge export``: a model, or a part of it, in the files of another project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sightbridge.cli.console import console
from sightbridge.errors import SettingsError, nearest


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to write.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(help="mm_projector: the connector alone, as LLaVA saves it.", show_default=False),
    ],
    prefix: Annotated[
        str | None,
        typer.Option(help="Of the keys of an mm_projector: model.mm_projector. or mm_projector.", show_default=False),
    ] = None,
) -> None:
    """Write a model for another project.

    An mm_projector is what LLaVA, ViP-LLaVA and CLIP-FlanT5 keep of their first stage; a name that ends in .safetensors
    is written as such. 'training.init_from' reads it again.

    \b
    Examples:
      sightbridge export runs/llava-pretrain/model mm_projector.bin --to mm_projector
      sightbridge export runs/clip_flant5-pretrain/model mm_projector.bin --to mm_projector --prefix mm_projector.
    """
    if to not in TARGETS:
        known = ", ".join(TARGETS)
        raise SettingsError(f"--to: unknown target '{to}'. Known: {known}.{nearest(to, list(TARGETS))}")
    console().print(TARGETS[to](model, out, prefix), markup=False, soft_wrap=True)


def to_mm_projector(model: Path, out: Path, prefix: str | None) -> str:
    """Write the connector of ``model`` into the file ``out``, or into ``out``/mm_projector.bin if that is a folder."""
    from sightbridge.checkpoints.mm_projector import PREFIXES, export_mm_projector

    if prefix is not None and prefix not in PREFIXES:
        raise SettingsError(f"--prefix: expected {' or '.join(PREFIXES)}, got '{prefix}'")
    path = out / "mm_projector.bin" if out.is_dir() else out
    count = export_mm_projector(model, path, prefix or PREFIXES[0])
    return f"{count:,} weights of the connector written to {path}."


TARGETS: dict[str, Callable[[Path, Path, str | None], str]] = {"mm_projector": to_mm_projector}
"""What can be written, by the name that ``--to`` gives it."""
