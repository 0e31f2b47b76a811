"""``sightbridge chat``: a conversation about pictures in the terminal."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sightbridge.cli.arguments import (
    CpuOption,
    DeviceMapOption,
    LoadInOption,
    ModelArgument,
    SeedOption,
    SourceOption,
    SystemOption,
    read_part_sources,
)
from sightbridge.cli.chat_commands import Commands, Leave, mark_picture
from sightbridge.cli.chat_input import read_lines
from sightbridge.cli.console import console, print_error
from sightbridge.cli.loading import load_for_answers
from sightbridge.cli.marking import (
    OnOption,
    OverwriteMarkedOption,
    SaveMarkedOption,
    mark_one_of,
)
from sightbridge.cli.marks import (
    AlphaOption,
    BboxOption,
    ColorOption,
    PolygonOption,
    RegionOption,
    ShapeOption,
    WidthOption,
)
from sightbridge.errors import SightbridgeError

if TYPE_CHECKING:
    from sightbridge.generation.chat import Chat

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What could steer a terminal; a model may have learned to write it."""

ImagesArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Picture files to begin with.", show_default=False)
]
LongestOption = Annotated[
    int | None, typer.Option(min=1, help="An answer is cut after so many tokens.", show_default="512")
]
ContextOption = Annotated[
    int | None, typer.Option(min=1, help="Tokens the model is shown at most.", show_default="the model's own")
]
LoadOption = Annotated[
    Path | None, typer.Option("--load", help="Go on with a conversation that ':save' wrote.", show_default=False)
]


def chat(
    model: ModelArgument,
    images: ImagesArgument = None,
    bbox: BboxOption = None,
    polygon: PolygonOption = None,
    region: RegionOption = None,
    shape: ShapeOption = None,
    color: ColorOption = None,
    width: WidthOption = None,
    alpha: AlphaOption = None,
    on: OnOption = 1,
    save_marked: SaveMarkedOption = None,
    overwrite: OverwriteMarkedOption = False,
    max_new_tokens: LongestOption = None,
    context: ContextOption = None,
    system: SystemOption = None,
    seed: SeedOption = None,
    cpu: CpuOption = False,
    load_in: LoadInOption = None,
    device_map: DeviceMapOption = None,
    source: SourceOption = None,
    load: LoadOption = None,
) -> None:
    """Talk with a model about pictures.

    A line is a question, or a command if it begins with a colon; ':help' lists them. Ctrl-C stops an answer, Ctrl-D
    leaves. From a pipe, questions are read line by line. '<bbox>' in a question becomes the words for a mark; ':mark'
    makes one on the way.

    \b
    Examples:
      sightbridge chat runs/quickstart/model photo.jpg
      sightbridge chat MODEL before.png after.png --system "Answer in one word."
      echo "What is in the picture?" | sightbridge chat MODEL photo.jpg
      sightbridge chat MODEL photo.jpg --bbox 100,200,200,300 --shape arrow
    """
    from sightbridge.checkpoints.atomic import existing_folder
    from sightbridge.checkpoints.manifest import read_manifest
    from sightbridge.images.load import load_image

    sources, images = read_part_sources(source), images or []
    manifest = read_manifest(existing_folder(model.expanduser().resolve()))
    opened = [load_image(image) for image in images]
    looks: dict[str, Any] = {"shape": shape, "color": color, "width": width, "alpha": alpha}
    where: dict[str, Any] = {"bbox": bbox, "polygon": polygon, "region": region}
    anchor = manifest.settings.image.anchor
    marks = mark_one_of(images, opened, anchor, on, save_marked, overwrite, **where, **looks)
    vlm, processor = load_for_answers(model, sources, None, cpu=cpu, load_in=load_in, device_map=device_map)

    from sightbridge.generation.chat import Chat
    from sightbridge.generation.chat_file import load_chat

    conversation = Chat(vlm, processor, images, system=system, context=context)
    _configure(conversation, max_new_tokens=max_new_tokens, seed=seed)
    if marks:
        mark_picture(conversation, on, marks, console(stderr=True), save_marked)
    if load:
        load_chat(conversation, load)
    if not talk(conversation, str(model)):
        raise typer.Exit(1)


def _configure(chat: Chat, **changes: int | None) -> None:
    """Set what was given, for good: ':reset-conf' goes back to it."""
    chat.configure(**{name: value for name, value in changes.items() if value is not None})
    chat.default_settings = chat.settings


def talk(chat: Chat, name: str) -> bool:
    """Read lines until they end, answer questions and obey commands; returns whether all of them went well.

    With a terminal, what went wrong has been seen and does not count.
    """
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    commands = Commands(chat)
    if interactive:
        _greet(chat, name)
    failed = False
    for line in read_lines(commands, interactive):
        try:
            if line.startswith(":"):
                commands.run(line)
            else:
                _answer(chat, line, interactive)
        except Leave:
            break
        except KeyboardInterrupt:  # between the line and its answer
            if not interactive:
                raise
        except SightbridgeError as error:
            print_error(str(error))
            failed = not interactive
    return not failed


def _greet(chat: Chat, name: str) -> None:
    out = console()
    pictures = f"{len(chat.pictures)} picture{'' if len(chat.pictures) == 1 else 's'}"
    out.print(Text(f"{name}, {pictures}, up to {chat.room:,} tokens of conversation", style="bold"))
    out.print(Text("Ask something. :help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.", style="dim"))
    if not chat.remembers:
        template = chat.processor.template.name
        out.print(
            Text(f"The template '{template}' cannot tell turns apart: every question is asked alone.", style="yellow")
        )


def _answer(chat: Chat, question: str, interactive: bool) -> None:
    """Write the answer as it comes."""
    out = console()
    left_out = chat.left_out
    with _interrupts(chat) if interactive else _nothing():
        pieces = chat.stream(question)
        if interactive:
            with out.status("", spinner="dots"):
                first = next(pieces, "")
        else:
            first = next(pieces, "")
        _write(first)
        for piece in pieces:
            _write(piece)
    typer.echo()
    if interactive:
        _tell_end(chat, left_out)


def _write(piece: str) -> None:
    sys.stdout.write(CONTROL.sub("", piece))
    sys.stdout.flush()


def _tell_end(chat: Chat, left_out: int) -> None:
    """Say what is not to be seen in the answer itself."""
    notes = []
    if not chat.exchanges or chat.exchanges[-1].stopped:
        notes.append("stopped" if chat.exchanges else "stopped before the first word; the question was not asked")
    elif not chat.exchanges[-1].answer:
        notes.append("the model answered nothing")
    if chat.remembers and chat.left_out and not left_out:
        notes.append(
            "the conversation is longer than the model can take in: from now on its oldest questions and answers are "
            "left out; pictures that came with them stay, at the front"
        )
    for note in notes:
        console().print(Text(f"({note})", style="dim"))


@contextmanager
def _interrupts(chat: Chat) -> Iterator[None]:
    """Let Ctrl-C stop the answer and nothing else."""
    before = signal.signal(signal.SIGINT, lambda *_: chat.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
