"""``sightbridge merge``: adapters made part of their language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightbridge.cli.console import console
from sightbridge.errors import SettingsError


def merge(
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="A model folder with adapters.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the merged model.", show_default=False)] = None,
    base: Annotated[
        str | None, typer.Option(help="Instead of MODEL: a language model's folder or hub name.", show_default=False)
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="With --base: the PEFT folder of its adapters.", show_default=False)
    ] = None,
) -> None:
    """Make the adapters of a language model part of its weights.

    Weights are merged file by file in little memory. Then the merged model and the one with adapters read the same
    row; unless their logits agree, nothing is written.

    \b
    Examples:
      sightbridge merge runs/mine/model --out merged
      sightbridge merge --base bigscience/bloomz-7b1 --adapter adapter --out bloomz-merged
    """
    if out is None:
        raise SettingsError("say where the merged model goes: --out FOLDER")
    if (model is None) == (base is None) or (base is None) != (adapter is None):
        raise SettingsError("give a model folder, or a language model and its adapters: --base LM --adapter PEFT")
    from sightbridge.checkpoints.merge import merge_model, merge_peft

    with console(stderr=True).status("merging"):
        done = merge_model(model, out) if model else merge_peft(base or "", adapter or Path(), out)
    console().print(
        f"{done.layers} layers merged into {done.folder}; logits differ from those with adapters by at most "
        f"{done.difference:.1e}.",
        markup=False,
        soft_wrap=True,
    )
