"""What a source of data can do to the records of its reader: leave some out, and write a prompt around their words."""

import json
from pathlib import Path

import pytest

from sightbridge.config.data import SourceSettings
from sightbridge.data.readers import load_records, read_source
from sightbridge.errors import DataError
from sightbridge.text.turns import Turn, prompt_turns

ROWS = [{"image": f"{n}.jpg", "question": f"What is {n}?", "answer": "a bus", "question_id": n} for n in range(5)]
MARVL = 'Based on the two images, is it correct to say "{}"? Yes or no?'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.mark.parametrize("reader", ["vqa", "llava"])
def test_validation_gets_what_training_leaves_out(file: Path, reader: str):
    if reader == "llava":
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A bus."}]
        file.write_text(json.dumps([{"id": n, "conversations": turns} for n in range(5)]))

    def ids(**settings: int) -> list[str]:
        source = SourceSettings.model_validate({"format": reader, "path": file.name, **settings})
        return [record.id for record in read_source(source, file.parent)]

    assert ids(limit=2) + ids(skip=2) == ids() == ["0", "1", "2", "3", "4"]
    assert ids(skip=1, limit=2) == ["1", "2"]
    assert ids(skip=9) == []


def test_a_prompt_is_written_around_the_words_of_the_record(file: Path):
    records = load_records("vqa", file, prompt="Question: {} Short answer in English:", clean="blip_question")
    assert [turn.text for turn in records[3].turns] == [
        "<image>\nQuestion: what is 3? Short answer in English:",
        "a bus",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>\n<image>\nBoth are {red}.", "<image>\n<image>\n" + MARVL.replace("{}", "Both are {red}.")),
        ("<image><image>Both", "<image><image>\n" + MARVL.replace("{}", "Both")),
        ("Is <image> red?", MARVL.replace("{}", "Is <image> red?")),
    ],
)
def test_pictures_in_front_stay_in_front(text: str, expected: str):
    turns = [Turn("system", "{}"), Turn("user", text), Turn("assistant", "yes {}")]
    assert prompt_turns(turns, MARVL, "row 1") == (turns[0], Turn("user", expected), turns[2])


def test_a_prompt_without_a_place_for_words_is_for_turns_without_words():
    picture = [Turn("user", "<image>"), Turn("assistant", "A bus.")]
    assert prompt_turns(picture, "Caption the image in English.", "row 1")[0].text == (
        "<image>\nCaption the image in English."
    )
    with pytest.raises(DataError, match=r"questions\.json, row 2: the prompt 'Caption\.' has no '\{\}'.*'Why\?'"):
        prompt_turns([Turn("user", "<image>\nWhy?")], "Caption.", "questions.json, row 2")
