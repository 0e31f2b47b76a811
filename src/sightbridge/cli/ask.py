"""``sightbridge ask``: one question about pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightbridge.cli.arguments import (
    BeamsOption,
    CpuOption,
    DeviceMapOption,
    LoadInOption,
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
from sightbridge.cli.marking import (
    OnOption,
    OverwriteMarkedOption,
    SaveMarkedOption,
    mark_one_of,
    save_marked_copy,
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

if TYPE_CHECKING:
    from PIL import Image

    from sightbridge.config.generation import GenerationSettings
    from sightbridge.data.processor import Processor
    from sightbridge.models.vlm import VisionLanguageModel

QuestionArgument = Annotated[
    str,
    typer.Argument(
        metavar="QUESTION",
        help="In quotes. '<image>' in it marks where a picture goes; without, they come first. '<bbox>' becomes the "
        "words for a mark, such as 'within the red rectangle'; of several they are '<bbox0>', '<bbox1>'.",
    ),
]


def ask(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Picture files, in order.")],
    question: QuestionArgument,
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
    max_new_tokens: MaxNewTokensOption = 64,
    beams: BeamsOption = 1,
    sample: SampleOption = False,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    system: SystemOption = None,
    source: SourceOption = None,
    cpu: CpuOption = False,
    load_in: LoadInOption = None,
    device_map: DeviceMapOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print question and answer as a JSON object.")] = False,
) -> None:
    """Ask a model about one or several pictures, and about what is marked on one of them.

    \b
    Examples:
      sightbridge ask runs/quickstart/model photo.jpg "What is in the picture?"
      sightbridge ask MODEL before.png after.png "What has changed?" --beams 4
      sightbridge ask MODEL photo.jpg "Tell a story." --temperature 0.7 --top-p 0.9 --seed 1
      sightbridge ask MODEL photo.jpg "What is <bbox>?" --bbox 100,200,200,300 --shape arrow
    """
    from sightbridge.generation.pointing import point_at

    settings = read_generation(max_new_tokens, beams, sample, temperature, top_p, seed)
    sources = read_part_sources(source)
    anchor, pictures = _open_pictures(model, images, question)
    looks: dict[str, Any] = {"shape": shape, "color": color, "width": width, "alpha": alpha}
    where: dict[str, Any] = {"bbox": bbox, "polygon": polygon, "region": region}
    marks = mark_one_of(images, pictures, anchor, on, save_marked, overwrite, **where, **looks)
    asked: dict[str, Any] = {"model": str(model), "images": [str(image) for image in images]}
    asked["question"] = point_at(question, marks)

    vlm, processor = load_for_answers(model, sources, system, cpu=cpu, load_in=load_in, device_map=device_map)
    if marks:
        asked["marked"] = str(save_marked_copy(pictures[on - 1], images[on - 1].name, save_marked))
        console(stderr=True).print(f"the marked picture is in {asked['marked']}", style="dim", soft_wrap=True)
    _print_answer(vlm, processor, pictures, settings, asked, as_json)


def _print_answer(
    model: VisionLanguageModel,
    processor: Processor,
    pictures: list[Image.Image],
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


def _open_pictures(model: Path, images: list[Path], question: str) -> tuple[int, list[Image.Image]]:
    """Look at the model's manifest and open the pictures: mistakes show before anything heavy is imported.

    The first is the side of the pictures that the model's marks are meant for.
    """
    from sightbridge.checkpoints.atomic import existing_folder
    from sightbridge.checkpoints.manifest import read_manifest
    from sightbridge.errors import SettingsError
    from sightbridge.images.load import load_image
    from sightbridge.text.turns import IMAGE_MARKER

    manifest = read_manifest(existing_folder(model.expanduser().resolve()))
    if len(question) < 256 and Path(question).is_file():
        raise SettingsError(f"the last word is the question, but '{question}' is a file. Add a question in quotes.")
    markers = question.count(IMAGE_MARKER)
    if markers not in (0, len(images)):
        raise SettingsError(f"the question says '<image>' {markers} times, but the pictures are {len(images)}.")
    return manifest.settings.image.anchor, [load_image(image) for image in images]
