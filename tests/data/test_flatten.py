"""Conversations flattened to single questions: the reference's rows, nothing lost, and every row readable again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sightbridge.config.model import ImageSettings
from sightbridge.data.flatten import FlattenCounts, flatten, flatten_row
from sightbridge.data.readers.llava import read_llava
from sightbridge.data.record import Record
from sightbridge.errors import DataError, SettingsError
from sightbridge.images.load import describe_source
from small_models import make_processor

GOLDEN = Path(__file__).parents[1] / "golden" / "llava" / "rows"


def talk(*texts: str, **keys: Any) -> dict[str, Any]:
    """A row whose turns are from human and gpt in turn."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {**keys, "conversations": turns}


def flat(row: dict[str, Any], counts: FlattenCounts | None = None) -> list[dict[str, Any]]:
    return list(flatten_row(row, "rows.json, row 1", counts or FlattenCounts()))


def texts(row: dict[str, Any]) -> list[str]:
    return [turn["value"] for turn in row["conversations"]]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_parity_with_the_reference_but_for_ids(tmp_path: Path) -> None:
    """The golden rows leave out the one that the assistant opens, whose questions the reference pairs wrongly."""
    counts = flatten(GOLDEN / "conv.json", tmp_path / "flat.json")
    ours = json.loads((tmp_path / "flat.json").read_text())
    assert counts == FlattenCounts(read=5, several=2, written=8, text_only=1, openings=1)
    assert [row.pop("id") for row in ours] == ["s0", "s1", "s1-2", "s2", "s3", "s3-2", "s3-3", "s4"]
    reference = json.loads((GOLDEN / "conv_flat.json").read_text())
    for row in reference:
        del row["id"]
    assert [row for row in ours if row.get("image") != "wide.png"] == reference
    assert [texts(row) for row in ours if row.get("image") == "wide.png"] == [
        ["<image>\nDescribe the image concisely.", "A small bus near a tree."],
        ["<image>\nAnswer the question using a single word or phrase. What is near the tree?", "bus"],
        ["<image>\nIs it red?", "No, it is blue."],
    ]


def test_text_alone_gets_no_picture() -> None:
    counts = FlattenCounts()
    rows = flat(talk("Hello?", "Hi.", "Who are you?", "Nobody.", id=7), counts)
    assert rows == [talk("Hello?", "Hi.", id=7), talk("Who are you?", "Nobody.", id="7-2")]
    assert counts.several == 1


def test_every_question_is_shown_the_pictures_so_far() -> None:
    row = talk("Hi.", "Hi.", "<image><image>\nWhich?", "Left.", "And <image>?", "Both.", image=["a", "b", "c"])
    assert flat(row) == [
        talk("Hi.", "Hi."),
        talk("<image><image>\nWhich?", "Left.", image=["a", "b"]),
        talk("<image>\n<image>\nAnd <image>?", "Both.", image=["a", "b", "c"]),
    ]
    one, two = flat(talk("What?\n<image>", "A.", "<image> too?", "B.", image=["a", "b"]))
    assert (one["image"], two["image"]) == ("a", ["a", "b"])
    assert texts(two) == ["<image>\n<image> too?", "B."]


def test_a_system_turn_stays_with_every_question_and_so_do_other_keys() -> None:
    row = talk("<image>?", "A.", "B?", "B.", image="a", language="de", source="mine")
    row["conversations"].insert(0, {"from": "system", "value": "Be brief. <image>"})
    row["image"] = ["s", "a"]
    first, second = flat(row)
    assert texts(first) == ["Be brief. <image>", "<image>?", "A."]
    assert texts(second) == ["Be brief. <image>", "<image>\nB?", "B."]
    assert all((r["language"], r["source"], r["image"]) == ("de", "mine", ["s", "a"]) for r in (first, second))


def test_a_question_that_waits_for_its_answer_goes_on_waiting() -> None:
    assert flat(talk("A?", "A.", "B?")) == [talk("A?", "A."), talk("B?")]


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_flattened_rows_are_read_and_flat_for_good(tmp_path: Path, ending: str) -> None:
    rows = [
        talk("<image>\nWas ist das?", "Ein Bär.", "Wo?", "Im Wald.", id="1", image="bär.png"),
        talk("Hello?", "Hi.", "Who?", "Me.", id="2"),
        talk("<image> or <image>?", "The first.", id="3", image=["a.png", "b.png"]),
    ]
    counts = flatten(write(tmp_path / "rows.json", rows), tmp_path / f"flat{ending}")
    assert (counts.read, counts.several, counts.written, counts.text_only) == (3, 2, 5, 2)
    records = list(read_llava(tmp_path / f"flat{ending}", tmp_path))
    assert [record.id for record in records] == ["1", "1-2", "2", "2-2", "3"]
    assert [len(record.images) for record in records] == [1, 1, 0, 0, 2]
    assert all([turn.role for turn in record.turns] == ["user", "assistant"] for record in records)
    pairs = [(turn["value"] for turn in row["conversations"]) for row in rows]
    answers = [answer for pair in pairs for answer in list(pair)[1::2]]
    assert [record.turns[1].text for record in records] == answers, "every answer is there once, in order"
    again = flatten(tmp_path / f"flat{ending}", tmp_path / f"again{ending}")
    assert again.several == 0
    assert (tmp_path / f"again{ending}").read_bytes() == (tmp_path / f"flat{ending}").read_bytes()


def test_every_answer_becomes_a_target(tmp_path: Path) -> None:
    """Without flattening, an encoder-decoder learns the last answer of a conversation alone."""
    flatten(GOLDEN / "conv.json", tmp_path / "flat.json")
    processor = make_processor(
        "t5_v1", "t5", encoder_decoder=True, image=ImageSettings(size=56), switches={"drop_leading_assistant": True}
    )

    def targets(records: list[Record]) -> int:
        return sum(processor.encode(record).n_target_tokens for record in records)

    whole = list(read_llava(GOLDEN / "conv.json", tmp_path))
    single = list(read_llava(tmp_path / "flat.json", tmp_path))
    said = [turn.text or "" for r in whole for i, turn in enumerate(r.turns) if turn.role == "assistant" and i]
    assert targets(single) == sum(len(processor.tokenizer(text)["input_ids"]) for text in said)
    assert targets(whole) < targets(single)
    assert {describe_source(image) for r in single for image in r.images} == {
        describe_source(image) for r in whole for image in r.images
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "1"}, r"row 2: key 'conversations' is missing"),
        (talk("<image>", "A."), r"row 2: the number of pictures in 'image' is 0, that of '<image>' markers .* is 1"),
        (
            {"conversations": [{"from": "human", "value": "A?"}, {"from": "human", "value": "B?"}]},
            r"row 2, turn 2: expected one from 'gpt', got one from 'human'",
        ),
        (
            {
                "conversations": [
                    {"from": "gpt", "value": "-"},
                    *talk("A?", "A.", "B?", "B.", "C?")["conversations"][1:],
                ]
            },
            r"row 2, turn 2: expected one from 'human', got one from 'gpt'",
        ),
        ({"conversations": [{"from": "system", "value": "Be brief."}]}, r"row 2: holds no question"),
        ({"conversations": [{"from": "gpt", "value": "Hi."}]}, r"row 2, turn 1: expected one from 'human'"),
        (
            {"image": "a", "conversations": [{"from": "gpt", "value": "<image>"}, *talk("A?", "A.")["conversations"]]},
            r"row 2: an opening turn of the assistant, which would be left out, holds a picture",
        ),
        ({"conversations": [{"from": "user", "value": "A?"}]}, r"row 2, turn 1, key 'from': .* got 'user'"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    rows = write(tmp_path / "rows.json", [talk("A?", "A."), row])
    out = tmp_path / "flat.json"
    out.write_text("before")
    with pytest.raises(DataError, match=rf"rows\.json, {message}"):
        flatten(rows, out)
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flat.json", "rows.json"]


@pytest.mark.parametrize(
    ("out", "message"), [("rows.json", "is the file that is read"), ("flat.txt", "should end in .json")]
)
def test_places_to_write(tmp_path: Path, out: str, message: str) -> None:
    rows = write(tmp_path / "rows.json", [talk("A?", "A.")])
    with pytest.raises(SettingsError, match=message):
        flatten(rows, tmp_path / out)
    assert json.loads(rows.read_text()) == [talk("A?", "A.")]
