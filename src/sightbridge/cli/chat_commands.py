"""The commands of ``sightbridge chat``: lines that begin with a colon. They never reach the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from sightbridge.cli.console import console, new_table, show_table
from sightbridge.cli.marking import save_marked_copy
from sightbridge.cli.marks import read_marks
from sightbridge.errors import SettingsError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from sightbridge.generation.chat import Chat
    from sightbridge.visual_prompts import Mark


class Leave(Exception):  # noqa: N818 (it is no error)
    """The conversation is over."""


class Command(NamedTuple):
    """``takes``: what may follow the name. ``run`` gets that as it was typed."""

    names: tuple[str, ...]
    takes: str
    help: str
    run: Callable[[str], None]


class Commands:
    """Commands about one conversation."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.table = (
            Command((":help", ":h"), "", "list the commands", self.show_help),
            Command((":exit", ":quit", ":q"), "", "leave (also Ctrl-D)", self.leave),
            Command((":clear", ":cl"), "", "clear the screen", lambda _: console().clear()),
            Command(
                (":clear-history", ":clear-his", ":clh"), "", "forget what was said, keep the pictures", self.clear
            ),
            Command((":history", ":his"), "", "show what was said", self.show_history),
            Command((":img",), "", "list the pictures", self.pictures),
            Command((":img add",), "FILE", "show a picture with the next question", self.add_picture),
            Command((":img remove",), "N", "take picture N away", self.remove_picture),
            Command(
                (":mark",),
                "N bbox=LEFT,TOP,RIGHT,BOTTOM [shape=... color=... polygon=... width=... alpha=...]",
                "mark a part of picture N; '<bbox>' in a question becomes the words for it",
                self.mark,
            ),
            Command((":seed",), "[N]", "show or set the seed of sampling; 'none' for a new one each time", self.seed),
            Command((":conf",), "[KEY=VALUE ...]", "show or change how answers are made", self.configure),
            Command((":reset-conf",), "", "make answers as in the beginning", self.reset),
            Command((":save",), "FILE", "write the conversation to a JSON file", self.save),
            Command((":load",), "FILE", "go on with a conversation from such a file", self.load),
        )
        self.by_name = {name: command for command in self.table for name in command.names}

    def run(self, line: str) -> None:
        """Obey a line; raises ``SettingsError`` for an unknown command, ``Leave`` at the end of the conversation."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        inner, _, argument = rest.partition(" ")
        if f"{name} {inner}" in self.by_name:
            name, rest = f"{name} {inner}", argument.strip()
        if name not in self.by_name:
            hint = nearest(name, list(self.by_name)) or " ':help' lists all."
            raise SettingsError(f"unknown command '{name}'.{hint}")
        command = self.by_name[name]
        if bool(rest) != bool(command.takes) and not command.takes.startswith("["):
            longer = [known for known in self.by_name if known.startswith(f"{name} ")]
            hint = nearest(f"{name} {inner}", longer) if longer else ""
            expected = f"{command.takes} after it" if command.takes else "nothing after it"
            raise SettingsError(f"{name}: expected {expected}, got '{rest}'.{hint}")
        command.run(rest)

    def complete(self, line: str) -> Iterator[tuple[str, str]]:
        """What the last word of an unfinished command may become, with what that means; not for names of files."""
        *before, word = line.split(" ")
        if not before:
            yield from ((name, command.help) for name, command in self.by_name.items() if name.startswith(word))
        elif before == [":img"]:
            yield from (
                (name, self.by_name[f":img {name}"].help) for name in ("add", "remove") if name.startswith(word)
            )
        elif before == [":img", "remove"]:
            yield from ((str(n), p.name) for n, p in enumerate(self.chat.pictures, 1) if str(n).startswith(word))
        elif before[0] == ":conf" and "=" not in word:
            fields = type(self.chat.settings).model_fields
            yield from ((f"{key}=", f.description or "") for key, f in fields.items() if key.startswith(word))

    def file_part(self, line: str) -> str | None:
        """The beginning of a file's name that a line ends with, if its command takes one."""
        for name, command in self.by_name.items():
            if command.takes == "FILE" and line.startswith(f"{name} "):
                return line.removeprefix(f"{name} ").lstrip()
        return None

    def show_help(self, _: str) -> None:
        """Show every command."""
        table = new_table("command", "what it does")
        for command in self.table:
            table.add_row(Text(f"{', '.join(command.names)} {command.takes}".strip()), command.help)
        show_table(table)

    def leave(self, _: str) -> None:
        """End the conversation."""
        raise Leave

    def clear(self, _: str) -> None:
        """Forget what was said."""
        self.chat.clear()
        count = len(self.chat.waiting)
        self._say(f"forgotten; {count} picture(s) go with the next question" if count else "forgotten")

    def show_history(self, _: str) -> None:
        """Show questions and answers, pictures by their numbers."""
        if not self.chat.exchanges:
            self._say("nothing was said yet")
        number = 0
        for index, exchange in enumerate(self.chat.exchanges):
            pictures = range(number + 1, number + 1 + len(exchange.pictures))
            number += len(exchange.pictures)
            shown = exchange.question.replace("<image>\n", "<image> ")
            for picture in pictures:
                shown = shown.replace("<image>", f"[picture {picture}]", 1)
            style = "dim" if index < self.chat.left_out else ""
            out = console()
            out.print(Text("> ", style="bold cyan").append(shown, style=f"not bold {style}".strip()))
            out.print(Text(exchange.answer + (" (stopped)" if exchange.stopped else ""), style=style))
        if self.chat.left_out:
            self._say(f"the model no longer sees the first {self.chat.left_out} of these questions and answers")

    def pictures(self, _: str) -> None:
        """List the pictures."""
        waiting = len(self.chat.waiting)
        pictures = self.chat.pictures
        for number, picture in enumerate(pictures, start=1):
            note = "".join(f"  {mark.noun}" for mark in picture.marks)
            note += "  with the next question" if number > len(pictures) - waiting else ""
            console().print(Text(f"{number}  {picture.name}").append(note, style="dim"))
        if not pictures:
            self._say("no pictures; ':img add FILE' shows one")

    def add_picture(self, file: str) -> None:
        """Show a picture with the next question."""
        self.chat.add_picture(_path(file))
        self._say(f"picture {len(self.chat.pictures)} goes with the next question")

    def remove_picture(self, number: str) -> None:
        """Take a picture away."""
        if not number.isdecimal():
            raise SettingsError(f":img remove: expected the number of a picture, got '{number}'; ':img' lists them")
        self._say(f"removed {self.chat.remove_picture(int(number)).name}")

    def mark(self, text: str) -> None:
        """Mark a part of a picture."""
        from sightbridge.images.load import load_image

        number, _, where = text.partition(" ")
        if not number.isdecimal() or not where.strip():
            raise SettingsError(
                f":mark: expected the number of a picture and what to mark on it, such as "
                f"':mark 1 bbox=10,20,110,80 shape=arrow', got '{text}'"
            )
        size = load_image(self.chat.picture(int(number)).source).size
        marks = read_marks(region=[_as_region(where)], size=size, beside=self.chat.marks)
        mark_picture(self.chat, int(number), marks, console())

    def seed(self, number: str) -> None:
        """Show or set the seed."""
        if number:
            if number != "none" and not number.isdecimal():
                raise SettingsError(f":seed: expected a whole number or none, got '{number}'")
            self.chat.configure(seed=None if number == "none" else int(number))
        seed = self.chat.settings.seed
        self._say(f"seed {'none' if seed is None else seed}" + ("" if self.chat.settings.sample else _NOT_SAMPLING))

    def configure(self, changes: str) -> None:
        """Show or change generation settings."""
        if changes:
            self.chat.configure(**_read_changes(changes))
        default = type(self.chat.settings)().model_dump()
        table = new_table("setting", "value", "what it means")
        fields = type(self.chat.settings).model_fields
        for name, value in self.chat.settings.model_dump().items():
            if not changes or value != default[name]:
                table.add_row(name, _show(value), fields[name].description)
        show_table(table)

    def reset(self, _: str) -> None:
        """Go back to the first settings."""
        self.chat.settings = self.chat.default_settings
        self._say("answers are made as in the beginning")

    def save(self, file: str) -> None:
        """Write the conversation."""
        from sightbridge.generation.chat_file import save_chat

        save_chat(self.chat, _path(file))
        self._say(f"saved as {_path(file)}")

    def load(self, file: str) -> None:
        """Go on with another conversation."""
        from sightbridge.generation.chat_file import load_chat

        load_chat(self.chat, _path(file))
        self._say(f"{len(self.chat.exchanges)} question(s), {len(self.chat.pictures)} picture(s)")

    def _say(self, text: str) -> None:
        console().print(Text(text, style="dim"))


def mark_picture(chat: Chat, number: int, marks: Sequence[Mark], out: Console, save_as: Path | None = None) -> None:
    """Mark a picture of a conversation, keep a copy of it as a file, and say how to point at the marks."""
    from sightbridge.images.load import load_image

    picture = chat.mark(number, marks)
    path = save_marked_copy(load_image(picture.source), picture.name, save_as)
    out.print(Text(f"picture {number} is marked, see {path}", style="dim"), soft_wrap=True)
    for place, mark in enumerate(chat.marks):
        name = f"<bbox{place}>" if len(chat.marks) > 1 else "<bbox>"
        out.print(Text(f"{name} in a question becomes '{mark.phrase}'", style="dim"), soft_wrap=True)


def _as_region(text: str) -> str:
    """``bbox=1,2,30,40 shape='mask contour'`` as ``--region`` takes it, with ';' between; that is taken as well."""
    import shlex

    try:
        return text if ";" in text else ";".join(shlex.split(re.sub(r",\s+", ",", text)))
    except ValueError as error:
        raise SettingsError(f":mark: {error} in {text}") from error


_NOT_SAMPLING = "; it changes nothing until you sample, such as with ':conf temperature=0.7'"


def _path(text: str) -> Path:
    """A file's name as it was typed, with or without quotes around it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return Path(text).expanduser()


def _read_changes(text: str) -> dict[str, Any]:
    """``temperature=0.7 top_p=0.9`` as values; they are read as in a recipe, never evaluated."""
    import shlex

    from sightbridge.config.yaml_tree import read_yaml

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SettingsError(f":conf: {error} in {text}") from error
    changes = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise SettingsError(f":conf: expected KEY=VALUE, such as temperature=0.7, got '{word}'")
        read = read_yaml(value, lambda _, key=key: f":conf {key}")
        changes[key] = read.plain() if read else ""
    return changes


def _show(value: Any) -> str:
    import json

    return "none" if value is None else json.dumps(value, ensure_ascii=False)
