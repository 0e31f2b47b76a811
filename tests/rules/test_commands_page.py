"""The documentation speaks of commands that exist, and docs/commands.md of every one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
import typer
from typer._click.exceptions import UsageError
from typer.core import TyperGroup
from typer.main import get_command

from sightbridge.cli.main import VERBS, build_app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "deploy").glob("*.md"))]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
APP = get_command(build_app())


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words behind ``sightbridge`` of every command in the fenced blocks of a page."""
    for kind, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            is_output = kind == "console" and not line.startswith("$ ")
            if re.search(r"(?:^|\s)sightbridge\s", line) and not is_output:
                yield from commands_in(line)


def commands_in(line: str) -> Iterator[list[str]]:
    """Commands of ours in a line of a shell; what stands in the middle of words is none."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    before, words = "", iter(lexer)
    for word in words:
        if word == "sightbridge" and re.fullmatch(r"|\$|-m|\w+=.*|[|;&(]+", before):
            yield list(takewhile(lambda word: not re.fullmatch(r"[|;&()<>]+", word), words))
        before = word


def wrong_in(words: list[str]) -> str | None:
    """What a command names that is not there: its verb, or an option; ``None`` if all is there."""
    found, words = APP, list(words)
    while isinstance(found, TyperGroup) and words and not words[0].startswith("-"):
        try:
            _, found, words = found.resolve_command(typer.Context(found), words)
        except UsageError:
            return words[0]
    options = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options |= {"--help", "-h", "--debug"}
    named = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return next((name for name in named if name not in options), None)


def test_every_verb_has_a_section() -> None:
    sections = re.findall(r"^## (.+)$", (ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(VERBS) == {section.split()[0] for section in sections}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_pages_exist(page: Path) -> None:
    wrong = [(name, command) for command in commands_of(page) if (name := wrong_in(command))]
    assert not wrong


def test_what_does_not_exist_is_found() -> None:
    assert wrong_in(["serv", "MODEL"]) == "serv"
    assert wrong_in(["serve", "MODEL", "--prot", "8000"]) == "--prot"
    assert list(commands_in("$ A=b sightbridge serve M --port 80 | head")) == [["serve", "M", "--port", "80"]]
    assert len(list(commands_of(ROOT / "docs" / "commands.md"))) > 30
