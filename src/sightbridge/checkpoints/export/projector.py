"""``--to projector``: the connector alone, as LLaVA saves it behind its first stage."""

from __future__ import annotations

from pathlib import Path

from sightbridge.checkpoints.mm_projector import PREFIXES, export_mm_projector
from sightbridge.errors import SettingsError

FILE = "mm_projector.bin"
FORMATS = ("mm-projector",)
"""Names in ``formats.FORMATS`` of what reads it back."""


def write_projector(folder: Path, out: Path, prefix: str | None = None) -> tuple[Path, int]:
    """Write the connector of ``folder`` into the file ``out``, or into ``out``/mm_projector.bin if that is a folder.

    Returns:
        The file and the number of weights in it.

    Raises:
        CheckpointError: the connector is of another kind or damaged.
        SettingsError: keys of such files never begin with ``prefix``.
    """
    if prefix is not None and prefix not in PREFIXES:
        raise SettingsError(f"--prefix: expected {' or '.join(PREFIXES)}, got '{prefix}'")
    path = out / FILE if out.is_dir() else out
    return path, export_mm_projector(folder, path, prefix or PREFIXES[0])
