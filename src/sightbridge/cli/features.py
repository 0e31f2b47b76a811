"""``sightbridge features``: what a model makes of pictures and texts, as a file of tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightbridge.cli.arguments import ModelArgument, SourceOption, read_part_sources
from sightbridge.cli.console import console, new_table, show_table
from sightbridge.cli.predict import check_output, find_pictures

if TYPE_CHECKING:
    from torch import Tensor


def features(
    model: ModelArgument,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE", help="Picture files, and folders whose pictures are taken.", show_default=False
        ),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="File with a text per line (first-stage models only).", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Safetensors file to write.")] = Path("features.safetensors"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file if it is there.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures or texts at a time.")] = 32,
    source: SourceOption = None,
) -> None:
    """Write the features of pictures and texts to a file.

    Of a model that answers: 'image_features' (the vision tower's) and 'image_tokens' (the connector's). Of a
    first-stage model, under LAVIS' names: image_embeds, image_embeds_proj, text_embeds, text_embeds_proj; with pictures
    and as many texts also multimodal_embeds, itm (probability that they match) and itc (similarity) of the pairs.
    The file's metadata lists the pictures and texts, in the order of the rows.

    \b
    Examples:
      sightbridge features runs/stage1/model photos/ --out photos.safetensors
      sightbridge features runs/stage1/model photos/ --texts captions.txt --out pairs.safetensors
    """
    from sightbridge.errors import SettingsError

    sources = read_part_sources(source)
    paths, lines = find_pictures(images or []), read_texts(texts) if texts else []
    if not paths and not lines:
        raise SettingsError("give pictures, or texts with --texts FILE")
    check_output(out, overwrite)

    from safetensors.torch import save_file

    found = _extract(model, paths, lines, batch_size, sources)
    save_file(found, out, {"pictures": json.dumps([str(path) for path in paths]), "texts": json.dumps(lines)})
    table = new_table("features", "shape")
    for name, tensor in found.items():
        table.add_row(name, " x ".join(map(str, tensor.shape)))
    show_table(table)


def _extract(
    folder: Path, paths: list[Path], texts: list[str], batch_size: int, sources: dict[str, str]
) -> dict[str, Tensor]:
    """Load the model and run it over everything."""
    import torch

    from sightbridge.checkpoints.folder import load_any_model
    from sightbridge.data.processor import Processor
    from sightbridge.data.qformer_processor import QFormerProcessor
    from sightbridge.errors import SettingsError
    from sightbridge.evaluation.features import first_stage_features, model_features
    from sightbridge.models.qformer_pretraining import QFormerPretraining
    from sightbridge.models.vlm import VisionLanguageModel

    with console(stderr=True).status("loading the model"):
        model, processor = load_any_model(folder, "cuda" if torch.cuda.is_available() else "cpu", sources)
    if isinstance(model, QFormerPretraining):
        assert isinstance(processor, QFormerProcessor)
        return first_stage_features(model, processor, paths, texts, batch_size, _watch)
    assert isinstance(model, VisionLanguageModel) and isinstance(processor, Processor)
    if texts:
        raise SettingsError(f"--texts: {folder} is no first-stage model, and only those have features of texts")
    return model_features(model, processor, paths, batch_size, _watch)


def read_texts(path: Path) -> list[str]:
    """The lines of a text file; raises ``DataError`` for one that cannot be read, or an empty line."""
    from sightbridge.errors import DataError

    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--texts: cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError(f"{path}, line {number}: is empty, expected a text")
    return lines


def _watch(batches: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    """A progress bar on stderr that goes away when it is full."""
    from rich.progress import track

    terminal = console(stderr=True)
    yield from track(batches, "looking", console=terminal, transient=True, disable=not terminal.is_terminal)
