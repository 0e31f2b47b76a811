"""METEOR of captions by its own program (Denkowski and Lavie, 2014), where Java and the COCO toolkit are installed.

It aligns words by stem, synonym and paraphrase; nobody has rewritten its tables, so nothing here tries to.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec

from sightbridge.errors import SettingsError

PACKAGE = "pycocoevalcap"


def check_meteor() -> None:
    """Raise ``SettingsError`` if Java or the toolkit is missing."""
    if find_spec(PACKAGE) is None:
        raise SettingsError(f"METEOR is a program in the package {PACKAGE}: pip install {PACKAGE}", key="metrics")
    if shutil.which("java") is None:
        raise SettingsError(
            "METEOR is a Java program, and there is no 'java' here; install one, or leave it out", "metrics"
        )


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR 1.5 of all captions together (0 to 1), as the COCO toolkit calls it; of English, tokenised texts."""
    check_meteor()
    from pycocoevalcap.meteor.meteor import Meteor  # pyright: ignore[reportMissingImports]

    numbers = range(len(candidates))
    score, _ = Meteor().compute_score({n: list(references[n]) for n in numbers}, {n: [candidates[n]] for n in numbers})
    return float(score)
