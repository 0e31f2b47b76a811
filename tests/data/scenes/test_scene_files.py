"""Scenes as files: read by the ordinary readers, the same every time, and never over somebody else's files."""

import json

import pytest
from PIL import Image, ImageChops, ImageDraw
from scene_words import colour_in, kind_in

from sightbridge.data.readers import READERS
from sightbridge.data.scenes.draw import draw_scene, outline
from sightbridge.data.scenes.world import NEW_COMBINATIONS, Scene, SceneObject
from sightbridge.data.scenes.write import ANNOTATIONS, ScenesSettings, write_scenes
from sightbridge.errors import DataError, SettingsError
from sightbridge.images.load import load_image
from sightbridge.visual_prompts import SHAPES

KINDS = ("statements", "descriptions", "figures")
SMALL = ScenesSettings(train=12, test=8, size=32)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["shapes", "digits"])
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    drawn = []
    counts = write_scenes(
        folder, ScenesSettings(object_set=request.param, train=60, test=40, size=32), lambda: drawn.append(1)
    )
    assert len(drawn) == 60 + 40 + 10
    return folder, counts, request.param


@pytest.mark.parametrize(
    "name",
    ["train", "test", "test_new"] + [f"{kind}_{part}" for kind in KINDS for part in ("train", "test")],
)
def test_conversations_are_read(written, name):
    folder, counts, _ = written
    records = list(READERS["llava"](folder / f"{name}.json", folder))
    assert len(records) == counts[name] and len({record.id for record in records}) == len(records)
    assert {record.language for record in records} == {"en", "de", "es", "zh"}
    for record in records:
        assert record.count_markers() == len(record.images) == 1
        assert record.turns[0].text.startswith("<image>\n")
        assert [turn.role for turn in record.turns] == ["user", "assistant"] * (len(record.turns) // 2)
        assert len(record.turns) == 2 or name == "train"
    questions = {"colour", "shape", "count", "position", "existence"}
    types = {kind.removesuffix("s") for kind in KINDS if name.startswith(kind)} or questions
    assert {record.meta["type"] for record in records} <= types
    assert load_image(records[0].images[0]).size == (32, 32)


@pytest.mark.parametrize("part", ["train", "test"])
def test_pairs_are_read_and_say_which_picture_is_meant(written, part):
    folder, counts, _ = written
    records = list(READERS["mblip"](folder / f"pairs_{part}.json", folder))
    assert len(records) == counts[f"pairs_{part}"] == {"train": 60, "test": 40}[part]
    english = [record for record in records if record.language == "en"]
    for record in english:
        assert len(set(record.images)) == record.count_markers() == 2
        assert record.turns[0].text.startswith(("<image>\n<image>\nLeft: ", "<image>\n<image>\nRight: "))
    assert {record.turns[1].text for record in english} == {"true", "false"}
    captions = {row["image"]: row["caption"] for row in rows(folder, f"captions_{part}")}
    for record in english:  # a true statement is about something that the caption of its picture names
        side, said = record.turns[0].text.split("\n")[-1].split(": ", maxsplit=1)
        caption = captions[record.images[side == "Right"].relative_to(folder).as_posix()]
        caption = caption if part == "train" else caption[0]
        thing = said.removeprefix("True or false: there is ").removesuffix(".")
        assert (thing in caption.split(", ")) == (record.turns[1].text == "true")


@pytest.mark.parametrize("part", ["train", "test"])
def test_captions_are_read(written, part):
    folder, counts, _ = written
    records = list(READERS["coco_caption"](folder / f"captions_{part}.json", folder))
    assert len(records) == counts[f"captions_{part}"] == {"train": 60, "test": 40}[part]
    assert all(("references" in record.meta) == (part == "test") for record in records)
    assert all(load_image(record.images[0]).size == (32, 32) for record in records[:3])


@pytest.mark.parametrize("part", ["train", "test"])
def test_questions_in_lavis_form_are_read_by_their_reader(written, part):
    folder, counts, object_set = written
    records = list(READERS["vqa"](folder / f"vqa_{part}.json", folder))
    assert len(records) == counts[f"vqa_{part}"] >= {"train": 60, "test": 40}[part]
    assert len({record.id for record in records}) == len(records)
    assert all(record.turns[1].text and record.meta["dataset"] == "scenes" for record in records)
    for record in records:
        code = record.meta["language"]
        assert (kind_in(record.turns[0].text, code), colour_in(record.turns[0].text, code)) not in NEW_COMBINATIONS[
            object_set
        ]


@pytest.mark.parametrize("asked", [1, 4])
def test_figures_are_shown_and_not_equally_often(tmp_path, asked):
    write_scenes(tmp_path, ScenesSettings(train=6, test=4, size=16, questions=asked))
    for part, expected in (("train", 6 * asked), ("test", 8)):
        answers = [row["conversations"][1]["value"] for row in rows(tmp_path, f"figures_{part}")]
        assert len(answers) == expected
        assert answers.count("Yes") == answers.count("No") == expected // 2


@pytest.mark.parametrize("part", ["train", "test"])
def test_marks_are_read_and_only_they_tell_the_answer(written, part):
    folder, counts, object_set = written
    records = list(READERS["vip_llava"](folder / f"marks_{part}.json", folder))
    assert len(records) == counts[f"marks_{part}"] > 0 and len({record.id for record in records}) == len(records)
    described = {row["image"]: row["caption"] for row in rows(folder, f"captions_{part}")}
    for record, row in zip(records, rows(folder, f"marks_{part}"), strict=True):
        (mark,) = record.marks
        assert all(mark.phrase in turn.text for turn in record.turns[::2]) and "<bbox" not in record.turns[0].text
        assert (record.plan is None) == (part == "test")  # training draws shape and colour anew
        assert bool(mark.region.polygons) == (object_set == "shapes")
        caption = described[row["image"]]
        things = (caption if part == "train" else caption[0]).split(", ")
        said = record.turns[1].text.removeprefix("a ").removeprefix("an ")
        assert len(things) >= 3 and sum(f" {said} " in f"{thing} " for thing in things) == 1


def test_each_shape_marks_every_test_picture_that_shows_enough(written):
    folder, _, _ = written
    shapes = [row["shape"] for row in rows(folder, "marks_test")]
    assert shapes == list(SHAPES) * (len(shapes) // len(SHAPES))


def test_an_outline_fits_its_box_and_the_drawn_shape():
    for number, kind in enumerate(("circle", "square", "triangle", "star")):
        scene = Scene((SceneObject(kind, "blue", 4, number),), "shapes", seed=1)
        picture, (box,) = draw_scene(scene, 300)
        points = outline(scene.objects[0], box)
        assert (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])) == pytest.approx(box, abs=0.1)
        inside = Image.new("L", picture.size)
        ImageDraw.Draw(inside).polygon(points, fill=255)
        is_ink = picture.convert("RGB").split()[0].point(lambda red: 255 if red < 100 else 0)
        differing = ImageChops.difference(inside, is_ink).histogram()[255]
        assert differing < 0.1 * inside.histogram()[255], kind


def test_regions_have_a_phrase_for_every_box(written):
    folder, counts, _ = written
    regions = rows(folder, "regions_test")
    assert len(regions) == counts["regions_test"] == 40
    for row, caption in zip(regions, rows(folder, "captions_test"), strict=True):
        assert len(row["bboxes"]) == len(row["phrases"])
        assert row["image"] == caption["image"] and all(said in caption["caption"][0] for said in row["phrases"])


def test_training_never_speaks_of_held_out_pairs(written):
    folder, _, object_set = written
    new = NEW_COMBINATIONS[object_set]
    for name in ("train", "test", "statements_train", "statements_test"):
        for row in rows(folder, name):
            for turn in row["conversations"][::2]:
                code = row["language"]
                assert (kind_in(turn["value"], code), colour_in(turn["value"], code)) not in new, turn
    for row in rows(folder, "captions_train"):
        for said in row["caption"].replace("，", ", ").split(", "):
            assert (kind_in(said, row["language"]), colour_in(said, row["language"])) not in new


def test_test_new_is_about_held_out_pairs(written):
    folder, _, object_set = written
    for row in rows(folder, "test_new"):
        question, code = row["conversations"][0]["value"], row["language"]
        kind, colour = kind_in(question, code), colour_in(question, code)
        if row["type"] == "colour":
            colour = colour_in(row["conversations"][1]["value"], code)
        if row["type"] == "shape":
            kind = kind_in(row["conversations"][1]["value"], code)
        assert (kind, colour) in NEW_COMBINATIONS[object_set], row


def test_one_question_a_row(tmp_path):
    write_scenes(tmp_path, ScenesSettings(train=6, test=4, size=16, one_question_per_row=True))
    conversations = [row["conversations"] for row in rows(tmp_path, "train")]
    assert len(conversations) > 6
    assert all(len(turns) == 2 and turns[0]["value"].startswith("<image>\n") for turns in conversations)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        write_scenes(tmp_path / name, ScenesSettings(train=6, test=4, size=24, seed=seed))
    one, same, other = (contents(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] != other[name] or name == "videos_test.json", name  # it says one of two words


def test_a_run_is_repeated_in_place(tmp_path):
    write_scenes(tmp_path, SMALL)
    before = contents(tmp_path)
    write_scenes(tmp_path, SMALL)
    assert contents(tmp_path) == before


def test_an_interrupted_run_leaves_no_annotations_that_do_not_fit(tmp_path):
    write_scenes(tmp_path, SMALL)
    (tmp_path / "notes.json").write_text("mine")

    def interrupt():
        raise KeyboardInterrupt

    other = ScenesSettings(train=12, test=8, size=32, seed=1)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path, other, interrupt)
    assert not any((tmp_path / f"{name}.json").exists() for name in ANNOTATIONS)
    assert (tmp_path / "notes.json").read_text() == "mine"
    write_scenes(tmp_path, other)
    write_scenes(tmp_path.parent / f"{tmp_path.name}-anew", other)
    expected = contents(tmp_path.parent / f"{tmp_path.name}-anew")
    assert {name: data for name, data in contents(tmp_path).items() if name != "notes.json"} == expected


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds other files; choose an empty folder"):
        write_scenes(tmp_path, SMALL)
    with pytest.raises(DataError, match="holds other files"):
        write_scenes(tmp_path / "thesis.tex", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_unknown_language_is_told_before_anything_is_drawn(tmp_path):
    with pytest.raises(SettingsError, match="no language 'fr'"):
        write_scenes(tmp_path / "scenes", ScenesSettings(languages=("en", "fr")))
    assert not (tmp_path / "scenes").exists()
