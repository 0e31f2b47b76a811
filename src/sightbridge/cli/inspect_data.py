"""``sightbridge inspect data``: what a model would learn from an annotation file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.progress import track
from rich.text import Text

from sightbridge.cli.console import console, wide_console
from sightbridge.cli.inspect_lengths import find_processor, show_lengths
from sightbridge.errors import DataError, ImageError, SettingsError

if TYPE_CHECKING:
    from sightbridge.data.processor import Processor
    from sightbridge.data.record import Record
    from sightbridge.text.encode import Encoded
    from sightbridge.text.template import PromptTemplate

Kind = str
STYLES: dict[Kind, str] = {"context": "", "target": "green", "picture": "cyan", "note": "dim"}
"""What a stretch of a sample can be, and how it is shown."""
ANCHOR = 336
"""Pixels of the picture that a model sees, for the widths of marks, where no model says it (ViP-LLaVA's)."""


class Segment(NamedTuple):
    """A stretch of a sample: text that is read, text that is learned, a picture's place, or a note of ours."""

    kind: Kind
    text: str


@dataclass
class Tally:
    """Counts over all records. ``lengths`` are tokens per row, known only with a tokenizer."""

    without_target: int = 0
    cut: int = 0
    lengths: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)


View = Callable[["Record", Tally], list[Segment]]
"""Counts a record, and says what of it is context, target or picture."""


RegionsOption = Annotated[
    str | None,
    typer.Option(help="With --format vip_llava: corrected, or exact, with the original's slips.", show_default=False),
]
EpochOption = Annotated[
    int | None,
    typer.Option(min=0, help="Show what training draws in this epoch: shapes, colours, words.", show_default=False),
]
SaveMarkedOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Write the shown records' marked pictures into it, as PNG.", show_default=False
    ),
]


def inspect_data(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Annotation file.")],
    data_format: Annotated[str, typer.Option("--format", help="Name of a reader: llava, coco_caption.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures.", show_default="the file's folder")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder whose template and tokenizer to use.", show_default=False)
    ] = None,
    template: Annotated[str | None, typer.Option(help="Prompt template to use.", show_default=False)] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer to use with --template.", show_default=False)
    ] = None,
    tokens_per_image: Annotated[int, typer.Option(min=1, help="With --tokenizer: tokens of one picture.")] = 1,
    row: Annotated[int | None, typer.Option(min=1, help="Show only this record.", show_default=False)] = None,
    count: Annotated[int, typer.Option(min=0, help="Show so many records from the first on.")] = 3,
    regions: RegionsOption = None,
    epoch: EpochOption = None,
    save_marked: SaveMarkedOption = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Show how long the rows are for a model folder or a recipe, and what a greatest length would cut.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show what a model would learn from an annotation file: samples and counts.

    Targets are green and stand in ⟦ ⟧. Without a model or a template, turns are
    shown by role; with a tokenizer, it shows what each token is used for.

    \b
    Examples:
      sightbridge inspect data scenes/train.json --format llava
      sightbridge inspect data scenes/train.json --format llava --template vicuna_v1 --row 7
      sightbridge inspect data scenes/train.json --format llava --model runs/quickstart/model
      sightbridge inspect data scenes/train.json --format llava --lengths tiny/decoder-mlp
      sightbridge inspect data regions.json --format vip_llava --epoch 0 --save-marked marked
    """
    from sightbridge.data.marks import realise
    from sightbridge.data.readers import load_records

    if lengths and (model or template or tokenizer):
        raise SettingsError("--lengths names the model itself; leave out --model, --template and --tokenizer")
    if lengths:
        show_lengths(load_records(data_format, file, images, regions=regions), find_processor(lengths))
        return
    processor = _open_processor(model, template, tokenizer, tokens_per_image)
    records = load_records(data_format, file, images, regions=regions)
    if row is not None and row > len(records):
        raise DataError(f"{file}: there is no record {row}; it holds {len(records)}.")
    if epoch is not None:
        records = [realise(record, 0, epoch) for record in records]
    chosen = range(count) if row is None else range(row - 1, row)
    _show_records(records, _choose_view(processor, template), chosen)
    if save_marked is not None:
        anchor = processor.image_settings.anchor if model is not None and processor is not None else ANCHOR
        _save_marked(records, chosen, epoch, anchor, save_marked)


def _save_marked(records: Sequence[Record], chosen: range, epoch: int | None, anchor: int, folder: Path) -> None:
    """Write the pictures of the chosen records that have marks, as training or evaluation sees them, and name them."""
    from sightbridge.data.marks import drawing
    from sightbridge.images.load import load_image
    from sightbridge.images.save import save_picture

    out = wide_console()
    for index in chosen[: len(records)]:
        record = records[index]
        for position, source in enumerate(record.images):
            marks = drawing(record, position, None if epoch is None else (0, epoch))
            if marks.name:
                number = f"{index + 1}-{position + 1}" if len(record.images) > 1 else f"{index + 1}"
                path = folder / f"record-{number}.png"
                try:
                    save_picture(load_image(marks.on(source, anchor)), path)
                except ImageError as error:
                    raise ImageError(f"{record.where}: {error}") from error
                out.print(Text("marked picture   ", style="bold").append(str(path), style="not bold"))


def _show_records(records: Sequence[Record], view: View, chosen: range) -> None:
    """Print the chosen records, and counts over all of them."""
    from sightbridge.data.bad_samples import check_images

    tally = Tally()
    shown: list[tuple[Record, list[Segment]]] = []
    terminal = console(stderr=True)
    watched = track(records, "reading", console=terminal, transient=True, disable=not terminal.is_terminal)
    for index, record in enumerate(watched):
        segments = view(record, tally)
        if index in chosen:
            shown.append((record, segments))
    out = wide_console()
    for record, segments in shown:
        out.print(_draw(record, segments), end="\n\n")
    for name, value in _counts(records, tally, missing=len(check_images(records))):
        out.print(Text(f"{name:<16} ", style="bold").append(value, style="not bold"))


def _open_processor(
    model: Path | None, template: str | None, tokenizer: str | None, tokens_per_image: int
) -> Processor | None:
    """The processor of a model folder, or one of a template and a tokenizer; ``None`` without a tokenizer."""
    if model is not None and (template or tokenizer):
        raise SettingsError("--model brings its own template and tokenizer; leave out --template and --tokenizer")
    if tokenizer and not template:
        raise SettingsError("--tokenizer needs a --template to use it with")
    if model is not None:
        from sightbridge.checkpoints.folder import load_processor

        return load_processor(model)
    if not (template and tokenizer):
        return None
    from sightbridge.config.model import ImageSettings, PromptSettings
    from sightbridge.data.processor import Processor
    from sightbridge.data.tokenizer import load_tokenizer
    from sightbridge.text.template import load_template

    return Processor(
        load_tokenizer(tokenizer),
        PromptSettings(template=template),
        ImageSettings(),
        tokens_per_image=tokens_per_image,
        encoder_decoder=load_template(template).encoder_decoder,
    )


def _choose_view(processor: Processor | None, template: str | None) -> View:
    from sightbridge.text.template import load_template

    if processor is not None:
        return _token_view(processor)
    return _template_view(load_template(template)) if template else _turn_view


def _turn_view(record: Record, tally: Tally) -> list[Segment]:
    """Turns by role; what the assistant says is the target."""
    segments = []
    for turn in record.turns:
        kind: Kind = "target" if turn.role == "assistant" else "context"
        segments.append(Segment("note", f"\n{turn.role}: "))
        segments += _split_at_pictures(turn.text or "", kind)
    tally.without_target += not any(segment.kind == "target" for segment in segments)
    return segments


def _template_view(template: PromptTemplate) -> View:
    """What the template writes."""
    from sightbridge.text.render import render

    def view(record: Record, tally: Tally) -> list[Segment]:
        try:
            rendered = render(template, record.turns, images=len(record.images), record_id=record.id)
        except DataError as error:
            raise DataError(f"{record.where}: {error}") from error
        pieces = [*rendered.pieces, None, *(rendered.decoder_pieces or ())]
        segments = []
        for piece in pieces:
            if piece is None:
                segments.append(Segment("note", "\ndecoder: " if rendered.decoder_pieces else ""))
            elif piece.text is None:
                segments.append(Segment("picture", "[image]"))
            else:
                segments.append(Segment("target" if piece.is_target else "context", piece.text))
        tally.without_target += not any(segment.kind == "target" for segment in segments)
        return segments

    return view


def _token_view(processor: Processor) -> View:
    """What every token is used for."""
    from sightbridge.text.encode import NoTargetError

    def view(record: Record, tally: Tally) -> list[Segment]:
        try:
            encoded = processor.encode(record)
        except NoTargetError as error:
            tally.without_target += 1
            return [Segment("note", str(error))]
        tally.lengths.append(len(encoded.input_ids))
        tally.targets.append(encoded.n_target_tokens)
        tally.cut += encoded.truncated > 0
        return _token_segments(processor, encoded)

    return view


def _token_segments(processor: Processor, encoded: Encoded) -> list[Segment]:
    from sightbridge.text.encode import IGNORE_INDEX

    size = processor.tokens_per_image
    kinds: list[Kind] = ["picture" if is_slot else "context" for is_slot in encoded.image_slots]
    if not processor.encoder_decoder:
        kinds = [kind if label == IGNORE_INDEX else "target" for kind, label in zip(kinds, encoded.labels, strict=True)]
    groups = [(kind, [token for _, token in pairs]) for kind, pairs in _runs(kinds, encoded.input_ids)]
    texts = iter(_decode_in_parts(processor.tokenizer, [ids for kind, ids in groups if kind != "picture"]))
    picture = f"[image x {size}]"
    segments = [
        Segment(kind, picture * (len(ids) // size) if kind == "picture" else next(texts)) for kind, ids in groups
    ]
    if processor.encoder_decoder:
        answer = _decode_in_parts(processor.tokenizer, [encoded.labels])[0]
        segments += [Segment("note", "\ndecoder: "), Segment("target", answer)]
    if encoded.truncated:
        segments.append(Segment("note", f"\n{encoded.truncated} positions are cut off"))
    return segments


def _runs(kinds: Sequence[Kind], ids: Sequence[int]) -> Iterable[tuple[Kind, Iterable[tuple[Kind, int]]]]:
    return groupby(zip(kinds, ids, strict=True), key=lambda pair: pair[0])


def _decode_in_parts(tokenizer: Any, groups: Sequence[Sequence[int]]) -> list[str]:
    """The text of each group of ids. A group alone would lose the space it begins with, so prefixes are decoded."""
    texts, ids, done = [], [], ""
    for group in groups:
        ids += group
        whole = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        texts.append(whole[len(done) :])
        done = whole
    return texts


def _split_at_pictures(text: str, kind: Kind) -> list[Segment]:
    from sightbridge.text.turns import IMAGE_MARKER

    segments = []
    for index, part in enumerate(text.split(IMAGE_MARKER)):
        segments += [Segment("picture", "[image]")] * (index > 0) + [Segment(kind, part)] * bool(part)
    return segments


def _draw(record: Record, segments: Sequence[Segment]) -> Text:
    """A sample in colours; targets also stand in brackets, for those who see no colours and for pipes."""
    from sightbridge.data.record import describe_mark

    names = ", ".join(str(image)[:200] for image in record.images) or "no picture"
    text = Text(f"{record.where}: '{record.id}', {names}\n", style="bold")
    for mark in record.marks:
        text.append(f"marked: {describe_mark(mark, len(record.images))}\n", style=f"not bold {STYLES['note']}")
    for kind, same in groupby(segments, key=lambda segment: segment.kind):
        joined = "".join(segment.text for segment in same)
        text.append(f"⟦{joined}⟧" if kind == "target" else joined, style=f"not bold {STYLES[kind]}")
    return text


def _counts(records: Sequence[Record], tally: Tally, missing: int) -> list[tuple[str, str]]:
    languages = Counter(record.language for record in records)
    counts = [
        ("records", f"{len(records):,}"),
        ("without target", f"{tally.without_target:,}"),
        ("pictures", f"{len({str(image)[:500] for record in records for image in record.images}):,}"),
        ("without picture", f"{sum(not record.images for record in records):,}"),
        ("picture missing", f"{missing:,}"),
        ("languages", ", ".join(f"{name} {number:,}" for name, number in languages.most_common())),
    ]
    if tally.lengths:
        lengths, targets = tally.lengths, tally.targets
        counts += [
            ("tokens", f"{mean(lengths):.1f} on average, {max(lengths):,} at most"),
            ("targets", f"{mean(targets):.1f} on average, {max(targets):,} at most"),
            ("cut off", f"{tally.cut:,} records"),
        ]
    return counts
