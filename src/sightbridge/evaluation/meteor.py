"""METEOR of captions by its own program (Denkowski and Lavie, 2014), where Java and the COCO toolkit are installed.

It aligns words by stem, synonym and paraphrase; nobody has rewritten its tables, so nothing here tries to. The program
reads lines: ``SCORE ||| references ||| caption`` gives the counts of one caption, ``EVAL ||| counts ...`` the score of
each, and then the one of their sums. So it also scores sums of draws.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sightbridge.errors import SettingsError
from sightbridge.evaluation.bootstrap import Floats, Weighted, of_sums

PACKAGE = "pycocoevalcap"
COMMAND = ("java", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")
"""As the COCO toolkit calls it."""
BETWEEN = " ||| "
WORDS, MATCHED, CHUNKS = slice(0, 2), slice(21, 23), 20
"""Places of counts, of the caption and of the reference: words, words that are matched; and runs of matched words."""


def check_meteor() -> None:
    """Raise ``SettingsError`` if Java or the toolkit is missing."""
    if find_spec(PACKAGE) is None:
        raise SettingsError(f"METEOR is a program in the package {PACKAGE}: pip install {PACKAGE}", key="metrics")
    if shutil.which("java") is None:
        raise SettingsError(
            "METEOR is a Java program, and there is no 'java' here; install one, or leave it out", "metrics"
        )


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Weighted:
    """METEOR 1.5 of all captions together (0 to 1), as the COCO toolkit calls it; of English, tokenised texts."""
    check_meteor()
    counts = np.array([_count(*pair) for pair in zip(candidates, references, strict=True)])
    # one run of all words is none in METEOR's own sums: it is not to be punished for its order
    whole = (counts[:, CHUNKS] == 1) & (counts[:, WORDS] == counts[:, MATCHED]).all(axis=1)
    counts[whole, CHUNKS] = 0
    return of_sums(counts, _scores)


def _count(candidate: str, references: Sequence[str]) -> list[float]:
    texts = [text.replace("|||", "").replace("  ", " ") for text in (*references, candidate)]
    return [float(number) for number in _ask(BETWEEN.join(["SCORE", *texts]), 1)[0].split()]


def _scores(sums: Floats) -> dict[str, Floats]:
    lines = [" ".join(map(str, row)) for row in sums.tolist()]
    return {"": np.array(_ask(BETWEEN.join(["EVAL", *lines]), len(lines) + 1)[:-1], dtype=np.float64)}


def _ask(line: str, answers: int) -> list[str]:
    """Hand a line to the program and read so many back."""
    program = _program()
    assert program.stdin and program.stdout, "both are pipes"
    try:
        program.stdin.write(line + "\n")
        program.stdin.flush()
        read = [program.stdout.readline().strip() for _ in range(answers)]
    except OSError as error:
        raise SettingsError(f"METEOR's program stopped: {error}", key="metrics") from error
    if not all(read):
        raise SettingsError(f"METEOR's program stopped; does it run by itself? {' '.join(COMMAND)}", key="metrics")
    return read


@cache
def _program() -> subprocess.Popen[str]:
    """One for all parts and draws: reading its tables takes seconds."""
    folder = Path(str((find_spec(PACKAGE) or check_meteor()).submodule_search_locations[0])) / "meteor"  # pyright: ignore[reportOptionalMemberAccess, reportOptionalSubscript]
    program = subprocess.Popen(
        COMMAND,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    atexit.register(program.kill)
    return program
