"""MiniGPT4Qwen's rows: one turn or several, pictures and videos anywhere, and rows that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightbridge.data.bad_samples import BadSamples, check_images
from sightbridge.data.readers import load_records
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.images.load import load_image
from sightbridge.images.video import VideoFrame
from sightbridge.text.turns import LITERAL_MARKER

TAG = "<Img><ImageHere></Img>"


def read(folder: Path, *rows: dict[str, Any], **options: Any) -> Any:
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return load_records("minigpt4qwen", folder / "rows.json", folder / "image", **options)


def said(record: Any) -> list[tuple[str, str | None]]:
    return [(turn.role, turn.text) for turn in record.turns]


def test_one_turn_and_the_tag_anywhere(tmp_path: Path) -> None:
    (record,) = read(tmp_path, {"image": "a.jpg", "instruction": f"In {TAG} what is it?", "output": "A bus.", "n": 3})
    assert said(record) == [("user", "In <Img><image></Img> what is it?"), ("assistant", "A bus.")]
    assert record.images == (tmp_path / "image" / "a.jpg",)
    assert (record.id, record.where, record.meta) == ("rows-1", f"{tmp_path / 'rows.json'}, row 1", {"n": 3})


def test_several_turns_and_several_images(tmp_path: Path) -> None:
    row = {"image": ["a.jpg", "b.jpg"], "instruction": [f"{TAG} What?", "And <ImageHere>?"], "output": ["A.", "B."]}
    one = {"id": 7, "image": ["a.jpg", "b.jpg"], "instruction": "<ImageHere><ImageHere>", "output": "Two."}
    text = {"instruction": "Hi.", "output": "Hello."}
    several, single, alone = read(tmp_path, row, one, text)
    assert said(several) == [
        ("user", "<Img><image></Img> What?"),
        ("assistant", "A."),
        ("user", "And <image>?"),
        ("assistant", "B."),
    ]
    assert [image.name for image in several.images] == ["a.jpg", "b.jpg"]
    assert said(single)[0] == ("user", "<image><image>") and single.id == "7"
    assert alone.images == () and said(alone) == [("user", "Hi."), ("assistant", "Hello.")]


def test_a_row_without_an_output_waits_for_an_answer(tmp_path: Path) -> None:
    (record,) = read(tmp_path, {"image": "a.jpg", "instruction": TAG})
    assert said(record) == [("user", "<Img><image></Img>"), ("assistant", None)]


def test_a_video_is_pictures_in_place_of_its_tag(tmp_path: Path) -> None:
    row = {"video": "v.mkv", "instruction": ["What?", f"{TAG} happens?"], "output": ["?", "A bus stops."]}
    (record,) = read(tmp_path, row)
    assert said(record)[2] == ("user", f"<Img>{'<image>' * 32}</Img> happens?")
    assert record.images == tuple(VideoFrame(tmp_path / "image" / "v.mkv", n, 32) for n in range(32))
    (short,) = read(tmp_path, row, frames=4)
    assert said(short)[2] == ("user", "<Img><image><image><image><image></Img> happens?")
    assert len(short.images) == 4


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    (tmp_path / "image" / "v").mkdir(parents=True)
    for number in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / "image" / "v" / f"{number}.png")
    (record,) = read(tmp_path, {"video": "v", "instruction": TAG, "output": "Nothing."}, frames=5)
    assert [frame.name for frame in record.images] == ["1.png", "3.png", "5.png", "7.png", "9.png"]


def test_what_only_looks_like_a_marker_is_text(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "instruction": f"{TAG} Is <image> a tag?", "output": "<image> and <ImageHere> are text."}
    (record,) = read(tmp_path, row)
    assert record.count_markers() == 1
    assert said(record)[1] == ("assistant", f"{LITERAL_MARKER} and <ImageHere> are text.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.jpg", "instruction": "Hi.", "output": "Ho."}, "pictures in 'image' is 1, that of .* is 0"),
        ({"image": ["a.jpg"], "instruction": TAG * 2, "output": "Ho."}, "pictures in 'image' is 1, that of .* is 2"),
        ({"instruction": TAG, "output": "Ho."}, "is 0, that of .* is 1"),
        ({"video": "v.mkv", "instruction": TAG * 2, "output": "Ho."}, "videos in 'video' is 1, that of .* is 2"),
        ({"image": "a.jpg", "instruction": [TAG, "And?"], "output": ["Ho."]}, "has 2 turn.s., 'output' 1"),
        ({"image": "a.jpg", "instruction": [TAG], "output": "Ho."}, "both be texts, or both lists"),
        ({"image": "a.jpg", "instruction": TAG, "output": ["Ho."]}, "both be texts, or both lists"),
        ({"image": "a.jpg", "instruction": [TAG, "And?"]}, "has 2 turn.s., 'output' 0"),
        ({"image": "a.jpg", "instruction": [], "output": []}, "has 0 turn"),
        ({"image": "a.jpg", "output": "Ho."}, "key 'instruction' is missing"),
        ({"image": 3, "instruction": TAG, "output": "Ho."}, "key 'image': expected a file name"),
        ({"image": "a.jpg", "video": "v", "instruction": TAG, "output": "Ho."}, "has 'image' and 'video'"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    good = {"image": "a.jpg", "instruction": TAG, "output": "A."}
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, good, row)
    assert f"{tmp_path / 'rows.json'}, row 2" in str(caught.value)


def test_missing_pictures_and_videos_are_bad_samples(tmp_path: Path) -> None:
    (tmp_path / "image" / "empty").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "image" / "a.png")
    rows = [
        {"image": "a.png", "instruction": TAG, "output": "A."},
        {"image": "b.png", "instruction": TAG, "output": "B."},
        {"video": "v.mkv", "instruction": TAG, "output": "V."},
        {"video": "empty", "instruction": TAG, "output": "E."},
    ]
    records = read(tmp_path, *rows)
    bad = check_images(records)
    assert [sample.id for sample in bad] == ["rows-2", "rows-3", "rows-4"]
    assert bad[1].reason == f"no such video file: {tmp_path / 'image' / 'v.mkv'}"
    with pytest.raises(DataError, match="row 2: no such picture file"):
        BadSamples(len(records), limit=0.5).add(bad)
    with pytest.raises(ImageError, match=r"v\.mkv: no such video file|cannot read the picture file"):
        load_image(records[2].images[0])


def test_frames_are_only_of_formats_with_videos(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'frames' are of videos, which 'llava' does not have"):
        load_records("llava", tmp_path / "rows.json", frames=4)
