"""The command line's frame: exit statuses, error lines, completion, output to terminals and pipes."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest
import typer

from sightbridge.cli import main as frame
from sightbridge.cli.console import new_table, show_table
from sightbridge.errors import DataError


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sightbridge", *arguments],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | environment,
        timeout=60,
    )


def exit_status(arguments: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        frame.main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Add a verb ``fail`` that raises what the test asks for."""

    def add(error: BaseException) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setitem(frame.VERBS, "fail", fail)

    return add


def test_help_shows_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(["--help"]) == 0
    text = capsys.readouterr().out
    listed = re.findall(r"^│ ([\w-]+) ", text.partition(" Commands ")[2], re.MULTILINE)
    assert listed == list(frame.VERBS)


@pytest.mark.parametrize("name", list(frame.VERBS))
def test_every_verb_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status([name, "--help"]) == 0
    if not isinstance(frame.VERBS[name], typer.Typer):
        assert f"sightbridge {name}" in capsys.readouterr().out.split("Example", 1)[1]


def test_a_users_mistake_is_one_line(verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb(DataError("train.json, row 3: [brackets] and :x: are kept, and the line is not broken " + "x" * 200))
    assert exit_status(["fail"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: train.json, row 3: [brackets] and :x: are kept, and the line is not broken {'x' * 200}\n"


@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback(verb, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    verb(DataError("bad row"))
    assert exit_status(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("error: bad row\n")


def test_the_unexpected_says_how_to_see_more(verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb(RuntimeError("first line\nsecond line"))
    assert exit_status(["fail"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("error: RuntimeError: first line (unexpected; add --debug")


def test_a_full_disk_is_not_unexpected(verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb(OSError(errno.ENOSPC, "No space left on device", "runs/log.jsonl"))
    assert exit_status(["fail"]) == 1
    assert capsys.readouterr().err == "error: runs/log.jsonl cannot be read or written: No space left on device\n"


def test_interrupted(verb) -> None:
    verb(KeyboardInterrupt())
    assert exit_status(["fail"]) == 130


def test_debug_after_two_dashes_is_an_ordinary_word() -> None:
    assert frame._without_debug(["ask", "--debug", "--", "--debug"]) == (["ask", "--", "--debug"], True)
    assert frame._without_debug(["ask", "--", "--debug"]) == (["ask", "--", "--debug"], False)


def test_a_wrong_verb_is_status_2() -> None:
    assert exit_status(["recipez"]) == 2


def test_recipes_are_listed_whole_when_piped() -> None:
    result = run("recipes", COLUMNS="20")
    assert result.returncode == 0
    rows = [line for line in result.stdout.splitlines() if line.strip().startswith("tiny/random ")]
    assert len(rows) == 1
    assert "any CPU" in rows[0]


def test_recipes_filter(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(["recipes", "TINY", "llama"]) == 0
    assert "tiny/random" in capsys.readouterr().out
    assert exit_status(["recipes", "tiny", "no-such-word"]) == 1
    assert capsys.readouterr().err.startswith("error: no recipe matches 'tiny no-such-word'")


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert exit_status(["recipes", "--schema"]) == 0
    kinds = json.loads(capsys.readouterr().out)["$defs"]
    assert all("base" in kinds[kind]["properties"] for kind in ("Recipe", "QFormerRecipe", "ParentRecipe"))


def test_inspect_recipe_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(["inspect", "recipe", "tiny/random", "optim.lr=1e-4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("optim.lr=0.0001   override 1")
    assert lines[at + 1].strip() == "peak learning rate"
    assert "training.accumulation=1   default" in lines
    assert any(line.startswith("training.steps=10   tiny") and ".yaml:" in line for line in lines)


def test_inspect_recipe_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(["inspect", "recipe", "tiny/random", "optim.lrr=1"]) == 1
    assert capsys.readouterr().err == "error: override 1: optim.lrr: unknown setting. Did you mean 'lr'?\n"


def test_names_survive_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the captured stream for a terminal
    monkeypatch.setenv("COLUMNS", "40")
    table = new_table("recipe", "description")
    table.add_row("mblip/instruct-bloomz7b", "many words that have to fold " * 5)
    show_table(table)
    out = capsys.readouterr().out
    assert "mblip/instruct-bloomz7b" in out
    assert max(map(len, out.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines())) <= 40


def test_version() -> None:
    import sightbridge

    assert run("--version").stdout == f"{sightbridge.__version__}\n"
    text = run("version").stdout
    assert text.startswith(f"sightbridge   {sightbridge.__version__}\n")
    assert "transformers  5." in text


def test_texts_print_in_any_locale() -> None:
    code = "from sightbridge.cli.console import *; use_utf8(); print_error('é 你'); console().print('é 你')"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, timeout=60
    )
    assert result.stdout.decode() == "é 你\n"
    assert result.stderr.decode() == "error: é 你\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes and signals")
def test_a_closed_pipe_ends_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sightbridge", "recipes", "--schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) in (1, -signal.SIGPIPE)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sightbridge insp", "inspect"),
        ("sightbridge inspect recipe tiny/ran", "tiny/random"),
        ("sightbridge inspect recipe tiny/random optim.warmup_r", "optim.warmup_ratio="),
    ],
)
def test_tab_completion(words: str, expected: str) -> None:
    result = run(_SIGHTBRIDGE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
    assert result.stdout.split() == [expected]
