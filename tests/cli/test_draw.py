"""``sightbridge draw``: marked pictures, their phrases, and mistakes in one line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from cli_workplace import run_command
from PIL import Image, ImageDraw

from sightbridge.cli.marks import read_marks
from sightbridge.visual_prompts import Mark, Region, draw


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    picture = Image.effect_noise((160, 120), 60).convert("RGB")
    picture.save(tmp_path / "photo.png")
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).ellipse((40, 40, 90, 80), 255)
    mask.save(tmp_path / "mask.png")
    run_lengths = {"size": [120, 160], "counts": [0, 50, 120 * 160 - 50]}
    (tmp_path / "mask.json").write_text(json.dumps(run_lengths))
    return tmp_path / "photo.png"


def test_draws_what_the_library_draws(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photo.with_name("out.png")
    options = [
        "--bbox",
        "20,30,90,100",
        "--shape",
        "arrow",
        "--color",
        "blue",
        "--alpha",
        0.6,
        "--width",
        4,
        "--seed",
        3,
    ]
    assert run_command("draw", photo, *options, "-o", out) == 0
    assert capsys.readouterr() == ("pointed to by the blue arrow\n", "")
    mark = Mark(Region((20, 30, 90, 100)), "arrow", (0, 0, 255), "blue", width=4, alpha=153, constant=True)
    expected = draw(Image.open(photo), [mark], random.Random(3))
    assert Image.open(out).tobytes() == expected.tobytes()
    assert sorted(path.name for path in photo.parent.iterdir()) == ["mask.json", "mask.png", "out.png", "photo.png"]


def test_several_regions(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    regions = [
        "bbox=1,2,30,40; color=blue",
        "polygon=60,60,100,60,80,100;shape=mask-contour",
        f"mask={photo.with_name('mask.png')};shape=mask;alpha=100",
        f"mask={photo.with_name('mask.json')};shape=point;color=#123456",
        "stroke=5,5,50,50;stroke=9,9,9,40",
    ]
    options = [option for region in regions for option in ("--region", region)]
    assert run_command("draw", photo, *options, "-o", photo.with_name("out.jpg"), "--color", "lime") == 0
    assert capsys.readouterr().out.splitlines() == [
        "within the blue rectangle",
        "with the lime mask contour",
        "with the lime mask",
        "at the point",
        "with the lime scribble",
    ]
    marks = read_marks(bbox=["1,2,3,4", "5,6,7,8"], region=["bbox=9,10,11,12;shape=point"], shape="ellipse", width=2)
    assert [(mark.region.box, mark.shape, mark.width) for mark in marks] == [
        ((1, 2, 3, 4), "ellipse", 2),
        ((5, 6, 7, 8), "ellipse", 2),
        ((9, 10, 11, 12), "point", 2),
    ]


def test_open_sizes_are_fixed_or_as_trained() -> None:
    (fixed,) = read_marks(bbox=["1,2,3,4"])
    assert (fixed.alpha, fixed.width, fixed.constant, fixed.colour_name) == (128, None, True, "red")
    (trained,) = read_marks(bbox=["1,2,3,4"], as_trained=True)
    assert (trained.alpha, trained.width, trained.constant) == (None, None, False)
    assert [read_marks(bbox=["1,2,3,4"], alpha=alpha)[0].alpha for alpha in (0, 0.5, 1, 200)] == [0, 128, 255, 200]


def test_marks_of_one_shape_get_colours_that_tell_them_apart() -> None:
    def phrases(**options: Any) -> list[str]:
        return [mark.phrase for mark in read_marks(**options)]

    boxes = ["1,2,3,4", "5,6,7,8"]
    assert phrases(bbox=boxes) == ["within the red rectangle", "within the lime rectangle"]
    assert phrases(bbox=boxes, color="blue") == ["within the blue rectangle"] * 2  # as was asked for
    regions = ["bbox=1,2,3,4;color=lime", "bbox=1,2,3,4;shape=arrow", "bbox=1,2,3,4", "bbox=1,2,3,4"]
    assert phrases(region=regions) == [
        "within the lime rectangle",
        "pointed to by the red arrow",
        "within the red rectangle",
        "within the blue rectangle",
    ]
    assert len(set(phrases(bbox=["1,2,3,4"] * 12))) == 9
    beside = read_marks(bbox=["1,2,3,4"])
    assert phrases(bbox=["5,6,7,8"], beside=beside) == ["within the lime rectangle"]


def test_a_box_beside_an_outline_is_the_same_region() -> None:
    (mark,) = read_marks(bbox=["1,2,30,40"], polygon=["5,5,9,5,9,9", "15,5,19,5,19,9"])
    assert mark.region == Region((1, 2, 30, 40), polygons=((5, 5, 9, 5, 9, 9), (15, 5, 19, 5, 19, 9)))
    assert read_marks() == []


def test_contact_sheet(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photo.with_name("sheet.png")
    assert run_command("draw", photo, "--bbox", "20,30,90,100", "--contact-sheet", "--antialias", "-o", out) == 0
    assert Image.open(out).size == (4 * 348 + 12, 2 * (252 + 42) + 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to draw. Add --bbox"),
        (["--shape", "arrow"], "--shape says how to mark, but not where"),
        (["--bbox", "1,2,3"], "bbox '1,2,3' has 3 numbers, expected four: left,top,right,bottom."),
        (["--bbox", "1,2,3,x"], "bbox: 'x' is not a number."),
        (["--bbox", "1,2,3,"], "bbox: '' is not a number."),
        (["--bbox", "30,2,3,9"], "photo.png: the box 30,2,3,9 is reversed"),
        (["--bbox", "300,2,333,9"], "photo.png: the box 300,2,333,9 lies outside of the picture, which has 160 x 120"),
        (["--bbox", "1,2,3,nan"], "bbox: 'nan' is no finite number"),
        (["--bbox", "1 2 3 4"], "bbox: '1 2 3 4' is not a number."),
        (["--polygon", "1,2,3,inf,5,6"], "polygon: 'inf' is no finite number"),
        (["--bbox", "1,2,3,4", "--shape", "arow"], "Did you mean 'arrow'?"),
        (["--bbox", "1,2,3,4", "--color", "rod"], "there is no colour 'rod'"),
        (["--bbox", "1,2,3,4", "--alpha", "300"], "alpha: 300.0 is not from 0, invisible, to 1, opaque"),
        (["--bbox", "1,2,3,4", "--width", "0"], "the width 0.0 is not above 0"),
        (["--polygon", "1,2,3,4"], "a polygon needs at least three points"),
        (["--polygon", "1,2,3,4,5"], "polygon '1,2,3,4,5' has 5 numbers"),
        (["--polygon", "1,2,3,4,5,6", "--bbox", "1,2,3,4", "--bbox", "1,2,3,4"], "which is whose?"),
        (["--polygon", "1,2,3,4,5,6", "--stroke", "1,2,3,4"], "either a polygon or a stroke"),
        (["--region", "bbx=1,2,3,4"], "Did you mean 'bbox'?"),
        (["--region", "shape=arrow"], "a region needs a bbox, a polygon, a mask or a stroke."),
        (["--region", "bbox=1,2,3,4;bbox=1,2,3,4"], "two boxes"),
        (["--region", "bbox=1,2,3,4;shape=mask;shape=arrow"], "gives 'shape' twice"),
        (["--mask", "missing.png"], "missing.png: no such picture file"),
        (["--bbox", "1,2,3,4", "--bbox", "1,2,3,4", "--contact-sheet"], "a contact sheet shows one region, not 2."),
    ],
)
def test_mistakes_are_one_line(
    photo: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("draw", photo, *options, "-o", photo.with_name("out.png")) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not photo.with_name("out.png").exists()


def test_bad_files_are_one_line(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photo.parent
    Image.new("L", (160, 120)).save(folder / "black.png")
    Image.new("L", (10, 10), 255).save(folder / "small.png")
    (folder / "bad.json").write_text("[1,")
    (folder / "list.json").write_text("[1]")
    (folder / "digits.json").write_text("1" * 5000)
    (folder / "bomb.json").write_text('{"size": [120, 160], "counts": [1' + "0" * 4000 + "]}")
    checks = Image.new("1", (160, 120)).resize((2, 2))
    checks.putpixel((0, 0), 1)
    checks.putpixel((1, 1), 1)
    noise = Image.new("1", (640, 320))
    for x in range(0, 640, 2):
        for y in range(0, 320, 2):
            noise.paste(checks, (x, y))
    noise.save(folder / "noise.png")
    noise.save(folder / "large.png")
    cases = {
        ("--mask", "black.png"): "black.png: the mask of 160 x 120 pixels is black",
        ("--mask", "small.png"): "small.png: a mask of 10 x 10 pixels for a picture of 160 x 120.",
        ("--mask", "bad.json"): "bad.json: Expecting value",
        ("--mask", "list.json"): "list.json: run lengths are given as",
    }
    cases |= {
        ("--mask", "digits.json"): "digits.json: Exceeds the limit",
        ("--mask", "bomb.json"): "bomb.json: run lengths for more than 64,000,000 pixels, but the mask has 160 x 120",
    }
    for (option, name), message in cases.items():
        assert run_command("draw", photo, option, folder / name, "-o", folder / "out.png") == 1
        assert message in capsys.readouterr().err
    assert run_command("draw", folder / "large.png", "--mask", folder / "noise.png", "-o", folder / "out.png") == 1
    assert "have 409,600 corners, more than the limit of 200,000" in capsys.readouterr().err
    for arguments, message in (
        ((photo, "--bbox", "1,2,3,4", "-o", photo), "is the picture itself"),
        ((photo, "--bbox", "1,2,3,4", "-o", folder / "out.gif"), "pictures are written as"),
        ((photo, "--bbox", "1,2,3,4", "-o", folder / f"{'x' * 300}.png"), "cannot be read or written: File name"),
        ((folder / "no.png", "--bbox", "1,2,3,4", "-o", folder / "out.png"), "no such picture file"),
        ((folder / "bad.json", "--bbox", "1,2,3,4", "-o", folder / "out.png"), "not a picture in a supported format"),
    ):
        assert run_command("draw", *arguments) == 1
        assert message in capsys.readouterr().err
