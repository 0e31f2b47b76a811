"""``sightbridge data flatten``: conversations of several questions to rows of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TextColumn

from sightbridge.cli.console import console, new_progress


def flatten(
    source: Annotated[Path, typer.Argument(metavar="IN", help="LLaVA's conversations, .json or .jsonl.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .json (a list) or .jsonl.")],
) -> None:
    """Make every question of LLaVA's conversations a row of its own, as CLIP-FlanT5 does.

    \b
    For encoder-decoders, whose decoder learns the last answer of a row alone. The
    first question stays as it is; later ones lose what was said before them and
    get the row's pictures in front. Questions about text alone get none.
    \b
    Example:
      sightbridge data flatten llava_v1_5_mix665k.json flattened.json
    """
    from sightbridge.data.flatten import flatten as flatten_file

    columns = (*Progress.get_default_columns(), TextColumn("{task.completed:,} rows"))
    with new_progress(*columns) as progress:
        task = progress.add_task("flattening", total=None)
        counts = flatten_file(source, out, lambda: progress.advance(task))
    say = console().print
    say(f"{counts.read:,} rows read, {counts.several:,} of them with several questions", soft_wrap=True)
    if counts.openings:
        say(f"{counts.openings:,} opening turns of the assistant left out: they answer nothing", soft_wrap=True)
    say(
        f"{counts.written:,} rows in {out}, {counts.text_only:,} of them without a picture",
        soft_wrap=True,
        markup=False,
    )
