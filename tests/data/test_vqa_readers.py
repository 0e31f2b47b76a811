"""Question and caption files in every form people have them in."""

import json
from pathlib import Path

import pytest

import sightbridge
from sightbridge.data.readers import READERS, load_records
from sightbridge.errors import DataError, SettingsError
from sightbridge.text.turns import Turn

PICTURES = Path("pictures")
TEN = ["two", "2", "two", "three", "2", "2", "2", "2", "two", "2"]


def read(tmp_path, rows, reader, name="rows.json"):
    path = tmp_path / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return list(READERS[reader](path, PICTURES))


def test_vqa_training_rows(tmp_path):
    row = {"image": "train2014/1.jpg", "question": "How many?", "answer": TEN, "question_id": 9001, "dataset": "vqa"}
    tie = row | {"answer": ["red", "blue", "blue", "red"], "question_id": "q2"}
    first, second = read(tmp_path, [row, tie], "vqa")
    assert first.id == "9001" and second.id == "q2"
    assert first.images == (PICTURES / "train2014/1.jpg",)
    assert first.turns == (Turn("user", "<image>\nHow many?"), Turn("assistant", "2"))
    assert first.meta == {"question_id": 9001, "dataset": "vqa", "answers": TEN}
    assert second.turns[1].text == "red"  # of two answers given as often, the first


def test_vqa_rows_without_answers_wait_for_one(tmp_path):
    row = {"image": "a.jpg", "question": "Why?", "question_id": 5}
    record, nameless = read(tmp_path, [row, {"image": "b.jpg", "question": "Who?"}], "vqa")
    assert record.turns[1] == Turn("assistant", None)
    assert nameless.id == "rows-2"


def official_questions(**changes):
    questions = [
        {"image_id": 42, "question": "Is it red?", "question_id": 42000},
        {"image_id": 1000, "question": "How many?", "question_id": 1000001},
    ]
    return {"info": {}, "data_subtype": "val2014", "questions": questions} | changes


def official_annotations(ids=(42000, 1000001)):
    answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(TEN, 1)]
    rows = [{"question_id": id, "answer_type": "number", "question_type": "how", "answers": answers} for id in ids]
    return {"annotations": rows}


def test_official_vqa_questions_find_their_annotations(tmp_path):
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(official_annotations()))
    records = read(tmp_path, official_questions(), "vqa", "v2_OpenEnded_mscoco_val2014_questions.json")
    assert [record.images[0] for record in records] == [
        PICTURES / "COCO_val2014_000000000042.jpg",
        PICTURES / "COCO_val2014_000000001000.jpg",
    ]
    assert records[1].id == "1000001" and records[1].turns[1].text == "2"
    assert records[1].meta["answers"] == TEN and records[1].meta["answer_type"] == "number"


def test_official_vqa_questions_alone(tmp_path):
    path = tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    path.write_text(json.dumps(official_questions(data_subtype="test-dev2015")))
    (tmp_path / "test2015").mkdir()
    record = next(iter(READERS["vqa"](path, tmp_path)))
    assert record.images == (tmp_path / "test2015" / "COCO_test2015_000000000042.jpg",)
    assert record.turns[1].text is None


def test_official_vqa_files_that_do_not_belong_together(tmp_path):
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(official_annotations(ids=(42000,))))
    with pytest.raises(DataError, match=r"question 2: .* no answers to question 1000001"):
        read(tmp_path, official_questions(), "vqa", "v2_OpenEnded_mscoco_val2014_questions.json")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Why?"}, "row 1: key 'image' is missing"),
        ({"image": "a.jpg"}, "row 1: key 'question' is missing"),
        ({"image": "a.jpg", "question": "Why?", "answer": [1]}, "row 1, key 'answer', item 1: expected a text"),
        ({"image": "a.jpg", "question": "Why?", "question_id": []}, "key 'question_id': expected a text or a number"),
        ({"questions": []}, "'data_subtype' is missing"),
        ({"questions": {}, "data_subtype": "val2014"}, "'questions': expected a list"),
        ({"questions": [3], "data_subtype": "val2014"}, "question 1: expected an object"),
    ],
)
def test_wrong_vqa_rows(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, [row], "vqa")


def test_gqa_in_both_forms(tmp_path):
    row = {"image": "23.jpg", "question": "Blau?", "answer": "yes", "question_id": "07"}
    official = {"07": {"imageId": "23", "question": "Blau?", "answer": "yes", "fullAnswer": "Yes.", "semantic": [{}]}}
    (one,), (other,) = read(tmp_path, [row], "gqa"), read(tmp_path, official, "gqa")
    assert one.id == other.id == "07"
    assert one.images == other.images == (PICTURES / "23.jpg",)
    assert one.turns == other.turns == (Turn("user", "<image>\nBlau?"), Turn("assistant", "yes"))
    assert other.meta["fullAnswer"] == "Yes." and "semantic" not in other.meta
    with pytest.raises(DataError, match="question '8': key 'imageId' is missing"):
        read(tmp_path, {"8": {"question": "Blau?"}}, "gqa")


def test_visual_genome_captions(tmp_path):
    one, other = read(tmp_path, [{"image": "VG_100K/2.jpg", "caption": c} for c in ("A wall.", "A car.")], "vg_caption")
    assert one.meta["image_id"] == other.meta["image_id"] == "VG_100K/2.jpg"
    assert one.id != other.id and other.turns[1].text == "A car."


def test_paddlemix_rows(tmp_path):
    rows = [
        {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "A cake.", "image_id": "coco_522418"},
        {"image": "val2014/COCO_val2014_000000000007.jpg", "caption": "A bus."},
        {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "A net.", "image_id": "coco_522418"},
        {"image": "jpgpic.jpg"},
    ]
    records = read(tmp_path, rows, "paddlemix")
    assert [record.meta["image_id"] for record in records] == ["coco_522418", "7", "coco_522418", "jpgpic"]
    assert [record.meta["image_index"] for record in records] == [0, 1, 0, 2]
    assert len({record.id for record in records}) == 4
    assert records[3].turns[1].text is None


@pytest.mark.parametrize(("name", "delimiter"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_tables(tmp_path, name, delimiter):
    lines = [["image", "question", "answer", "question_id"], ["1.jpg", '"Is it, well, ""big""?"', "yes", "0012"]]
    lines += [["2.jpg", '"Why\nthat?"', "", "13"]]
    text = "\ufeff" + "\r\n".join(delimiter.join(line) for line in lines)
    first, second = read(tmp_path, text, "vqa", name)
    assert first.id == "0012" and first.turns[0].text == '<image>\nIs it, well, "big"?'
    assert second.turns == (Turn("user", "<image>\nWhy\nthat?"), Turn("assistant", None))
    with pytest.raises(DataError, match="line 2: has more cells than the 2 columns"):
        read(tmp_path, delimiter.join(["image", "caption"]) + "\n" + delimiter.join("abc"), "coco_caption", name)
    with pytest.raises(DataError, match="holds no rows"):
        read(tmp_path, delimiter.join(["image", "caption"]) + "\n", "coco_caption", name)


def test_clean_up_of_a_source(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"image": "a.jpg", "question": "A Dog (left)?", "answer": "Yes!"}]))
    assert load_records("vqa", path, clean="blip_question")[0].turns == (
        Turn("user", "<image>\na dog left?"),
        Turn("assistant", "Yes!"),
    )
    assert load_records("vqa", path, clean="blip_caption")[0].turns[1] == Turn("assistant", "yes")
    with pytest.raises(SettingsError, match=r"unknown clean-up 'blip'. Known: blip_caption, blip_question"):
        load_records("vqa", path, clean="blip")


def test_looking_at_a_record(tmp_path):
    """What PaddleMIX's users do first: ``print(load_dataset(...)[0])``."""
    rows = [{"image": "a.jpg", "caption": "A woman\nwearing a net.", "image_id": "coco_1"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    records = sightbridge.records("paddlemix", tmp_path / "train.json", "/coco/images")
    assert str(records[0]).splitlines() == [
        "Record 'coco_1-1'",
        "  image       /coco/images/a.jpg",
        "  user        <image>",
        "  assistant   A woman",
        "              wearing a net.",
        "  image_id    coco_1",
        "  image_index 0",
        f"  from        {tmp_path / 'train.json'}, row 1",
    ]
    assert sightbridge.records("paddlemix", tmp_path / "train.json")[0].images == (tmp_path / "a.jpg",)
