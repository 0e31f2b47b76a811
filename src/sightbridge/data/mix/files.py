"""Whole files of a mixture: texts and JSON objects, with messages that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightbridge.errors import DataError


def read_text(path: Path) -> str:
    """Read a UTF-8 text file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot read it: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start}).") from error


def parse_json(text: str, path: Path) -> Any:
    """Parse the content of ``path``."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: broken JSON: {error.msg}.") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that is one JSON object."""
    content = parse_json(read_text(path), path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected one JSON object {{...}}.")
    return content
