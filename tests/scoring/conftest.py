"""Helpers of other rooms' tests are used here as well."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "models"), str(TESTS / "cli")]
