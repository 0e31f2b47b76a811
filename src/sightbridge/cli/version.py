"""``sightbridge version``: what a bug report needs to say."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import typer

import sightbridge

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "pillow", "numpy", "pydantic")


def version() -> None:
    """Show the versions of sightbridge and of what it stands on.

    \b
    Example:
      sightbridge version
    """
    lines = [("sightbridge", sightbridge.__version__), ("python", platform.python_version())]
    lines += [(name, _version_of(name)) for name in PACKAGES]
    lines.append(("platform", platform.platform()))
    for name, value in lines:
        typer.echo(f"{name:<13} {value}")


def print_version(wanted: bool) -> None:
    """Callback of ``--version``: print the bare version and stop."""
    if wanted:
        typer.echo(sightbridge.__version__)
        raise typer.Exit


def _version_of(package: str) -> str:
    # From the installed metadata: importing torch to ask it would take seconds.
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "not installed"
