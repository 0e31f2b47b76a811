"""The folder of one run: who may write into it, and what stands in it besides log and model.

RUN/settings.yaml          every setting, defaults included; a recipe itself
RUN/environment.json       versions, platform, command line
RUN/log.jsonl              a line per logged step and per evaluation
RUN/bad_samples.jsonl      records that could not be used, if there were any
RUN/report.html            the run's page: curves (also in curves.png), answers, settings
RUN/samples.jsonl          answers to some records, after the last step
RUN/samples                the marked pictures among theirs
RUN/model                  the model folder, written anew at every save; with training.best, only by a better one
RUN/checkpoints            what it takes to resume the run exactly, see ``state``
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import sightbridge
from sightbridge.config.load import AnyRecipe, save_resolved, write_atomically
from sightbridge.errors import SettingsError
from sightbridge.training.checkpoints import CHECKPOINTS

SETTINGS = "settings.yaml"
ENVIRONMENT = "environment.json"
MODEL = "model"
LEFT_BY_A_RUN = (
    MODEL,
    ".model.*",
    CHECKPOINTS,
    "log.jsonl",
    "bad_samples*.jsonl",
    "tensorboard",
    "samples.jsonl",
    "samples",
    "report.html",
    "curves.png",
    SETTINGS,
    ENVIRONMENT,
)
"""What ``overwrite`` removes; anything else in the folder is left alone."""
MADE_BEFORE_A_RUN = ("scenes", "parents")
"""What a quickstart puts into the folder before its run begins."""
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers")


def check_run_folder(folder: Path, overwrite: bool = False) -> None:
    """Check that a run may write into ``folder``: it is new or empty, or another run's that may be overwritten.

    Raises:
        SettingsError: it may not.
    """
    _check_place(folder)
    if not folder.is_dir() or all(path.name in MADE_BEFORE_A_RUN for path in folder.iterdir()):
        return
    if not ((folder / SETTINGS).is_file() and (folder / ENVIRONMENT).is_file()):
        raise SettingsError(f"{folder}: holds files that are not of a run; choose another folder")
    if not overwrite:
        raise SettingsError(
            f"{folder}: holds a run already; choose another folder, or --resume to go on, or --overwrite to lose it"
        )


def _check_place(folder: Path) -> None:
    """Raise ``SettingsError`` if the folder could not be made or written into, before weights are loaded for it."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # a name longer than the file system takes
        raise SettingsError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
    if not existing.is_dir():
        raise SettingsError(f"{existing}: is a file, expected the folder to write the run into; choose another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SettingsError(f"{folder}: cannot be made, {existing} may not be written into; choose another folder")


def start_run_folder(folder: Path, recipe: AnyRecipe, overwrite: bool = False) -> None:
    """Make the folder, or empty it of the run that was in it, and write down settings and environment."""
    check_run_folder(folder, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
    for path in [path for pattern in LEFT_BY_A_RUN for path in folder.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    describe_run(folder, recipe)


def describe_run(folder: Path, recipe: AnyRecipe) -> None:
    """Write down settings and environment."""
    save_resolved(recipe, folder / SETTINGS)
    write_atomically(folder / ENVIRONMENT, json.dumps(describe_environment(), indent=2) + "\n")


def describe_environment() -> dict[str, str | list[str]]:
    """Versions, platform and command line, as a bug report or a comparison of two runs needs them."""
    return {
        "sightbridge": sightbridge.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "command": sys.argv,
    }
