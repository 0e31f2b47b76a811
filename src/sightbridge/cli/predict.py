"""``sightbridge predict``: the same prompt for many pictures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightbridge.cli.arguments import (
    BeamsOption,
    MaxNewTokensOption,
    ModelArgument,
    SampleOption,
    SeedOption,
    SourceOption,
    SystemOption,
    TemperatureOption,
    TopPOption,
    read_generation,
    read_part_sources,
)
from sightbridge.cli.console import console
from sightbridge.cli.loading import load_for_answers

if TYPE_CHECKING:
    from sightbridge.config.generation import GenerationSettings
    from sightbridge.data.processor import Processor
    from sightbridge.models.vlm import VisionLanguageModel

WINDOW = 8
"""So many batches of pictures are open at one time."""


def predict(
    model: ModelArgument,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Picture files, and folders whose pictures are taken.")
    ],
    prompt: Annotated[str, typer.Option(help="What to ask about every picture; '<image>' marks its place.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSON-lines file to write.", show_default="standard output")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file if it is there.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 8,
    max_new_tokens: MaxNewTokensOption = 64,
    beams: BeamsOption = 1,
    sample: SampleOption = False,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    system: SystemOption = None,
    source: SourceOption = None,
) -> None:
    """Ask the same about many pictures: one line of JSON for each, with 'image' and 'answer'.

    The prompt is used exactly as it is given. A picture that cannot be opened gets a line with 'error' in place of
    'answer', and the exit status is then 1.

    \b
    Examples:
      sightbridge predict runs/quickstart/model photo.jpg --prompt "What is in the picture?"
      sightbridge predict MODEL photos/ --prompt "a photo of" --beams 5 --out captions.jsonl
    """
    settings = read_generation(max_new_tokens, beams, sample, temperature, top_p, seed)
    sources = read_part_sources(source)
    paths = find_pictures(images)
    check_output(out, overwrite)
    vlm, processor = load_for_answers(model, sources, system)
    failed = 0
    with out.open("w", encoding="utf-8") if out else nullcontext(sys.stdout) as file:
        for line in _predictions(vlm, processor, paths, prompt, settings, batch_size):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            failed += "error" in line
    if failed:
        console(stderr=True).print(f"{failed} of {len(paths)} pictures could not be opened; their lines say why.")
        raise typer.Exit(1)


def find_pictures(given: Sequence[Path]) -> list[Path]:
    """The picture files themselves, and those in the folders (not in folders inside them), by name.

    Raises ``ImageError`` for what is not there and for a folder without a picture.
    """
    from sightbridge.errors import ImageError
    from sightbridge.images.load import pictures_in

    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += pictures_in(path)
        elif path.is_file():
            found.append(path)
        else:
            raise ImageError(f"{path}: there is no such picture or folder.")
    return found


def check_output(out: Path | None, overwrite: bool, option: str = "--out") -> None:
    """Find out before the model is loaded whether what it makes can be written."""
    from sightbridge.errors import SettingsError

    if out is None:
        return
    if out.exists() and not overwrite:
        raise SettingsError(f"{option}: {out} is there already; choose another file, or --overwrite to lose that one")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise SettingsError(f"{option}: cannot write a file at {out}")


def _predictions(
    model: VisionLanguageModel,
    processor: Processor,
    paths: Sequence[Path],
    prompt: str,
    settings: GenerationSettings,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """A line for every picture, in order, under a progress bar on stderr."""
    from rich.progress import track

    from sightbridge.data.processor import prompt_record
    from sightbridge.errors import ImageError
    from sightbridge.generation.answer import answer_batch
    from sightbridge.images.load import load_image

    terminal = console(stderr=True)
    windows = [paths[start : start + WINDOW * batch_size] for start in range(0, len(paths), WINDOW * batch_size)]
    for window in track(windows, "looking at pictures", console=terminal, transient=True, disable=len(windows) < 2):
        lines: list[dict[str, Any]] = [{"image": str(path), "prompt": prompt} for path in window]
        records, answered = [], []
        for line, path in zip(lines, window, strict=True):
            try:
                records.append(prompt_record(load_image(path), prompt))
                answered.append(line)
            except ImageError as error:
                line["error"] = str(error)
        for line, text in zip(answered, answer_batch(model, processor, records, settings, batch_size), strict=True):
            line["answer"] = text
        yield from lines
