"""``sightbridge score``: how well pictures and texts fit, as a table, a file and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from sightbridge.cli.arguments import CpuOption, LoadInOption, SourceOption, SystemOption, read_part_sources
from sightbridge.cli.console import console, new_table, wide_console
from sightbridge.cli.features import read_texts
from sightbridge.cli.loading import LOAD_IN
from sightbridge.cli.predict import check_output
from sightbridge.errors import DataError, SettingsError

if TYPE_CHECKING:
    from sightbridge.images.load import ImageSource
    from sightbridge.scoring.scorer import Scorer, Scores

LISTS = ("--images", "--texts")
"""Options that take several values: ``--images a.jpg b.jpg``."""
SHOWN_TEXTS = 8
"""Up to so many texts the table has a column for each; with more it has a row for each pair."""
SHOWN_ROWS = 60
"""Rows of the table in the terminal; files get all."""


class ScoreCommand(TyperCommand):
    """Lets the options in ``LISTS`` take all values up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write an option's name in front of each of its values."""
        return super().parse_args(ctx, repeat_names(args))


def repeat_names(arguments: Sequence[str]) -> list[str]:
    """``--texts a b --html c`` to ``--texts=a --texts=b --html c``."""
    repeated: list[str] = []
    name = None
    for position, argument in enumerate(arguments):
        is_option = argument.startswith("-") and argument != "-"
        if name is None or is_option:
            name = argument if argument in LISTS else None
            following = arguments[position + 1 : position + 2]
            has_value = bool(following) and not following[0].startswith("-")
            repeated += [] if name and has_value else [argument]
        else:
            repeated.append(f"{name}={argument}")
    return repeated


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder; for CLIPScores a CLIP's folder or Hugging Face name.")
]
ImagesOption = Annotated[
    list[str] | None,
    typer.Option(metavar="IMAGE...", help="Pictures, folders of pictures, videos, .npy arrays.", show_default=False),
]
TextsOption = Annotated[
    list[str] | None, typer.Option(metavar="TEXT...", help="Each is scored with every picture.", show_default=False)
]
TextsFileOption = Annotated[Path | None, typer.Option(help="File with a text per line.", show_default=False)]
PairsOption = Annotated[
    Path | None,
    typer.Option(help="CSV or JSON-lines file with 'image' and 'text': these pairs only.", show_default=False),
]
KindOption = Annotated[
    Literal["vqascore", "visualgpt", "options", "itm", "itc", "clip"] | None,
    typer.Option(help="Kind of score.", show_default="vqascore; of a first-stage model itm, of a CLIP clip"),
]
QuestionOption = Annotated[
    str | None,
    typer.Option("--question-template", help="What is asked; {} is the text.", show_default="VQAScore's"),
]
AnswerOption = Annotated[
    str | None,
    typer.Option("--answer-template", help="Whose probability is taken; {} is the text.", show_default="Yes"),
]
ReductionOption = Annotated[
    Literal["geomean", "product", "first_token", "mean", "sum", "yes_no"] | None,
    typer.Option(help="What becomes of the tokens' probabilities.", show_default="geomean, of options sum"),
]
OtherOption = Annotated[
    str | None, typer.Option("--other-answer", help="What yes_no weighs the answer against.", show_default="No")
]
EosOption = Annotated[
    bool | None,
    typer.Option("--answer-eos/--no-answer-eos", help="The end counts as a token.", show_default="it counts"),
]
ScaleOption = Annotated[
    Literal["cosine", "clipscore", "percent"] | None,
    typer.Option(help="Of CLIPScores: as it is, 2.5 or 100 times the positive part.", show_default="cosine"),
]
StoreOption = Annotated[
    Path | None, typer.Option(help="SQLite file to keep scores in: a stopped run goes on.", show_default=False)
]
ShardOption = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Only the I-th of N shares of the pictures; share a --store.", show_default=False),
]
OnErrorOption = Annotated[
    Literal["raise", "skip"], typer.Option(help="End at a broken picture before anything is computed, or list it.")
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Hold the weights so.", show_default="as they are"),
]


def score(
    model: ModelArgument,
    images: ImagesOption = None,
    texts: TextsOption = None,
    texts_file: TextsFileOption = None,
    pairs: PairsOption = None,
    kind: KindOption = None,
    question: QuestionOption = None,
    answer: AnswerOption = None,
    reduction: ReductionOption = None,
    other_answer: OtherOption = None,
    answer_eos: EosOption = None,
    scale: ScaleOption = None,
    out: Annotated[Path | None, typer.Option(help="CSV, JSONL or JSON file to write.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(help="Page with pictures to write.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Write the tokens of every score to --out, too.")] = False,
    store: StoreOption = None,
    shard: ShardOption = None,
    on_error: OnErrorOption = "raise",
    frames: Annotated[int, typer.Option(min=1, help="Pictures taken from a video.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows and pictures at a time.")] = 16,
    dtype: DtypeOption = None,
    load_in: LoadInOption = None,
    cpu: CpuOption = False,
    system: SystemOption = None,
    source: SourceOption = None,
) -> None:
    """Score pictures with texts: every picture with every text, or the pairs of a file.

    Each picture is opened and encoded once. The highest score of each picture is marked. Settings, model and versions
    are written with the scores: scores that differ in them are not comparable.

    \b
    Examples:
      sightbridge score MODEL --images a.jpg b.jpg --texts "a red cup" "a blue cup"
      sightbridge score MODEL --images photos --texts "a dog" --out dogs.csv --html dogs.html
      sightbridge score MODEL --pairs pairs.csv --store scores.sqlite --shard 1/2 --out half.jsonl
      sightbridge score MODEL --images a.jpg --kind options --question-template "Which colour is it?" --texts red blue
      sightbridge score runs/stage1/model --kind itc --images photos --texts "a dog" "a cat"
      sightbridge score openai/clip-vit-base-patch32 --kind clip --images a.jpg --texts "a cup"
    """
    settings = read_settings(
        kind, question_template=question, answer_template=answer, reduction=reduction, scale=scale,
        other_answer=other_answer, answer_eos=answer_eos,
    )  # fmt: skip
    sources, wanted = find_inputs(images, texts, texts_file, pairs, frames, read_shard(shard))
    if on_error == "raise":
        check_there(sources)
    check_files(out, html, overwrite)
    own = {"batch_size": batch_size, "store": store, "on_error": on_error, "frames": frames, "progress": True}
    where = {"device": "cpu" if cpu else None, "dtype": dtype, "quantize": LOAD_IN[load_in] if load_in else None}
    scorer = load(model, kind, {**where, "sources": read_part_sources(source), "system": system, **own, **settings})
    scores = (scorer.pairs if pairs else scorer.score)(sources, wanted, trace=True)
    show(scores)
    write(scores, sources, out, html, trace)
    if scores.skipped:
        for problem in scores.skipped.values():
            console(stderr=True).print(f"skipped: {problem}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def read_settings(kind: str | None, **given: Any) -> dict[str, Any]:
    """The settings that were given; raises ``SettingsError`` for options without a question."""
    if kind == "options" and not given["question_template"]:
        raise SettingsError("--kind options ranks answers to a question: give it with --question-template")
    return {name: value for name, value in given.items() if value is not None}


def find_inputs(
    images: list[str] | None,
    texts: list[str] | None,
    texts_file: Path | None,
    pairs: Path | None,
    frames: int,
    shard: tuple[int, int],
) -> tuple[list[ImageSource], list[str]]:
    """The pictures and the texts; of pairs as many of one as of the other."""
    from sightbridge.scoring.pairs_file import read_pairs
    from sightbridge.scoring.pictures import find_pictures

    part, parts = shard
    if pairs:
        if images or texts or texts_file:
            raise SettingsError("--pairs names pictures and texts itself; leave out --images, --texts and --texts-file")
        rows = read_pairs(pairs)
        numbers = {image: number for number, image in enumerate(dict.fromkeys(row.image for row in rows))}
        mine = [row for row in rows if numbers[row.image] % parts == part - 1]
        sources, wanted = [row.image for row in mine], [row.text for row in mine]
    else:
        wanted = [*(texts or []), *(read_texts(texts_file) if texts_file else [])]
        if not images or not wanted:
            raise SettingsError("give pictures with --images and texts with --texts, or pairs with --pairs FILE")
        sources = [picture.source for picture in find_pictures(images, frames)][part - 1 :: parts]
    if not sources:
        raise DataError(f"--shard {part}/{parts}: there are fewer pictures than shares")
    return list(sources), wanted


def check_there(sources: Sequence[ImageSource]) -> None:
    """Raise ``ImageError`` for a picture file that is missing, before the model is loaded."""
    from sightbridge.errors import ImageError

    missing = [source for source in sources if isinstance(source, str | Path) and not Path(source).is_file()]
    if missing:
        more = f" ({len(missing) - 1} more are missing.)" if len(missing) > 1 else ""
        raise ImageError(f"{missing[0]}: no such picture file.{more} --on-error skip lists them and goes on.")


def read_shard(text: str | None) -> tuple[int, int]:
    """``I/N`` as two numbers; 1 of 1 if nothing is given. Raises ``SettingsError`` for anything else."""
    if text is None:
        return 1, 1
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise SettingsError(f"--shard: expected I/N with I from 1 to N, such as 1/4, got '{text}'")
    return int(part), int(parts)


def check_files(out: Path | None, html: Path | None, overwrite: bool) -> None:
    """Find out before the model is loaded whether the files can be written."""
    from sightbridge.scoring.output import check_suffix

    if out:
        check_suffix(out)
    check_output(out, overwrite)
    check_output(html, overwrite, "--html")


def load(model: str, kind: Any, options: dict[str, Any]) -> Scorer:
    """Load the model, with a word on the terminal."""
    from sightbridge.scoring.load import load_scorer

    with console(stderr=True).status("loading the model"):
        return load_scorer(model, kind, **options)


def show(scores: Scores) -> None:
    """Print the table."""
    is_table = scores.values.dim() == 2
    table = _by_text(scores) if is_table and len(scores.texts) <= SHOWN_TEXTS else _by_pair(scores)
    out = wide_console()
    out.print(table)
    record = scores.record
    asked = f", question {record['question_template']!r}" if record.get("question_template") else ""
    answered = f", answer {record['answer_template']!r} ({record['reduction']})" if "reduction" in record else ""
    out.print(f"{record['kind']} of {record['model']}{asked}{answered}", style="dim", markup=False)
    if (hidden := len(scores.values) - SHOWN_ROWS) > 0:
        out.print(f"{hidden} more rows are not shown; --out FILE writes all.", style="dim")


def _by_text(scores: Scores) -> Any:
    """A row for each picture and a column for each text."""
    from rich.text import Text

    from sightbridge.scoring.output import format_score, short_names

    table = new_table("image", *[""] * len(scores.texts))
    for column, text in zip(table.columns[1:], scores.texts, strict=True):
        column.header, column.justify = Text(text), "right"
    largest = scores.values.nan_to_num().abs().max().item()
    for name, values in list(zip(short_names(scores.images), scores.values.tolist(), strict=True))[:SHOWN_ROWS]:
        best = max((value for value in values if value == value), default=None) if len(values) > 1 else None
        cells = [
            Text(f"{format_score(value, largest)} ★", "bold green")
            if value == best
            else Text(f"{format_score(value, largest)}  ")
            for value in values
        ]
        table.add_row(Text(name), *cells)
    return table


def _by_pair(scores: Scores) -> Any:
    """A row for each pair; of many texts about a picture the best first."""
    from rich.text import Text

    from sightbridge.scoring.output import format_score, score_rows, short_names

    table = new_table("image", "score", "text")
    rows = score_rows(scores)
    if scores.values.dim() == 2:
        place = {name: number for number, name in enumerate(scores.images)}
        rows.sort(key=lambda row: (place[row["image"]], -row.get("score", 0)))
    largest = scores.values.nan_to_num().abs().max().item()
    names = list(dict.fromkeys(scores.images))
    short = dict(zip(names, short_names(names), strict=True))
    for row in rows[:SHOWN_ROWS]:
        shown = row["error"] if "error" in row else format_score(row["score"], largest)
        table.add_row(Text(short[row["image"]]), Text(shown), Text(row["text"]))
    return table


def write(scores: Scores, sources: Sequence[ImageSource], out: Path | None, html: Path | None, trace: bool) -> None:
    """Write the files that were asked for."""
    from sightbridge.scoring.output import write_scores
    from sightbridge.scoring.page import write_page

    if out:
        write_scores(scores, out, trace)
    if html:
        write_page(scores, sources, html)
    for file in (out, html):
        if file:
            console(stderr=True).print(f"wrote {file}", markup=False, soft_wrap=True)
