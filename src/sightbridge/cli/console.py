"""Where the command line prints: results on stdout, messages on stderr."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

PIPE_WIDTH = 1000
"""Columns of output to a file or a pipe: every row stays on one line, for grep and friends."""


def use_utf8() -> None:
    """Let every text be printed, whatever the locale; what a terminal cannot show becomes ``?``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def console(stderr: bool = False) -> Console:
    """A console for stdout (results) or stderr (progress and messages)."""
    return Console(stderr=stderr, highlight=False, emoji=False)  # ':x:' in a path or a text is no picture of a cross


def new_progress(*columns: ProgressColumn, shown: bool = True) -> Progress:
    """Bars on stderr that go away when they are done; nothing is written where there is no terminal."""
    from rich.progress import Progress

    terminal = console(stderr=True)
    return Progress(*columns, console=terminal, transient=True, disable=not (shown and terminal.is_terminal))


def new_table(*columns: str) -> Table:
    """A plain table whose first column, the name, is never cut; the others fold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0, overflow="fold")
    return table


def wide_console() -> Console:
    """A console for stdout at the terminal's width; without a terminal no line is broken."""
    out = console()
    return out if out.is_terminal else Console(highlight=False, emoji=False, width=PIPE_WIDTH)


def show_table(table: Table) -> None:
    """Print a table on stdout, at the terminal's width, or one row per line if there is no terminal."""
    wide_console().print(table)


def print_error(message: str) -> None:
    """Print ``error: message`` on stderr, exactly as it is: brackets are no markup, long lines are not broken."""
    err = console(stderr=True)
    err.print("error:", style="bold red", end=" ")
    err.print(message, markup=False, soft_wrap=True)
