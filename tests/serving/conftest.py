"""Models of other rooms' tests serve here too."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "models"), str(TESTS / "scoring")]
