"""``sightbridge ask``: one question about pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightbridge.cli.arguments import ModelArgument, SourceOption, read_part_sources
from sightbridge.cli.console import console

if TYPE_CHECKING:
    from sightbridge.config.generation import GenerationSettings
    from sightbridge.data.processor import Processor
    from sightbridge.images.load import ImageSource
    from sightbridge.models.vlm import VisionLanguageModel


def ask(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Picture files, in order.")],
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION", help="In quotes. '<image>' in it marks where a picture goes; without, they come first."
        ),
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The answer is cut after so many tokens.")] = 64,
    beams: Annotated[int, typer.Option(min=1, help="Search so many answers at once for the likeliest.")] = 1,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Sample; below 1 sharpens, above 1 flattens the choice.", show_default=False)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the likeliest tokens that hold this probability.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampling.", show_default=False)] = None,
    system: Annotated[
        str | None, typer.Option(help="System text in place of the model's own.", show_default=False)
    ] = None,
    source: SourceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print question and answer as a JSON object.")] = False,
) -> None:
    """Ask a model about one or several pictures.

    \b
    Examples:
      sightbridge ask runs/quickstart/model photo.jpg "What is in the picture?"
      sightbridge ask MODEL before.png after.png "What has changed?" --beams 4
      sightbridge ask MODEL photo.jpg "Tell a story." --temperature 0.7 --top-p 0.9 --seed 1
    """
    settings = _read_settings(
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        sample=sample or temperature is not None or top_p is not None,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        seed=seed,
    )
    sources = read_part_sources(source)
    pictures = _open_pictures(model, images, question)

    from sightbridge.checkpoints.folder import load_model

    with console(stderr=True).status("loading the model"):
        vlm, processor = load_model(model, _device(), sources)
    if system is not None:
        processor.prompt_settings = processor.prompt_settings.model_copy(update={"system": system})
    asked = {"model": str(model), "images": [str(image) for image in images], "question": question}
    _print_answer(vlm, processor, pictures, settings, asked, as_json)


def _print_answer(
    model: VisionLanguageModel,
    processor: Processor,
    pictures: list[ImageSource],
    settings: GenerationSettings,
    asked: dict[str, Any],
    as_json: bool,
) -> None:
    """Write the answer as it comes, or as a whole if it is to be JSON or the outcome of a search."""
    from sightbridge.generation.answer import answer, stream

    if not as_json and settings.num_beams == 1:
        for piece in stream(model, processor, pictures, asked["question"], settings):
            typer.echo(piece, nl=False)
        typer.echo()
        return
    text = answer(model, processor, pictures, asked["question"], settings)
    typer.echo(json.dumps({**asked, "answer": text}, ensure_ascii=False) if as_json else text)


def _read_settings(**options: Any) -> GenerationSettings:
    from sightbridge.config.generation import GenerationSettings
    from sightbridge.config.problems import validate
    from sightbridge.config.yaml_tree import Given

    return validate(GenerationSettings, Given({k: Given(v, "ask") for k, v in options.items()}, "ask"))


def _open_pictures(model: Path, images: list[Path], question: str) -> list[ImageSource]:
    """Look at the model's manifest and open the pictures: mistakes show before anything heavy is imported."""
    from sightbridge.checkpoints.atomic import existing_folder
    from sightbridge.checkpoints.manifest import read_manifest
    from sightbridge.errors import SettingsError
    from sightbridge.images.load import load_image

    read_manifest(existing_folder(model.expanduser().resolve()))
    if len(question) < 256 and Path(question).is_file():
        raise SettingsError(f"the last word is the question, but '{question}' is a file. Add a question in quotes.")
    return [load_image(image) for image in images]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
