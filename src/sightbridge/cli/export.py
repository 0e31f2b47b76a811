"""``sightbridge export``: a model, or a part of it, in the files of another project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightbridge.cli.console import console
from sightbridge.errors import SettingsError, nearest

if TYPE_CHECKING:
    from sightbridge.checkpoints.export import Exported

PROJECTOR = ("projector", "mm_projector")
"""The target that is one file, and its name in LLaVA's own files."""


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.", show_default=False)],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A new folder; for a projector a file.", show_default=False)
    ],
    to: Annotated[
        str,
        typer.Option(
            help="hf: transformers' Blip2, InstructBlip, Llava or VipLlava. lavis, paddle: BLIP-2 there. llava: LLaVA, "
            "ViP-LLaVA or CLIP-FlanT5 in the original layout. adapter: LoRA for peft. language_model: that alone, for "
            "transformers and vLLM. projector: the connector alone.",
            show_default=False,
        ),
    ],
    merge: Annotated[bool, typer.Option("--merge", help="Put LoRA adapters into the weights.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16 for all weights.", show_default=False)
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="With hf: load both models and compare their logits; needs their memory.")
    ] = False,
    source: Annotated[
        list[str] | None,
        typer.Option(help="PART=FOLDER: where a referenced part lies now. May be repeated.", show_default=False),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="Of the keys of a projector: model.mm_projector. or mm_projector.", show_default=False),
    ] = None,
) -> None:
    """Write a model for another project, with a model card that says how to load it there.

    Weights go from file to file one at a time. What the other project has no place for is refused with the reason.

    \b
    Examples:
      sightbridge export runs/mine/model exported --to hf
      sightbridge export runs/mblip/model exported --to hf --merge --dtype bfloat16
      sightbridge export runs/llava-pretrain/model mm_projector.bin --to projector
    """
    if to in PROJECTOR:
        _export_projector(model, out, prefix, merge=merge, dtype=dtype, verify=verify, source=source)
        return
    from sightbridge.checkpoints.export import export_model

    _check_target(to, prefix)
    with console(stderr=True).status("reading") as status:
        done = export_model(
            model,
            out,
            to,
            merge=merge,
            dtype=dtype,
            sources=_pairs(source or []),
            verify=verify,
            on_tensor=lambda name: status.update(f"writing {name}"),
        )
    _show(done)


def _check_target(to: str, prefix: str | None) -> None:
    from sightbridge.checkpoints.export import TARGETS

    if to not in TARGETS:
        known = [*TARGETS, *PROJECTOR]
        raise SettingsError(f"--to: unknown target '{to}'. Known: {', '.join(known)}.{nearest(to, known)}")
    if prefix is not None:
        raise SettingsError(f"--prefix: only --to {PROJECTOR[0]} has keys to choose from")


def _show(done: Exported) -> None:
    shown = console()
    shown.print(f"{done.written.what.replace('`', '')} written to {done.folder}.", markup=False, soft_wrap=True)
    for note in done.written.notes:
        shown.print(f"  {note}", markup=False, soft_wrap=True)


def _export_projector(model: Path, out: Path, prefix: str | None, **others: Any) -> None:
    if given := [name for name, value in others.items() if value]:
        raise SettingsError(f"--{given[0]}: --to {PROJECTOR[0]} writes the connector alone, as it is; leave it away")
    from sightbridge.checkpoints.export.projector import write_projector

    path, count = write_projector(model, out, prefix)
    console().print(f"{count:,} weights of the connector written to {path}.", markup=False, soft_wrap=True)


def _pairs(given: list[str]) -> dict[str, str]:
    """``PART=FOLDER`` by part."""
    pairs = {}
    for text in given:
        part, equals, place = text.partition("=")
        if not (part and equals and place):
            raise SettingsError(f"--source: expected PART=FOLDER, such as language_model=/models/opt, got '{text}'")
        pairs[part] = place
    return pairs
