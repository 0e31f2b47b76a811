"""``sightbridge chat`` in a real terminal, through a pipe, and its commands one by one."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_workplace import Workplace, run_command

import sightbridge
from sightbridge.cli.chat import CONTROL, talk
from sightbridge.cli.chat_commands import Commands, Leave
from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import DataError
from sightbridge.generation.answer import answer
from sightbridge.generation.chat import Chat

pexpect = pytest.importorskip("pexpect")
PATIENCE = 120
"""Seconds: a busy machine takes long to import torch."""


@pytest.fixture
def terminal(workplace: Workplace, tmp_path: Path) -> Iterator[Any]:
    """A session at its first prompt, in ``tmp_path``, with a model that never stops by itself."""
    environment = os.environ | {
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }
    long = ["--context", "100000", "--max-new-tokens", "50000"]
    arguments = ["-m", "sightbridge", "chat", str(workplace.model), str(workplace.picture), *long]
    (tmp_path / "holiday pictures").mkdir()
    (tmp_path / "holiday pictures" / "beach.png").write_bytes(workplace.picture.read_bytes())
    child = pexpect.spawn(
        sys.executable,
        arguments,
        env=environment,
        cwd=tmp_path,
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(40, 120),
    )
    child.logfile_read = io.StringIO()
    child.expect("Ctrl-D leaves")
    child.timeout = 60
    yield child
    child.close(force=True)


def type_line(terminal: Any, keys: str) -> None:
    """Wait for the next prompt, which switches bracketed paste on, and type; what is typed earlier may be lost."""
    terminal.expect_exact("\x1b[?2004h")
    terminal.send(keys)


def test_a_session(terminal: Any, workplace: Workplace, loaded: Any, tmp_path: Path) -> None:
    """Streaming, Ctrl-C, completion of commands and files, commands, and what is kept for the next session."""
    beginning = answer(*loaded, workplace.picture, "What is it?", GenerationSettings(max_new_tokens=30))
    type_line(terminal, "What is it?\r")
    terminal.expect(re.findall(r"[a-z]{4,}", beginning)[-1])  # while the answer is being written
    terminal.sendintr()
    terminal.expect(r"\(stopped\)")

    type_line(terminal, ":rese\t")
    terminal.expect("t-conf")  # drawn at once or after what was typed
    terminal.send("\r")
    terminal.expect("as in the beginning")
    type_line(terminal, ":conf max_new_tokens=2\r")
    terminal.expect(r"max_new_tokens\s+2")
    type_line(terminal, ":img add holi\t")
    terminal.expect("day pictures/")  # the rest is drawn, not the whole line
    terminal.send("bea\t")
    terminal.expect("ch.png")
    terminal.send("\r")
    terminal.expect("picture 2 goes with the next question")

    type_line(terminal, "half a line")
    terminal.expect("half a line")
    terminal.sendintr()  # throws the line away
    terminal.expect("Ctrl-D or :exit leaves")
    type_line(terminal, ":imgs\r")
    terminal.expect("unknown command ':imgs'.*Did you mean ':img'?")
    type_line(terminal, "And this?\r")
    type_line(terminal, ":history\r")
    terminal.expect(r"\[picture 1\] What is it\?")
    terminal.expect(r"\(stopped\)")
    terminal.expect(r"\[picture 2\] And this\?")
    type_line(terminal, ":save session.json\r")
    terminal.expect("saved as")
    type_line(terminal, "\x04")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert "Traceback" not in terminal.logfile_read.getvalue()
    kept = (tmp_path / "state" / "sightbridge" / "chat_history").read_text()
    assert "+What is it?" in kept and "+:save session.json" in kept and "half a line" not in kept
    assert (tmp_path / "state" / "sightbridge" / "chat_history").stat().st_mode & 0o077 == 0
    assert (tmp_path / "session.json").is_file()


@pytest.fixture(scope="module")
def loaded(workplace: Workplace) -> Any:
    return sightbridge.load(workplace.model)


@pytest.fixture
def chat(workplace: Workplace, loaded: Any) -> Chat:
    return Chat(*loaded, [workplace.picture], settings=GenerationSettings(max_new_tokens=4))


@pytest.fixture
def commands(chat: Chat) -> Commands:
    return Commands(chat)


def test_a_pipe_is_answered_line_by_line(
    workplace: Workplace, loaded: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerationSettings(max_new_tokens=4)
    expected = answer(*loaded, workplace.picture, "What?", settings)
    command = ["chat", workplace.model, workplace.picture, "--max-new-tokens", 4]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nWhat?\n:his\n"))
    assert run_command(*command) == 0
    out, err = capsys.readouterr()
    assert out == f"{expected}\n> [picture 1] What?\n{expected}\n" and err == ""
    assert "\x1b" not in out
    monkeypatch.setattr(sys, "stdin", io.StringIO(":what\nWhat?\n:q\nnever read\n"))
    assert run_command(*command) == 1
    out, err = capsys.readouterr()
    assert out == f"{expected}\n"
    assert err.startswith("error: unknown command ':what'") and err.count("\n") == 1


def test_every_name_of_the_references_is_known(commands: Commands) -> None:
    names = (
        ":help :h :exit :quit :q :clear :cl :clear-history :clear-his :clh :history :his :seed :conf :reset-conf :img"
    )
    assert set(names.split()) <= set(commands.by_name)


def test_commands_change_the_conversation(
    commands: Commands, chat: Chat, workplace: Workplace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    chat.ask("What?")
    commands.run(f":img add '{workplace.picture.with_name('00001.png')}'")
    commands.run(":img")
    assert "2  " in capsys.readouterr().out
    commands.run(":conf temperature=0.7 'stop=[\"a b\"]'")
    assert chat.settings.temperature == 0.7 and chat.settings.sample and chat.settings.stop == ["a b"]
    commands.run(":seed 5")
    assert chat.settings.seed == 5
    commands.run(":seed none")
    assert chat.settings.seed is None
    commands.run(f":save {tmp_path / 'a chat.json'}")
    commands.run(":img remove 1")
    commands.run(":clh")
    assert len(chat.waiting) == 1 and not chat.exchanges
    commands.run(":reset-conf")
    assert chat.settings == chat.default_settings
    commands.run(f":load {tmp_path / 'a chat.json'}")
    assert len(chat.exchanges) == 1 and len(chat.pictures) == 2 and chat.settings.temperature == 0.7
    capsys.readouterr()
    commands.run(":his")
    commands.run(":conf")
    commands.run(":help")
    out = capsys.readouterr().out
    assert "[picture 1] What?" in out and "temperature" in out and "repetition_penalty" in out and ":clear-his" in out
    for leave in (":exit", ":quit", ":q"):
        with pytest.raises(Leave):
            commands.run(leave)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (":clear-histori", "unknown command ':clear-histori'. Did you mean ':clear-history'"),
        (":?", "unknown command ':?'. ':help' lists all"),
        (":conf temprature=1", "unknown setting. Did you mean 'temperature'"),
        (":conf temperature", "expected KEY=VALUE"),
        (":conf temperature=__import__('os').getpid()", "temperature: expected a number"),
        (":conf num_beams=2 sample=true", "choose one"),
        (":seed x", "expected a whole number or none"),
        (":img ad x.png", "expected nothing after it, got 'ad x.png'. Did you mean ':img add'"),
        (":img add", "expected FILE after it"),
        (":img add none.png", "no such picture file"),
        (":img remove two", "expected the number of a picture"),
        (":img remove 2", "no picture 2; there are 1"),
        (":save", "expected FILE after it"),
        (":load none.json", "cannot read the conversation"),
        (":help me", "expected nothing after it"),
    ],
)
def test_wrong_commands(line: str, message: str, commands: Commands) -> None:
    with pytest.raises(ValueError) as caught:
        commands.run(line)
    assert message in str(caught.value)


def test_completion(commands: Commands, chat: Chat) -> None:
    def complete(line: str) -> list[str]:
        return [text for text, _ in commands.complete(line)]

    assert complete(":clear-h") == [":clear-history", ":clear-his"]
    assert complete(":img ") == ["add", "remove"] and complete(":img a") == ["add"]
    assert complete(":img remove ") == ["1"]
    assert complete(":conf temperature=1 top_") == ["top_p=", "top_k="]
    assert complete("what") == [] and complete(":his ") == []
    assert commands.file_part(":img add my pic") == "my pic" and commands.file_part(":save ") == ""
    assert commands.file_part(":his x") is None


def test_ctrl_c_stops_the_answer_only(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sightbridge.cli.chat.read_lines", lambda *_: iter(["What?", ":conf max_new_tokens=2", "And?"]))
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    chat.context = 10**6
    chat.configure(max_new_tokens=100_000)
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    assert talk(chat, "model")
    timer.join()
    assert [exchange.stopped for exchange in chat.exchanges] == [True, False]
    assert CONTROL.sub("", chat.exchanges[0].answer) in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_overlong_question_is_an_error_and_the_session_goes_on(chat: Chat) -> None:
    chat.context = 120
    with pytest.raises(DataError, match=r"take \d+ tokens even without any earlier turn"):
        chat.ask("What is it? " * 60)
    assert chat.ask("What?") is not None


def test_options_that_exclude_each_other(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("chat", workplace.model, "--cpu", "--device-map", "auto") == 1
    assert "leave out --cpu" in capsys.readouterr().err
    assert run_command("chat", workplace.model, "none.png") == 1
    assert "no such picture file" in capsys.readouterr().err
