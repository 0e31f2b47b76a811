"""``sightbridge data``: make data."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sightbridge.cli.console import console, new_progress, new_table, show_table
from sightbridge.cli.data_flatten import flatten
from sightbridge.cli.data_mix import mix

app = typer.Typer(no_args_is_help=True, help="Make data to train on and to play with.")

FILES = {
    "train": ("llava", "questions and answers"),
    "test": ("llava", "one question a row, on other pictures"),
    "test_new": ("llava", "about pairs of kind and colour that no training picture shows"),
    "captions_train": ("coco_caption", "a caption a picture"),
    "captions_test": ("coco_caption", "the same, as lists of references"),
    "statements_train": ("llava", "true or false"),
    "statements_test": ("llava", "true or false"),
    "regions_test": ("", "boxes, and a phrase for each"),
    "two_by_two_test": ("", "two pictures a row and the captions of both, to be scored"),
    "vqa_train": ("vqa", "a question a row, as in LAVIS"),
    "vqa_test": ("vqa", "the same, two a picture"),
    "descriptions_train": ("llava", "the captions, each asked for in its language"),
    "descriptions_test": ("llava", "the same, on other pictures"),
    "figures_train": ("llava", "does this figure show ...? yes or no, as VQAScore asks"),
    "figures_test": ("llava", "the same, two a picture"),
    "pairs_train": ("mblip", "two pictures a row, and a statement about one of them"),
    "pairs_test": ("mblip", "the same, on other pictures"),
    "chats_train": ("minigpt4qwen", "the conversations of train.json"),
    "chats_test": ("minigpt4qwen", "those of test.json"),
    "videos_train": ("minigpt4qwen", "which way everything moves, in folders of frames"),
    "videos_test": ("minigpt4qwen", "the same, on other pictures"),
    "marks_train": ("vip_llava", "what is in a box, marked anew every time (English)"),
    "marks_test": ("vip_llava", "one question a row, each shape of mark on every picture (English)"),
}
"""Files of ``data scenes``: the reader for each, and what is in it."""


class ObjectSet(StrEnum):
    """What is on the pictures."""

    SHAPES = "shapes"
    DIGITS = "digits"


@app.command("scenes")
def scenes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; new, empty or of an earlier call.")],
    object_set: Annotated[
        ObjectSet, typer.Option("--set", help="Drawn shapes, or scanned handwritten digits in coloured ink.")
    ] = ObjectSet.SHAPES,
    train: Annotated[int, typer.Option(min=1, help="Pictures to train on.")] = 2000,
    test: Annotated[
        int, typer.Option(min=1, help="Pictures to test on; a quarter as many more show new pairs of kind and colour.")
    ] = 500,
    languages: Annotated[str, typer.Option(help="Codes of the languages, with commas between.")] = "en,de,es,zh",
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of a picture in pixels.")] = 96,
    questions: Annotated[int, typer.Option(min=1, help="Questions about every training picture.")] = 4,
    one_question_per_row: Annotated[
        bool,
        typer.Option(
            "--one-question-per-row", help="Make each training question a row, for encoder-decoder language models."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed and options make the same files.")] = 0,
) -> None:
    """Draw pictures of things on a 3 x 3 grid, with questions, captions, statements and regions.

    \b
    Examples:
      sightbridge data scenes scenes
      sightbridge data scenes digits --set digits --train 500 --languages en
      sightbridge data scenes scenes --one-question-per-row
    """
    from sightbridge.data.scenes.write import ScenesSettings, write_scenes

    settings = ScenesSettings(
        object_set=object_set.value,
        train=train,
        test=test,
        languages=tuple(code.strip() for code in languages.split(",")),
        size=size,
        questions=questions,
        one_question_per_row=one_question_per_row,
        seed=seed,
    )
    with new_progress() as progress:
        task = progress.add_task("drawing", total=train + test + test // 4)
        rows = write_scenes(out, settings, on_picture=lambda: progress.advance(task))
    table = new_table("file", "rows", "format", "what")
    for name, count in rows.items():
        table.add_row(str(out / f"{name}.json"), str(count), *FILES[name])
    show_table(table)
    console().print(f"Look at it: sightbridge inspect data {out / 'train.json'} --format llava", soft_wrap=True)


app.command("mix")(mix)
app.command("flatten")(flatten)
