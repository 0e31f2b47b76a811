"""``sightbridge data mix``: many annotation files to one file of instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TextColumn
from rich.text import Text

from sightbridge.cli.console import console, new_progress, new_table, show_table, wide_console
from sightbridge.errors import SettingsError

if TYPE_CHECKING:
    from sightbridge.data.mix.write import MixResult, PartCounts

MANY = 12
"""With more languages than this, only the largest and the smallest are shown."""


def _complete_mix(incomplete: str) -> list[str]:
    from sightbridge.data.mix.settings import mix_names

    return [name for name in mix_names() if name.startswith(incomplete)]


def mix(
    name: Annotated[
        str, typer.Argument(metavar="MIX", help="A shipped mixture or a YAML file.", autocompletion=_complete_mix)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings to change, such as root=/data.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write: .json (a list) or .jsonl.", show_default=False)
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Show so many rows, of all parts and languages.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count everything, write nothing.")] = False,
) -> None:
    """Make one file of instructions in many languages of annotation files, as mBLIP does.

    \b
    Every file is checked, row by row, before anything is written. The same
    settings and files make the same bytes. A recipe trains on the result with
    data.train=[{format: mblip, path: mix.json}].
    \b
    Shipped are scenes and scenes_test (of what 'sightbridge data scenes' draws),
    mblip_v1 and mblip_v2 (mBLIP's task mixtures), and xgqa, xvnli, nlvr2 and
    flickr (its fine-tuning data).
    \b
    Examples:
      sightbridge data mix scenes root=scenes --out scenes/mblip_train.json
      sightbridge data mix my_mix.yaml languages='[en, de]' --out m.json --show 8
      sightbridge data mix mblip_v2 root=/data translator.path=nllb --dry-run
      sightbridge data mix mblip_v2 root=/data parts.imagenet=null --out mix.jsonl
    """
    from sightbridge.data.mix.plan import plan_mix
    from sightbridge.data.mix.settings import read_mix
    from sightbridge.data.mix.write import check_out, count_plan, write_mix

    if out is None and not dry_run:
        raise SettingsError("--out FILE says where to write; --dry-run only checks and counts")
    if out is not None:
        check_out(out)
    settings = read_mix(name, overrides or [])
    with _progress() as on_progress:
        plan = plan_mix(settings, on_progress)
        if out is None or dry_run:
            result = count_plan(plan)
        else:
            result = write_mix(plan, out, examples=show, on_progress=on_progress)
    _show_examples(result)
    _show_counts(result)
    if out is not None and not dry_run:
        console().print(f"{result.total:,} rows in {out}", soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    columns = (*Progress.get_default_columns(), TextColumn("{task.completed:,} rows"))
    with new_progress(*columns) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


def _show_examples(result: MixResult) -> None:
    """Rows in colours; labels also stand in brackets, for those who see no colours and for pipes."""
    out = wide_console()
    for row in result.examples:
        images = row.get("image_id") or f"{row['left_image']} and {row['right_image']}"
        text = Text(f"{row['part']}, {row['language']}, {images}\n", style="bold")
        text.append(row["context"], style="not bold")
        label: Any = row["label"] or row.get("text_label")
        text.append(f"\n⟦{label if isinstance(label, str) else ' | '.join(label)}⟧", style="not bold green")
        out.print(text, end="\n\n")


def _show_counts(result: MixResult) -> None:
    """A table of rows by language and part, then what is not in it."""
    parts = result.parts
    totals: dict[str, int] = {}
    for part in parts.values():
        for code, count in part.rows.items():
            totals[code] = totals.get(code, 0) + count
    codes = sorted(totals, key=lambda code: -totals[code])
    left_out = codes[MANY - 3 : -2] if len(codes) > MANY else []
    table = new_table("language", *parts, "all", "share")
    for code in codes:
        if left_out and code == left_out[0]:
            counts = [sum(part.rows[other] for other in left_out) for part in parts.values()]
            _add_row(table, f"{len(left_out)} more", counts, result.total)
        if code not in left_out:
            _add_row(table, code, [part.rows[code] for part in parts.values()], result.total)
    table.add_section()
    _add_row(table, "all", [part.rows.total() for part in parts.values()], result.total)
    show_table(table)
    for name, part in parts.items():
        for note in _notes(part):
            console().print(f"{name}: {note}", soft_wrap=True, markup=False)


def _add_row(table: Any, name: str, counts: list[int], total: int) -> None:
    share = f"{sum(counts) / total:.2%}" if total else "-"
    table.add_row(name, *(f"{count:,}" for count in counts), f"{sum(counts):,}", share)


def _notes(part: PartCounts) -> Iterator[str]:
    """What somebody who reads only the table would not know."""
    if part.lost:
        yield (
            f"{len(part.lost)} languages got no row, their shares of {part.rows.total():,} are too small or they have "
            f"no names of classes: {', '.join(part.lost)}. min_rows=1 gives each a row where rows are shared out."
        )
    if part.untranslated:
        yield (
            f"{part.untranslated:,} rows in other languages are NOT translated (translator.kind=identity): their "
            "instructions and texts do not fit together."
        )
    for reason, count in part.dropped.items():
        yield f"{count:,} left out: {reason}."
