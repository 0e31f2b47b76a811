"""A language model that grades free answers, as ViP-Bench's and MM-Vet's authors let GPT-4 do.

Each answer is graded between 0 and 1 by any server that speaks OpenAI's chat protocol. What is asked is an instruction
with examples, then ``question | true answer | answer |``; the first word that comes back is the grade. An answer that
is no number is asked for again, a little warmer each time (ViP-Bench's evaluator in WisconsinAIVision/ViP-LLaVA:
five times, then 0).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pydantic import TypeAdapter, ValidationError

from sightbridge.errors import DataError, SettingsError
from sightbridge.evaluation.predictions import appending, file_of, files_of, read_lines, whole_lines, write_lines
from sightbridge.evaluation.task import Part

TRIES = 5
WARMER = 0.5
"""Added to the temperature at every further try."""
LAST_WORDS = "Predict the correctness of the answer (digit): "
TIMEOUT = 120.0
"""Seconds that the server may take for one grade."""
BUSY = (429, 503)
PATIENCE = 6
"""So often a server that is busy is asked; then the call ends, and the next one goes on from there."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, whatever the server's ``Retry-After`` says."""
INSTRUCTION = """Grade how right an answer to a question about a picture is, from 0.0 (wrong) to 1.0 (right), in steps \
of 0.1. In a true answer, <AND> joins parts that all have to be there, <OR> joins alternatives of which one is enough. \
Extra words do not matter unless they contradict the true answer. Reply with the grade alone.

question | true answer | answer | grade
--- | --- | --- | ---
What is x in the equation within the red box? | -1 <AND> -5 | x = 3 | 0.0
What is x in the equation within the red box? | -1 <AND> -5 | x = -1 | 0.5
What is x in the equation within the red box? | -1 <AND> -5 | x = -5 or x = -1 | 1.0
What animal does the arrow point at? | cat <OR> kitten | It points at a small kitten on a sofa. | 1.0
What animal does the arrow point at? | cat <OR> kitten | a puppy | 0.0
"""
"""Used unless a file with another one is given. Published scores were made with the authors' own instruction, which is
in their evaluator; scores of different instructions or judges do not compare."""


@dataclass(frozen=True)
class Grade:
    """A line of grades: of the answer ``id``, by ``judge``, who ``said`` it."""

    id: str
    run: int
    judge: str
    grade: float
    said: str = ""


GRADE = TypeAdapter(Grade)


@dataclass(frozen=True)
class Judge:
    """A chat server: ``url`` up to and with ``/v1``, the ``model`` to ask there, and what it is told first."""

    url: str
    model: str
    key: str | None = None
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise SettingsError(f"'{self.url}': expected the address of a server, such as http://127.0.0.1:8000/v1")

    @property
    def name(self) -> str:
        """The model, and a hash of the instruction if that is not our own: grades of others do not compare."""
        if self.instruction == INSTRUCTION:
            return self.model
        return f"{self.model} (instruction {hashlib.sha256(self.instruction.encode()).hexdigest()[:12]})"

    def grade(self, question: str, truth: str, answer: str) -> tuple[float, str]:
        """Ask for the grade of one answer: the grade, and what the judge wrote.

        Raises ``SettingsError`` if the server cannot be reached or refuses.
        """
        told = f"{self.instruction}\n{question} | {_spaced(truth)} | {answer} | "
        said = ""
        for attempt in range(TRIES):
            said = self._ask(told, WARMER * attempt)
            if (value := read_grade(said)) is not None:
                return value, said
            told += LAST_WORDS if attempt == 0 else ""
        return 0.0, said

    def _ask(self, prompt: str, temperature: float) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": 3,
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with _open_patiently(request) as response:
                said = str(json.load(response)["choices"][0]["message"]["content"] or "")
            return said.encode(errors="replace").decode()  # half a character, as \ud83d alone, cannot be kept
        except HTTPError as error:
            told = error.read(200).decode(errors="replace")
            raise SettingsError(f"{self.url}: refused with status {error.code} ({told})") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise SettingsError(f"{self.url}: its answer is not one of OpenAI's chat protocol") from error
        except (OSError, HTTPException) as error:
            raise SettingsError(f"{self.url}: cannot be asked ({error})") from error


def _open_patiently(request: Request) -> Any:
    """The server's response; one that is busy is asked again when it says, or after 1, 2, 4, ... seconds."""
    for attempt in range(PATIENCE - 1):
        try:
            return urlopen(request, timeout=TIMEOUT)
        except HTTPError as error:
            if error.code not in BUSY:
                raise
            told = error.headers.get("Retry-After", "")
            error.close()
            time.sleep(min(float(told) if told.isdecimal() else 2.0**attempt, LONGEST_WAIT))
    return urlopen(request, timeout=TIMEOUT)


def read_grade(said: str) -> float | None:
    """The first word as a number from 0 to 1; ``None`` if it is something else."""
    words = said.split()
    if not words or not re.fullmatch(r"\d*\.?\d+|\d+\.", words[0].rstrip(",;")):
        return None
    value = float(words[0].rstrip(",;"))
    return value if 0 <= value <= 1 else None


def judge_part(
    part: Part, out: Path, judge: Judge, runs: int = 1, on_grade: Callable[[int], None] = lambda count: None
) -> None:
    """Have every answer of a part graded ``runs`` times; what is graded already by this judge is not asked again.

    Raises ``DataError`` if there are no answers, or they were graded by another judge.
    """
    answers = [line for line in read_lines(files_of(part, out)) if "answer" in line]
    if not answers:
        raise DataError(f"{part.label}: there are no answers in {out} to be graded; evaluate first.")
    path = grades_file(part, out)
    known = list(read_grades(part, out))
    if others := {grade.judge for grade in known} - {judge.name}:
        raise DataError(
            f"{path}: holds grades by {', '.join(sorted(others))}, not by {judge.name}; move that file away."
        )
    done = {(grade.id, grade.run) for grade in known}
    on_grade(len(done))
    with appending(path) as file:
        for run in range(runs):
            for line in answers:
                if (line["id"], run) not in done:
                    truth = " <OR> ".join(line["truths"])
                    question = line["meta"].get("question") or line["prompt"]
                    value, said = judge.grade(question, truth, line["answer"])
                    write_lines(file, [asdict(Grade(line["id"], run, judge.name, value, said))])
                    on_grade(1)


def grades_file(part: Part, out: Path) -> Path:
    """Where the grades of a part are."""
    answers = file_of(part, out)
    return answers.with_name(f"{answers.stem}.grades.jsonl")


def read_grades(part: Part, out: Path) -> Iterator[Grade]:
    """The grades of a part, none if nobody gave any; raises ``DataError`` for a damaged file."""
    path = grades_file(part, out)
    if not path.is_file():
        return
    for number, text in whole_lines(path):
        try:
            grade = GRADE.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise DataError(f"{path}, line {number}: not a line of grades: {what}.") from None
        yield grade


def _spaced(truth: str) -> str:
    return truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
