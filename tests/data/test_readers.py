"""Readers: foreign rows become records, wrong rows become one message with file, row and key."""

import json
from pathlib import Path

import pytest

from sightbridge.config.data import DataSettings
from sightbridge.data.readers import READERS, get_reader, read_sources
from sightbridge.errors import DataError, SettingsError
from sightbridge.text.turns import Turn

ROWS = Path(__file__).parents[1] / "golden" / "llava" / "rows"


def llava_row(**changes):
    row = {
        "id": "a",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A bus."}],
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def turns(*texts):
    return [{"from": speaker, "value": text} for speaker, text in zip(["human", "gpt"] * 9, texts, strict=False)]


def read(tmp_path, rows, reader="llava"):
    path = tmp_path / "rows.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return list(READERS[reader](path, tmp_path / "pictures"))


def test_real_llava_rows():
    records = list(READERS["llava"](ROWS / "conv.json", Path("pictures")))
    assert [record.id for record in records] == ["s0", "s1", "s2", "s3", "s4"]
    assert records[0].images == (Path("pictures/land.png"),)
    assert records[0].turns[1] == Turn("assistant", "The dog is yellow.")
    assert records[1].turns[0] == Turn("user", "What is in the image?\n<image>")
    assert records[2].images == ()
    assert records[3].turns[0] == Turn("assistant", "dropped first turn")
    assert len(records[3].turns) == 7
    assert records[4].where == f"{ROWS / 'conv.json'}, row 5"
    assert len(list(READERS["llava"](ROWS / "plain.json", Path()))) == 2


def test_json_lines_equal_json(tmp_path):
    rows = [llava_row(id=str(n)) for n in range(3)]
    as_lines = "\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\n"
    one, other = read(tmp_path, rows), read(tmp_path, as_lines)
    assert [record.turns for record in one] == [record.turns for record in other]
    assert other[2].where.endswith("rows.json, line 5")


def test_llava_variants(tmp_path):
    several = llava_row(image=["a.png", "/b.png"], conversations=turns("<image> or <image>?", "The first."))
    inline = llava_row(image="data:image/png;base64,AAAA")
    system = llava_row(conversations=[{"from": "system", "value": "Be brief."}, *turns("<image>", "Yes.")])
    text_only = llava_row(image=None, conversations=turns("Hi", "Hello"))
    numbered, nameless = llava_row(id=17), llava_row(id=...)
    records = read(tmp_path, [several, inline, system, text_only, numbered, nameless])
    assert records[0].images == (tmp_path / "pictures/a.png", Path("/b.png"))
    assert records[1].images == ("data:image/png;base64,AAAA",)
    assert records[2].turns[0] == Turn("system", "Be brief.")
    assert records[3].images == () and records[3].count_markers() == 0
    assert records[4].id == "17"
    assert records[5].id == "rows-6"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (llava_row(conversations=...), "row 2: key 'conversations' is missing"),
        (llava_row(conversations={}), "key 'conversations': expected a list"),
        (llava_row(conversations=[]), "at least one turn"),
        (llava_row(conversations=["hi"]), "turn 1: expected an object"),
        (llava_row(conversations=[{"from": "humam", "value": ""}]), "turn 1.*'humam'. Did you mean 'human'"),
        (llava_row(conversations=[{"from": "human"}]), "turn 1: key 'value' is missing"),
        (llava_row(conversations=[{"from": "human", "value": None}]), "key 'value': expected a text, got null"),
        (
            llava_row(conversations=turns("No marker", "Yes")),
            "pictures in 'image' is 1, that of '<image>' markers in 'conversations' is 0",
        ),
        (llava_row(conversations=turns("<image><image>", "Yes")), "is 1, .* is 2"),
        (llava_row(image=...), "is 0, .* is 1"),
        (llava_row(image=3), "key 'image': expected a file name"),
        (llava_row(image=["a.png", 3]), "key 'image', item 2: expected a text"),
        (llava_row(id=[1]), "key 'id': expected a text or a number, got a list"),
        (llava_row(id=True), "key 'id': expected a text or a number, got true or false"),
        ("a", "row 2: expected an object .* got a text"),
    ],
)
def test_wrong_llava_rows(tmp_path, row, message):
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, [llava_row(), row])
    assert f"{tmp_path / 'rows.json'}, row 2" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1,]', "line 1, column 11: broken JSON"),
        ('{"id": 1}\n{"id": ', "line 1: key 'conversations'"),
        (json.dumps(llava_row()) + "\n{", "line 2, column 2: broken JSON"),
        (json.dumps(llava_row(), indent=1) * 2, "line 1, column .: broken JSON.*one object per line"),
        ("", "holds no rows"),
        ("[]", "holds no rows"),
        ("\n \n", "holds no rows"),
        ("[" * 100_000, "line 1, column 2: broken JSON: maximum recursion depth"),
        ('{"id": ' + "[" * 100_000, "line 1: broken JSON: maximum recursion depth"),
        ('[{"id": ' + "9" * 5000 + "}]", "line 1, column 2: broken JSON: Exceeds the limit"),
        ('{"id": ' + "9" * 5000 + "}", "line 1: broken JSON: Exceeds the limit"),
    ],
)
def test_broken_files(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_unreadable_files(tmp_path):
    with pytest.raises(DataError, match="cannot read the annotation file"):
        list(READERS["llava"](tmp_path / "nowhere.json", tmp_path))
    with pytest.raises(DataError, match="is a folder, expected an annotation file"):
        list(READERS["llava"](tmp_path, tmp_path))
    with pytest.raises(DataError, match="is a pipe or a device"):
        list(READERS["llava"](Path("/dev/zero"), tmp_path))
    (tmp_path / "latin.json").write_bytes('[{"id": "ä"}]'.encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        list(READERS["llava"](tmp_path / "latin.json", tmp_path))


def test_coco_captions(tmp_path):
    train = {"image": "train/1.jpg", "caption": "A red bus.", "image_id": "coco_1"}
    other = {"image": "train/1.jpg", "caption": "A bus.", "image_id": "coco_1"}
    test = {"image": "val/2.jpg", "caption": ["A cat.", "A cat sleeps."]}
    records = read(tmp_path, [train, other, test], "coco_caption")
    assert records[0].turns == (Turn("user", "<image>"), Turn("assistant", "A red bus."))
    assert records[0].images == (tmp_path / "pictures/train/1.jpg",)
    assert records[0].id != records[1].id
    assert records[0].meta == {"image_id": "coco_1"}
    assert records[2].meta == {"image_id": "val/2.jpg", "references": ["A cat.", "A cat sleeps."]}
    assert records[2].turns[1] == Turn("assistant", "A cat.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "A cat."}, "row 1: key 'image' is missing"),
        ({"image": "a.png"}, "row 1: key 'caption' is missing.*The row has: image"),
        ({"image": "a.png", "caption": []}, "at least one caption"),
        ({"image": "a.png", "caption": ["A", None]}, "item 2: expected a text, got null"),
        ({"image": ["a.png"], "caption": "A"}, "key 'image': expected a file name, got a list"),
    ],
)
def test_wrong_caption_rows(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, [row], "coco_caption")


def test_read_sources_concatenates_and_limits(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([llava_row(id=n) for n in range(5)]))
    (tmp_path / "b.json").write_text(json.dumps([{"image": "b.png", "caption": "B"}]))
    data = DataSettings.model_validate(
        {
            "root": str(tmp_path),
            "train": [
                {"format": "llava", "path": "a.json", "images": "pictures", "limit": 2},
                {"format": "coco_caption", "path": "b.json"},
            ],
        }
    )
    records = read_sources(data, "train")
    assert [record.id for record in records] == ["0", "1", "b.png-1"]
    assert records[0].images == (tmp_path / "pictures/a.png",)
    assert records[2].images == (tmp_path / "b.png",)
    assert list(read_sources(data, "validation")) == []


def test_unknown_format():
    with pytest.raises(SettingsError, match=r"Known: llava, coco_caption, .*\. Did you mean 'llava'"):
        get_reader("lava")
