"""Lines for ``sightbridge chat``: from a terminal, where they can be edited and completed, or from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from sightbridge.cli.console import console

if TYPE_CHECKING:
    from sightbridge.cli.chat_commands import Commands

PROMPT = "> "


def read_lines(commands: Commands, interactive: bool) -> Iterator[str]:
    """Lines that are not empty, without spaces around them, until Ctrl-D or the end of the input."""
    lines = _typed_lines(commands) if interactive else iter(sys.stdin.readline, "")
    for line in lines:
        if line := line.strip():
            yield line


def history_file() -> Path:
    """Where typed lines are kept over sessions: in the folder for the state of programs (XDG base directories)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "sightbridge" / "chat_history"


def _typed_lines(commands: Commands) -> Iterator[str]:
    """Ctrl-C throws the line away that is being typed."""
    read = _prompt_toolkit_reader(commands) if find_spec("prompt_toolkit") else _plain_reader()
    while True:
        try:
            yield read()
        except KeyboardInterrupt:
            console().print(Text("(Ctrl-D or :exit leaves)", style="dim"))
        except EOFError:
            return


def _plain_reader() -> Any:
    note = "History, completion and better editing of lines come with: pip install 'sightbridge[chat]'"
    console().print(Text(note, style="dim"))
    if find_spec("readline"):  # not on Windows
        import_module("readline")  # from now on input() lets lines be edited and recalled
    return lambda: input(PROMPT)


def _prompt_toolkit_reader(commands: Commands) -> Any:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class OfCommands(Completer):
        """Commands and what follows them."""

        files = PathCompleter(expanduser=True)

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            line = document.text_before_cursor.lstrip()
            if not line.startswith(":"):
                return
            if (part := commands.file_part(line)) is not None:
                for found in self.files.get_completions(Document(part), complete_event):
                    is_folder = found.display_text.endswith("/")
                    yield Completion(found.text + "/" * is_folder, found.start_position, display=found.display)
                return
            word = line.rpartition(" ")[2]
            for text, meaning in commands.complete(line):
                yield Completion(text, -len(word), display_meta=meaning)

    try:
        path = history_file()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)  # what was asked is nobody else's business
        history = FileHistory(str(path))  # appends every line at once, so a killed session loses none
    except OSError as error:
        console(stderr=True).print(Text(f"lines are not kept for the next session: {error}", style="dim"))
        history = InMemoryHistory()
    session: PromptSession[str] = PromptSession(
        history=history, completer=OfCommands(), complete_while_typing=False, enable_history_search=True
    )
    return lambda: session.prompt(FormattedText([("bold ansicyan", PROMPT)]))
