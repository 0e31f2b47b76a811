"""``sightbridge merge-weights``: a model put together from parts of several files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightbridge.cli.convert import (
    AllowNanOption,
    BridgeOption,
    LanguageModelOption,
    LaterWinsOption,
    SelfContainedOption,
    SettingsArgument,
    TokenizerOption,
    VisionOption,
    convert_and_show,
)
from sightbridge.errors import SettingsError


def merge_weights(
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
    """Put a model together from parts of several files, each in any format.

    Of what a flag names only its own part is taken, whatever else is there. A flag can be repeated for files that
    complete each other; a weight that two of them hold is an error, unless --later-wins. To make the adapters of a
    language model part of its weights, see 'sightbridge merge'.

    \b
    Examples:
      sightbridge merge-weights OUT --vision eva_vit_g.pth \\
          --bridge blip2_pretrained_opt2.7b.pth --language-model facebook/opt-2.7b
      sightbridge merge-weights OUT --bridge runs/mine/model \\
          --vision openai/clip-vit-large-patch14-336 \\
          --language-model lmsys/vicuna-7b-v1.5
      sightbridge merge-weights OUT --vision vit.pdparams \\
          --bridge qformer.pdparams --bridge projection.pdparams \\
          --language-model facebook/opt-2.7b
    """
    if not bridge:
        raise SettingsError("say at least where the connector is: --bridge PATH")
    convert_and_show(
        None,
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
