"""The command line's frame: the table of verbs, and how mistakes are shown.

A verb is a function in a file of its own (``train`` in ``cli/train.py``), or a ``typer.Typer`` of sub-verbs
(``inspect``). To add one, write the file and name it in ``VERBS``. Verb files import torch, transformers and our heavy
rooms inside their functions only, so that ``sightbridge --help`` and tab completion stay quick.
"""

from __future__ import annotations

import errno
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import typer
from typer.core import TyperGroup

from sightbridge.cli import (
    ask,
    cache,
    chat,
    convert,
    data,
    draw,
    evaluate,
    export,
    features,
    inspect,
    judge,
    merge,
    merge_weights,
    predict,
    quickstart,
    recipes,
    rescore,
    score,
    serve,
    tasks,
    train,
    version,
)
from sightbridge.cli.console import print_error, use_utf8
from sightbridge.errors import SightbridgeError

VERBS: dict[str, Callable[..., None] | typer.Typer] = {
    "quickstart": quickstart.quickstart,
    "train": train.train,
    "cache": cache.app,
    "ask": ask.ask,
    "chat": chat.chat,
    "predict": predict.predict,
    "score": score.score,
    "serve": serve.serve,
    "evaluate": evaluate.evaluate,
    "rescore": rescore.rescore,
    "judge": judge.judge,
    "tasks": tasks.tasks,
    "convert": convert.convert,
    "merge-weights": merge_weights.merge_weights,
    "merge": merge.merge,
    "export": export.export,
    "features": features.features,
    "draw": draw.draw,
    "data": data.app,
    "inspect": inspect.app,
    "recipes": recipes.recipes,
    "version": version.version,
}
"""Every verb, in the order of the help page."""
COMMAND_CLASSES = {"score": score.ScoreCommand}
"""Verbs whose arguments are read in a way of their own."""


OF_THE_MACHINE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Errors that nobody could have checked for beforehand: no permission, or no space on the disk."""
OF_THE_PATH = (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of a path that was given: a file where a folder should be, a name too long for the disk."""


class _InOrder(TyperGroup):
    """Typer lists groups of verbs after all verbs; we list them as in ``VERBS``."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return list(VERBS)


def build_app(verbs: Mapping[str, Callable[..., None] | typer.Typer] = VERBS) -> typer.Typer:
    """The application with all verbs, or some of them."""
    app = typer.Typer(
        cls=_InOrder,
        name="sightbridge",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(sightbridge)
    for name, verb in verbs.items():
        if isinstance(verb, typer.Typer):
            app.add_typer(verb, name=name)
        else:
            app.command(name, cls=COMMAND_CLASSES.get(name))(verb)
    return app


def sightbridge(
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=version.print_version)
    ] = False,
) -> None:
    """Give any language model sight by training only the bridge.

    \b
    Examples:
      sightbridge quickstart                    train a tiny bridge on this machine, see what it learned
      sightbridge recipes                           what can be trained
      sightbridge inspect recipe tiny/random        what a recipe sets, and what that means
      sightbridge data scenes scenes                pictures and questions to train on
      sightbridge train tiny/decoder-mlp            train the bridge of a recipe
      sightbridge ask MODEL photo.jpg "What is it?"
      sightbridge chat MODEL photo.jpg
      sightbridge score MODEL --images a.jpg b.jpg --texts "a red cup" "a blue cup"
      sightbridge evaluate MODEL xgqa pope --data DATA
      sightbridge convert blip2_pretrained_flant5xl.pth OUT
      sightbridge export MODEL OUT --to hf
      sightbridge serve MODEL
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 an error, 2 a wrong command, 130 interrupted.

    Typer itself ends quietly when it is interrupted or when the reader of a pipe has seen enough.
    """
    use_utf8()
    warnings.filterwarnings("ignore", "Image size .* decompression bomb")  # pictures have bounds of our own
    arguments, debug = _without_debug(list(sys.argv[1:] if arguments is None else arguments))
    # the other verbs take a tenth of a second to build, and only help and completion show them
    verbs = {verb: VERBS[verb] for verb in arguments[:1] if verb in VERBS} or VERBS
    try:
        build_app(verbs)(args=arguments, prog_name="sightbridge")
    except SightbridgeError as error:
        _fail(str(error), debug)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE + OF_THE_PATH:
            _fail(f"{error.filename or 'a file'} cannot be read or written: {error.strerror}", debug)
        first_line = str(error).strip().partition("\n")[0]
        again = "" if debug else " (unexpected; add --debug to the command to see where it comes from)"
        _fail(f"{type(error).__name__}: {first_line}{again}", debug)


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Take ``--debug`` out, wherever it stands before a ``--``, so that it can be appended to a failed command."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return kept + arguments[end:], len(kept) < end


def _fail(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print_error(message)
    sys.exit(1)
