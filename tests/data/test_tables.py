"""Tables: every way a picture and a text stand in columns, nothing read before it is needed."""

import io
import json
import pickle
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sightbridge.data.readers import load_records
from sightbridge.data.readers.tables import TableImage
from sightbridge.errors import DataError, ImageError
from sightbridge.images.load import image_key, load_image
from sightbridge.text.turns import Turn


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def picture(shade):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def shade(source):
    return load_image(source).getpixel((0, 0))[0]


def write_parquet(path, columns):
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "cells",
    [
        [picture(1), picture(2)],
        [{"bytes": picture(1), "path": "x.png"}, {"bytes": picture(2), "path": None}],
        [{"bytes": picture(1), "path": None}, {"bytes": None, "path": "two.png"}],
        ["one.png", "two.png"],
        [[picture(1)], [picture(2)]],
        [["one.png"], ["two.png"]],
    ],
    ids=["bytes", "structs", "bytes or path", "names", "lists of bytes", "lists of names"],
)
def test_pictures_in_parquet(tmp_path, cells):
    (tmp_path / "one.png").write_bytes(picture(1))
    (tmp_path / "two.png").write_bytes(picture(2))
    path = write_parquet(tmp_path / "a.parquet", {"image": cells, "caption": ["A.", "B."], "score": [0.5, None]})
    records = load_records("parquet", path)
    assert [shade(record.images[0]) for record in records] == [1, 2]
    assert records[1].turns == (Turn("user", "<image>"), Turn("assistant", "B."))
    assert records[0].meta == {"score": 0.5} and records[1].meta == {}
    assert records[1].where == f"{path}, row 2"


def test_datasets_own_image_column(tmp_path):
    (tmp_path / "one.png").write_bytes(picture(1))
    columns = {"image": [str(tmp_path / "one.png"), {"bytes": picture(2), "path": None}], "text": ["A.", "B."]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = datasets.Dataset.from_dict(columns, features=features)
    table.save_to_disk(tmp_path / "folder")
    table.to_parquet(str(tmp_path / "a.parquet"))
    for name, path in [("arrow", "folder"), ("parquet", "a.parquet")]:
        records = load_records(name, tmp_path / path)
        assert [shade(record.images[0]) for record in records] == [1, 2]
        assert all(isinstance(record.images[0], TableImage) for record in records[1:])
    assert load_records("arrow", next((tmp_path / "folder").glob("*.arrow")))[1].turns[1].text == "B."
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "several")
    with pytest.raises(DataError, match=r"several tables \(train\). Give the folder of one, such as .*several/train"):
        load_records("arrow", tmp_path / "several")


def test_what_rows_say(tmp_path):
    talk = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "The first."}]
    columns = {
        "id": ["a", None, None],
        "images": [[picture(1), picture(2)], [picture(3)], None],
        "conversations": [talk, None, [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]],
        "question": [None, "How many?", None],
        "answer": [None, "2", None],
    }
    records = load_records("parquet", write_parquet(tmp_path / "a.parquet", columns))
    assert [record.turns[-1].text for record in records] == ["The first.", "2", "Hello"]
    assert [[shade(source) for source in record.images] for record in records] == [[1, 2], [3], []]
    assert [record.id for record in records] == ["a", "a-2", "a-3"]
    assert records[1].turns[0].text == "<image>\nHow many?"


def test_several_files_and_changed_files(tmp_path):
    for n in range(3):
        write_parquet(tmp_path / f"{n}.parquet", {"image": [picture(n)], "text": [str(n)]})
    records = load_records("parquet", tmp_path / "{0..2}.parquet")
    assert [record.turns[1].text for record in records] == ["0", "1", "2"]
    assert len({image_key(record.images[0]) for record in records}) == 3
    write_parquet(tmp_path / "1.parquet", {"image": [picture(9)], "text": ["new"]})
    assert [r.turns[1].text for r in load_records("parquet", tmp_path / "*.parquet", limit=2)] == ["0", "new"]


def test_json_lines(tmp_path):
    rows = [{"image": "one.png", "question": "Is it?", "answer": "yes"}, {"image": "two.png", "question": "Why?"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    records = load_records("jsonl", tmp_path / "a.jsonl", tmp_path / "pictures")
    assert [record.turns[1].text for record in records] == ["yes", None]
    assert records[1].images == (tmp_path / "pictures" / "two.png",)


def test_only_what_is_looked_at_is_read(tmp_path, monkeypatch):
    count, size = 200, 100_000
    path = write_parquet(
        tmp_path / "a.parquet", {"image": [bytes([n]) * size for n in range(count)], "text": ["A"] * count}
    )
    records = load_records("parquet", path)
    monkeypatch.setattr(TableImage, "read", lambda *_: pytest.fail("a picture was read"))
    before = pa.total_allocated_bytes()
    assert sum(len(record.images) for record in records) == count
    assert pa.total_allocated_bytes() - before < size
    assert len(pickle.dumps(records)) < size  # a spawned worker opens the file again
    monkeypatch.undo()
    copy = pickle.loads(pickle.dumps(records))
    assert copy[7].images[0].read(10**6) == bytes([7]) * size
    with pytest.raises(ImageError, match=r"a\.parquet, row 8, column 'image': larger than the limit of 99,999"):
        load_image(copy[7].images[0], max_bytes=99_999)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"x"], "label": [3]}, r"row 1: expected one of 'conversations'.*The row has: label"),
        ({"image": pa.array([None], pa.binary()), "text": ["A"]}, "row 1: has no picture"),
        ({"image": [[b"x", None]], "text": ["A"]}, "row 1, column 'image', item 2: .* got nothing"),
        ({"image": [3], "text": ["A"]}, "column 'image': expected the bytes or the name .* got int64"),
        ({"image": [b"x"], "text": [4]}, "row 1, key 'text': expected a caption"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        list(load_records("parquet", write_parquet(tmp_path / "a.parquet", columns)))


def test_files_that_are_no_tables(tmp_path, caplog):
    (tmp_path / "a.parquet").write_text("nonsense")
    for name in ("parquet", "arrow", "jsonl"):
        with pytest.raises(DataError, match=r"a\.parquet: cannot be opened as a table: .*\w\. Is it empty, or"):
            load_records(name, tmp_path / "a.parquet")
    assert not caplog.records  # datasets logs the errors that it raises
    with pytest.raises(DataError, match="these are missing"):
        load_records("parquet", tmp_path / "b.parquet")


def test_datasets_is_imported_only_for_tables():
    code = "import sys, sightbridge.data.readers; assert not {'datasets', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
