"""ViP-LLaVA's rows: its texts after every seed, what is mended in them, the custom format, and what is refused."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightbridge.config.data import SourceSettings
from sightbridge.data.marks import StoredRegion, marked_pictures, realise
from sightbridge.data.readers import load_records, read_source
from sightbridge.data.readers.vip_llava import read_region_test
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.visual_prompts import COLOURS, SHAPES
from sightbridge.visual_prompts.looks import Wish, draw_apart

GOLDEN = Path(__file__).parents[1] / "golden" / "llava" / "regions"
TEXTS = json.loads((GOLDEN / "vip_texts.json").read_text("utf-8"))
SEEDS = range(12)


def read(folder, rows, **options):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return list(load_records("vip_llava", path, folder / "pictures", **options))


def row(question="<image>\nWhat is <bbox0>?", answer="A bus.", **keys):
    conversation = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "1", "image": "a.png", "conversations": conversation, "bboxes": [[10, 20, 110, 80]]} | keys


def texts(record):
    return [turn.text for turn in record.turns]


@pytest.fixture
def golden(tmp_path):
    """The reference's rows, by name: its texts are beside them."""
    (tmp_path / "pictures" / "vcr").mkdir(parents=True)
    shutil.copy(GOLDEN / "vcr_boxes.json", tmp_path / "pictures" / "vcr" / "m.json")

    def golden_records(**options):
        rows = [{**source, "image": "big.png"} for source in TEXTS["sources"].values()]
        return dict(zip(TEXTS["sources"], read(tmp_path, rows, **options), strict=True))

    return golden_records


def test_parity_of_texts_after_every_seed(golden):
    same = Counter()
    for name, record in golden(regions="exact").items():
        for seed in SEEDS:
            turns, _ = record.plan.realise(random.Random(seed))
            same[name] += [turn.text for turn in turns] == [
                message["value"] for message in TEXTS["outputs"][f"{name}_{seed}"]["conversation"]
            ]
    print("texts equal to the reference's, of 12:", dict(same))
    assert same == dict.fromkeys(TEXTS["sources"], 12)


def test_parity_of_boxes(golden):
    for name, record in golden().items():
        for seed in SEEDS:
            _, marks = record.plan.realise(random.Random(seed))
            regions = [m.region.read() if isinstance(m.region, StoredRegion) else m.region for m in marks]
            assert [list(region.box) for region in regions] == TEXTS["outputs"][f"{name}_{seed}"]["bboxes"]


def test_corrected_rows_see_their_picture_and_name_their_marks(golden):
    records = golden()
    described = Counter()
    for seed in range(200):
        (question, answer), (mark,) = records["refcocog"].plan.realise(random.Random(seed))
        assert question.text.startswith("<image>\nDescribe the ") and answer.text == "the red dog"
        described[f"Describe the object {mark.phrase}." in question.text] += 1
    assert 30 < described[False] < 70  # a quarter
    two_colours = 0
    for seed in range(200):
        (question, _), marks = records["vg_rel"].plan.realise(random.Random(seed))
        assert question.text.startswith("<image>\nPlease describe the relationship between the subject within")
        assert marks[0].phrase != marks[1].phrase
        two_colours += marks[0].shape != marks[1].shape and marks[0].colour != marks[1].colour
    assert two_colours > 50
    for seed in SEEDS:
        (question, caption), marks = records["flickr30k"].plan.realise(random.Random(seed))
        wanted = "make sure to mention" in question.text
        assert all((mark.phrase in caption.text) == wanted for mark in marks)


def test_exact_rows_lose_what_the_reference_loses(golden):
    records = golden(regions="exact")
    for name in ("refcocog", "vg_rel"):
        assert records[name].images == () and records[name].marks == () and records[name].count_markers() == 0
    assert all(record.count_markers() == len(record.images) for record in records.values())
    assert all(record.marks for name, record in golden().items())


def test_evaluation_sees_the_same_in_every_run_and_training_something_else(golden):
    first, again = golden(), golden()
    for name, record in first.items():
        assert texts(record) == texts(again[name]) and record.marks == again[name].marks
    seen = {realise(first["refcocog"], seed, epoch).marks for seed in (0, 1) for epoch in range(5)}
    assert len(seen) > 8
    assert realise(first["refcocog"], 3, 1) == realise(again["refcocog"], 3, 1)
    reasoning = realise(first["vcr"], 0, 0)
    said = " ".join(texts(reasoning))
    assert reasoning.marks and all(mark.phrase in said or mark.in_words(False) in said for mark in reasoning.marks)


def test_objects_of_vcr_are_looked_up_when_they_are_drawn(golden, tmp_path):
    record = golden()["vcr"]
    first = record.marks[0].region.read()
    assert first.box == (10, 20, 200, 300) and first.label == "person" and first.polygons == ()  # three points only
    third = StoredRegion((0, 0, 0, 0), "car", file=record.marks[0].region.file, number=2).read()
    assert third.polygons == ((430, 70, 590, 80, 580, 390, 440, 380),)
    with pytest.raises(ImageError, match=r"n\.json: cannot read the file of boxes: No such file"):
        replace(record.marks[0].region, file=tmp_path / "n.json").read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a file of 'boxes' and 'segms'"),
        ('{"boxes": [[1, 2, 3, 4, 0.9]]}', "KeyError: 'segms'"),
        ('{"boxes": [[1, 2, 3, 4, 0.9]], "segms": [[]]}', "has 1 boxes, but the row speaks of number 1"),
        ('{"boxes": [["a", 2, 3, 4]], "segms": [[]]}', "could not convert"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_damaged_files_of_boxes(tmp_path, content, message):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(ImageError, match=message):
        StoredRegion((0, 0, 0, 0), file=tmp_path / "m.json", number=1).read()


def test_tests_are_put_in_fixed_words(golden, tmp_path):
    golden()
    sources, path = TEXTS["sources"], tmp_path / "test.json"
    asked = {}
    for test, name in {"v7w": "v7w", "pointQA_twice": "pointQA_twice", "vcr_qa": "vcr", "vcr_qar": "vcr"}.items():
        path.write_text(json.dumps([{**sources[name], "image": "big.png"}]))
        (record,) = read_region_test(path, tmp_path / "pictures", test)
        assert all(mark.alpha == 128 and mark.constant for mark in record.marks)
        assert {mark.shape for mark in record.marks} == {"point" if name == "vcr" else "rectangle"}
        asked[test] = texts(record)
    ending = "\nAnswer with the option's letter from the given choices directly."
    for test in ("v7w", "vcr_qa", "vcr_qar"):
        question, answer = asked[test]
        assert question.startswith("<image>\n") and question.endswith(ending) and "\nA. " in question
        assert answer == {"v7w": "C", "vcr_qa": "B", "vcr_qar": "C"}[test]
    assert asked["vcr_qa"][0].startswith("<image>\nWhy is the person at ")
    assert asked["vcr_qar"][0].startswith(
        "<image>\nI give you a question and its answer, I need you to provide a rationale explaining why the answer is "
        'right. "Why is the person at '
    )
    assert '.".What is the rationale for this decision?\nA. Because the car at ' in asked["vcr_qar"][0]
    assert asked["pointQA_twice"] == [
        "<image>\nHow many of these are there? The exemplary object is within the rectangle.\n"
        "Answer the question using a single word or phrase.",
        "2",
    ]
    with pytest.raises(SettingsError, match=r"unknown test of regions 'vcr_q'.*Did you mean 'vcr_qa'"):
        next(read_region_test(path, tmp_path, "vcr_q"))


def test_own_rows_with_everything_said_have_no_plan(tmp_path):
    (record,) = read(tmp_path, [row(shape="arrow", color="red", alpha=200, width=4, note="x")])
    (mark,) = record.marks
    assert texts(record) == ["<image>\nWhat is pointed to by the red arrow?", "A bus."]
    assert (mark.shape, mark.colour, mark.alpha, mark.width) == ("arrow", (255, 0, 0), 200, 4)
    assert record.plan is None and record.meta == {"note": "x"}


def test_own_rows_draw_what_is_not_said(tmp_path):
    boxes = [[1, 2, 3, 4], [5, 6, 7, 8]]
    said = row("<image>\nIs <bbox0> left of <bbox1>?", bboxes=boxes, shape=["mask", None], color=[None, [1, 2, 3]])
    (record,) = read(tmp_path, [said])
    for epoch in range(20):
        seen = realise(record, 0, epoch)
        first, second = seen.marks
        assert first.shape == "mask" and second.colour == (1, 2, 3) and second.colour_name is None
        assert texts(seen)[0] == f"<image>\nIs {first.phrase} left of {second.phrase}?"
    assert len({realise(record, 0, epoch).marks for epoch in range(20)}) > 10


@pytest.mark.parametrize(
    ("keys", "polygons"),
    [
        ({"segmentations": [[[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]]}, 2),
        ({"segmentations": [[1, 2, 3, 4, 5, 6]]}, 1),
        ({"segmentations": [None]}, 0),
        ({"segmentations": {"size": [4, 4], "counts": [5, 2, 2, 2, 5]}}, 1),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, 1),
        ({"segmentation": [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]}, 2),
        ({"segmentation": [[[1, 2, 3, 4, 5, 6]]]}, 1),
        ({"segmentation": {"size": [4, 4], "counts": [5, 2, 2, 2, 5]}}, 1),
    ],
)
def test_polygons_in_every_way_they_are_written(tmp_path, keys, polygons):
    (record,) = read(tmp_path, [row(**keys)])
    assert len(record.marks[0].region.polygons) == polygons


def test_several_pictures_and_one_box_by_its_other_name(tmp_path):
    two = row(
        "<image><image>\nWhat is <bbox1>?", image=["a.png", "b.png"], bboxes=[[1, 2, 3, 4]] * 2, bbox_image=[0, 1]
    )
    one = row("<image>\nWhat is <bbox>?", bbox=[1, 2, 3, 4])
    del one["bboxes"]
    first, second = read(tmp_path, [two, one])
    assert [mark.region.image for mark in first.marks] == [0, 1]
    assert texts(second) == [f"<image>\nWhat is {second.marks[0].phrase}?", "A bus."]


def test_ordinary_rows_stay_what_they_are(tmp_path):
    plain, alone = row("<image>\nWhat?"), row("Hello.")
    del plain["bboxes"], alone["bboxes"], alone["image"]
    rows = [plain, alone, row() | {"id": 7}]
    first, second, third = read(tmp_path, rows)
    (tmp_path / "plain.json").write_text(json.dumps(rows[:2]))
    ordinary = load_records("llava", tmp_path / "plain.json", tmp_path / "pictures")
    assert [texts(first), texts(second)] == [texts(record) for record in ordinary]
    assert first.plan is second.plan is None and third.plan is not None and third.id == "7"


def test_conversations_of_gpt4v_get_a_picture_and_their_data_sets_looks(tmp_path):
    rows = [
        row("Describe the object <bbox>.", "<bbox> is a dog.", id="refcocog-gpt4v-1"),
        row(id="flickr30k-gpt4v-1"),
        row("<image>\n<bbox0>", id="v7w-gpt4v-1"),
    ]
    describe, flickr, pointing = read(tmp_path, rows)
    assert texts(describe)[0] == f"<image>\nDescribe the object {describe.marks[0].phrase}."
    assert {realise(flickr, 0, epoch).marks[0].shape for epoch in range(40)} == {"rectangle", "ellipse", "arrow"}
    assert pointing.marks[0].constant and pointing.marks[0].shape == "rectangle"


def without(key):
    changed = row()
    del changed[key]
    return changed


REFCOCOG = {"id": "refcocog-1", "image": "a.png", "bboxes": [[1, 2, 3, 4]], "answer": "a dog"}
V7W = {"id": "v7w-1", "image": "a.png", "bboxes": [[1, 2, 3, 4]], "question": "Which?", "answer": [1, 2, 3, 5]}
VCR = {**TEXTS["sources"]["vcr"], "image": "a.png"}
FLICKR = {"id": "flickr30k-1", "image": "a.png", "bbox": [[[1, 2, 3, 4]]], "grounding": "a dog <bbox1>"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row("<image>\n<bbox7>"), r"says '<bbox7>', but the only box is '<bbox0>'"),
        (row("<image>\n<bbox>", bboxes=[[1, 2, 3, 4]] * 2), r"says '<bbox>', but has 2 boxes\. Write '<bbox0>' to"),
        (without("bboxes"), r"says '<bbox0>', but has no 'bbox' or 'bboxes'"),
        (row(bbox=[1, 2, 3, 4]), r"key 'bbox': there is 'bboxes' too"),
        (
            row(bboxes=[[1, 2, 3]]),
            r"key 'bboxes': expected a box \[left, top, right, bottom\] in pixels, got \[1, 2, 3\]",
        ),
        (row(bboxes=[[30, 2, 10, 4]]), r"the box \[30, 2, 10, 4\] ends before .*, not left, top, width, height"),
        (row(bboxes=[[10**400, 2, 3, 4]]), r"key 'bboxes': expected a box .*, got \[10{150,}\.\.\.\.$"),
        (row(shape={}), r"there is no shape '\{\}'"),
        (row("<image>\n<BBOX0>"), r"says '<BBOX0>', which stands for no box"),
        (row("<image>\n<bbox 0>, <bbox0>"), r"says '<bbox 0>', which stands for no box"),
        (row(segmentations=[[[1.5] * 200_002]]), r"a region of 100,001 points is more than the limit of 100,000"),
        (row(bboxes=[[1, 2, "3", 4]]), r"expected a box"),
        (row(bboxes={"a": 1}), r"key 'bboxes': expected a box .*, or a list of them, got an object"),
        (row(bboxes=[[float("nan"), 2, 3, 4]]), r"expected a box"),
        (row(segmentations=[[1, 2], [3, 4]]), r"'segmentations': expected the polygons of 1 box, got those of 2"),
        (row(segmentations=[[[1, 2, 3]]]), r"'segmentations': expected polygons \[x1, y1"),
        (row(segmentation={"size": [0, 1]}), r"key 'segmentation': 'size' of run lengths"),
        (row(shape="rectangel"), r"there is no shape 'rectangel'.*Did you mean 'rectangle'"),
        (row(color="redd"), r"there is no colour 'redd'.*Did you mean 'red'"),
        (row(color=[300, 0, 0]), r"there is no colour '300,0,0'"),
        (row(color="red", colour="red"), r"key 'colour': there is 'color' already"),
        (row(shape=["mask", "mask"]), r"key 'shape': expected one value for all, or one for each of 1 box, got 2"),
        (row(width="wide"), r"expected a number as 'width', got 'wide'"),
        (row(width=-1), r"the width -1 is not above 0"),
        (row(alpha=0.5), r"expected a whole number from 0, invisible, to 255 as 'alpha', got 0\.5"),
        (row(alpha=300), r"the alpha 300 is not from 0"),
        (row(bbox_image=1), r"key 'bbox_image': expected the number of a picture, 0 to 0, got 1"),
        (row("What is <bbox0>?"), r"number of pictures in 'image' is 1, that of '<image>' markers .* is 0"),
        ({"id": "refcoco-1", "image": "a.png"}, r"id 'refcoco-1' begins with none of 'refcocog-', .*'refcocog'\?"),
        (REFCOCOG | {"bboxes": [[1, 2, 3, 4]] * 2}, r"key 'bboxes': expected 1 box, got 2"),
        (REFCOCOG | {"answer": " "}, r"key 'answer': expected a text, got an empty one"),
        (V7W, r"key 'answer': the box \[1\.0, 2\.0, 3\.0, 5\.0\] is none of 'bboxes'"),
        (FLICKR, r"key 'grounding': says '<bbox1>', but 'bbox' has boxes of 1 phrases"),
        (
            VCR | {"question": ["Why", [3], "?"]},
            r"key 'question': expected words and lists of objects, 0 to 2, got \[3\]",
        ),
        (VCR | {"answer_label": 4}, r"key 'answer_label': there is no option 4: there are 4, counted from 0"),
        (VCR | {"meta_dir": 3}, r"key 'meta_dir': expected the name of a JSON file of boxes"),
    ],
)
def test_wrong_rows_are_told_with_file_row_and_key(tmp_path, wrong, message):
    with pytest.raises(DataError, match=rf"rows\.json, row 2.*{message}"):
        read(tmp_path, [row(), wrong])


def test_settings_of_sources(tmp_path):
    read(tmp_path, [REFCOCOG])
    source = SourceSettings(format="vip_llava", path="rows.json", regions="exact")
    assert read_source(source, tmp_path)[0].images == ()
    with pytest.raises(SettingsError, match=r"'regions' are of data about parts of pictures, which 'llava' is not"):
        read_source(source.model_copy(update={"format": "llava"}), tmp_path)
    with pytest.raises(
        SettingsError, match=r"unknown 'regions' 'exakt'\. Known: corrected, exact\. Did you mean 'exact'"
    ):
        load_records("vip_llava", tmp_path / "rows.json", regions="exakt")
    with pytest.raises(SettingsError, match=r"drawn anew in every epoch: leave out 'clean' and 'prompt'"):
        load_records("vip_llava", tmp_path / "rows.json", prompt="{}")


@given(
    seed=st.integers(0, 10_000),
    wishes=st.lists(
        st.builds(
            Wish,
            shape=st.none() | st.sampled_from(SHAPES),
            colour=st.none() | st.sampled_from([(colour, name) for name, colour in COLOURS.items()]),
        ),
        max_size=9,
    ),
)
def test_drawn_looks_are_told_apart(seed, wishes):
    looks = draw_apart(random.Random(seed), SHAPES, wishes)
    for look, wish in zip(looks, wishes, strict=True):
        assert wish.shape in (None, look.shape)
        assert wish.colour in (None, (look.colour, look.colour_name))
        assert look.colour_name is None or COLOURS[look.colour_name] == look.colour
    asked = [(wish.shape, wish.colour) for wish in wishes if wish.shape and wish.colour]
    if not any(wish.colour for wish in wishes) or len(wishes) == len(asked) == len(set(asked)):
        assert len({look[:2] for look in looks}) == len(looks)


def test_marked_pictures_are_what_evaluation_sees(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (120, 90)).save(tmp_path / "pictures" / "a.png")
    (record,) = read(tmp_path, [row(shape="rectangle", color="lime", alpha=255)])
    (picture,) = marked_pictures(record, anchor=120)
    assert picture.getpixel((10, 50)) == (0, 255, 0) and picture.getpixel((60, 50)) == (0, 0, 0)
    assert marked_pictures(record, 120)[0].tobytes() == picture.tobytes()
