"""``sightbridge judge``: let a language model grade free answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sightbridge.cli.console import new_progress
from sightbridge.cli.rescore import show_results
from sightbridge.errors import SettingsError


def judge(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="That 'evaluate' wrote.", show_default=False)],
    task: Annotated[str, typer.Option(help="Whose answers are graded.")] = "vip_bench",
    url: Annotated[str, typer.Option(help="Chat server of OpenAI's protocol, up to /v1.", show_default=False)] = "",
    model: Annotated[str, typer.Option(help="Model to ask there.", show_default=False)] = "",
    runs: Annotated[int, typer.Option(min=1, help="Grade every answer so many times.")] = 1,
    instruction: Annotated[
        Path | None, typer.Option(help="Text file with what the judge is told first.", show_default="our own")
    ] = None,
    key_env: Annotated[str, typer.Option(help="Environment variable with the server's key.")] = "OPENAI_API_KEY",
) -> None:
    """Have free answers graded by a language model, and measure them again.

    Grades are kept beside the answers; a stopped call goes on where it was. Published ViP-Bench scores were made with
    the instruction in its authors' evaluator and gpt-4-0613; give that text with --instruction to compare.

    \b
    Examples:
      sightbridge judge runs/mine/evaluation --url http://127.0.0.1:8000/v1 --model qwen2.5-32b
      sightbridge judge runs/mine/evaluation --url https://api.openai.com/v1 --model gpt-4-0613 --instruction vip.txt
    """

    from sightbridge.checkpoints.atomic import alone_in
    from sightbridge.evaluation.judge import INSTRUCTION, Judge, judge_part
    from sightbridge.evaluation.predictions import files_of
    from sightbridge.evaluation.results import read_settings
    from sightbridge.evaluation.task import Task

    if not url or not model:
        raise SettingsError("say who grades: --url http://HOST:PORT/v1 --model NAME")
    settings = read_settings(folder)
    if task not in settings:
        raise SettingsError(f"--task: {folder} has no answers to '{task}', but to {', '.join(settings)}")
    text = INSTRUCTION
    if instruction is not None:
        try:
            text = instruction.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--instruction: cannot read {instruction} ({error})") from error
    grader = Judge(url.rstrip("/"), model, os.environ.get(key_env), text)
    with alone_in(folder, folder), new_progress() as bars:
        for part in Task(task, settings[task]).parts():
            if files_of(part, folder):
                bar = bars.add_task(part.label, total=None)
                judge_part(part, folder, grader, runs, lambda count, bar=bar: bars.advance(bar, count))
    show_results(folder, [task])
