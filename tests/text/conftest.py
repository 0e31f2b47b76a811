"""Golden values of the LLaVA family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "llava"


@pytest.fixture(scope="session")
def llava() -> dict[str, Any]:
    """Prompts, ids and labels that the reference implementations of LLaVA and CLIP-FlanT5 computed."""
    return json.loads((GOLDEN / "text" / "expected.json").read_text(encoding="utf-8"))
