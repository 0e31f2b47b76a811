"""Pictures on the page: what is drawn in a browser is what the model is shown, and what browsers send is checked."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from api_server import Live, SteeredEngine, png, served
from PIL import Image, ImageChops

pytest.importorskip("gradio")

from sightbridge.data.marks import drawing
from sightbridge.images.load import load_image
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.app import make_state
from sightbridge.serving.api.body import RegionBody
from sightbridge.serving.api.messages import read_marks
from sightbridge.serving.api.state import State
from sightbridge.serving.engines.request import Request
from sightbridge.serving.web.pictures_box import PicturesBox
from sightbridge.serving.web.uploads import FRAME_SIDE, FRAMES, make_keeper, make_looker, upright
from sightbridge.visual_prompts import SHAPES

WIDTH, HEIGHT = 800, 500


@pytest.fixture
def state() -> Iterator[State]:
    model = served(SteeredEngine())
    yield make_state([model])
    model.close()


def sent(name: str, data: bytes) -> Any:
    """A file as gradio hands it to a component's function."""
    return SimpleNamespace(files=[(name, data)])


def keep(state: State, name: str, data: bytes) -> dict[str, Any]:
    return asyncio.run(make_keeper(state)(sent(name, data)))


def box_of(*pictures: dict[str, Any]) -> str:
    return json.dumps({"pictures": pictures})


def test_what_a_box_holds_is_what_a_request_says(state: State) -> None:
    kept = keep(state, "a.png", png(1))["pictures"][0]
    assert (kept["name"], kept["width"], kept["height"]) == ("a.png", 20, 30)
    regions = [{"bbox": [1, 2, 10, 20], "shape": "ellipse", "color": "blue"}, {"strokes": [[1, 1, 5, 5]]}]
    (shown,) = PicturesBox.read(box_of({"file": kept["file"], "name": "a.png", "regions": regions}), state)
    assert shown.data == png(1)
    assert shown.part["file"] == {"file_id": kept["file"]}
    assert shown.part["regions"] == [regions[0], {"strokes": [[1, 1, 5, 5]], "shape": "scribble"}]
    assert PicturesBox.read("", state) == PicturesBox.read(None, state) == []
    preview = base64.b64decode(kept["preview"].split(",")[1])
    assert ImageChops.difference(load_image(preview), load_image(png(1))).getbbox() is None
    assert asyncio.run(make_looker(state)(kept["file"])) == kept


@pytest.mark.parametrize(
    "value",
    [
        "no json",
        "[]",
        7,
        ["pictures"],
        '{"pictures": 3}',
        box_of({"file": 3}),
        box_of({"file": "x" * 101}),
        box_of({"file": "file-a", "path": "/etc/passwd"}),
        box_of(*[{"file": "file-a"}] * 257),
        box_of({"file": "file-a", "regions": [{"shape": "arrow"}]}),
        box_of({"file": "file-a", "regions": [{"strokes": [[0, 0]] * 2049}]}),
        box_of({"file": "file-a", "regions": [{"bbox": [0, 0, 1e400, 1]}]}),
        box_of({"file": "/etc/passwd"}),
        box_of({"file": "file-gone"}),
    ],
)
def test_what_no_box_of_ours_would_send_is_refused(value: Any, state: State) -> None:
    with pytest.raises(ApiError) as raised:
        PicturesBox.read(value, state)
    assert raised.value.status in (400, 404, 422)


def test_uploads_are_bounded_and_errors_are_those_of_the_api(state: State) -> None:
    bomb = io.BytesIO()
    Image.new("1", (6000, 6000)).save(bomb, "PNG")
    for name, data, said in [
        ("bomb.png", bomb.getvalue(), "bomb.png: 6000 x 6000 is more than the limit"),
        ("<b>.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "<b>.svg: not a picture in a supported format"),
        ("cut.png", png(1)[:300], "truncated or damaged"),
        ("empty.png", b"", "empty.png"),
        ("film.mp4", b"no film", "film.mp4: not a readable video"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "list.mp4: not a readable video"),
    ]:
        told = keep(state, name, data)
        assert set(told) == {"error"}
        assert said in told["error"]
        assert "/tmp" not in told["error"]
    assert state.files.bytes == 0
    for odd in (None, {}, SimpleNamespace(files=[]), SimpleNamespace(files=[3])):
        assert "error" in asyncio.run(make_keeper(state)(odd))
    assert "There is no file" in asyncio.run(make_looker(state)({"file": "x"}))["error"]


def test_pictures_are_turned_as_cameras_mean_them() -> None:
    """A browser shows them so, and whoever draws on one must see what the model sees."""
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste("red", (0, 0, 20, 20))
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    picture.save(file, "JPEG", exif=exif, quality=95)
    turned = load_image(upright(file.getvalue()))
    assert turned.size == (20, 40)
    pixels = np.asarray(turned)
    assert pixels[5, 10, 0] > 240 and pixels[5, 10, 1] < 20 and pixels[35, 10].min() > 240
    assert upright(png(1)) == png(1)


def test_a_video_gives_frames(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 1440, 48
        for number in range(16):
            frame = Image.new("RGB", (1440, 48), (number * 16, 0, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    frames = keep(state, "Film.MP4", path.read_bytes())["pictures"]
    assert [frame["name"] for frame in frames[:2]] == ["Film.MP4, frame 1 of 8", "Film.MP4, frame 2 of 8"]
    assert len(frames) == FRAMES
    assert {frame["width"] for frame in frames} == {FRAME_SIDE}
    reds = [np.asarray(load_image(state.files.get(frame["file"]).data))[9, 9, 0] for frame in frames]
    assert reds == sorted(reds) and reds[0] < 60 < 180 < reds[-1]
    monkeypatch.setattr("sightbridge.images.video.find_spec", lambda name: None)
    told = keep(state, "film.mp4", path.read_bytes())["error"]
    assert told.startswith("film.mp4: videos need PyAV: pip install 'sightbridge[video]'")


# In a browser


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.effect_noise((WIDTH, HEIGHT), 20).resize((WIDTH, HEIGHT)).save(path)
    return path


def put(page: Any, *paths: Path) -> None:
    """Choose files in the box, and wait until they are there."""
    page.set_input_files("#pictures input[type=file]", [str(path) for path in paths])
    page.wait_for_function(
        f"document.querySelectorAll('#pictures .thumbnail').length === {len(paths)}"
        " && document.querySelector('#pictures canvas').clientWidth > 0"
    )


def drag(page: Any, shape: str, *points: tuple[float, float], color: str = "") -> None:
    """Draw with the mouse; ``points`` are in pixels of the picture, whose middles are whole numbers."""
    page.click(f"#pictures [data-shape='{shape}']")
    if color:
        page.click(f"#pictures [data-color='{color}']")
    canvas = page.locator("#pictures canvas")
    canvas.scroll_into_view_if_needed()
    at = canvas.bounding_box()
    places = [
        (at["x"] + (x + 0.5) * at["width"] / WIDTH, at["y"] + (y + 0.5) * at["height"] / HEIGHT) for x, y in points
    ]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def marks_of(page: Any) -> list[tuple[int, dict[str, Any]]]:
    """What the page would send: marks, each with the number of its picture."""
    pictures = json.loads(page.get_attribute("#pictures .pictures-box", "data-value"))["pictures"]
    return [(number, region) for number, picture in enumerate(pictures) for region in picture["regions"]]


def test_what_is_drawn_is_what_is_asked_about(web: Live, page: Any, photo: Path) -> None:
    """The picture is shown smaller than it is; pixels are those of the original."""
    put(page, photo)
    shown = page.locator("#pictures canvas").bounding_box()["width"]
    assert shown < 0.75 * WIDTH
    pixel = WIDTH / shown
    drag(page, "rectangle", (100, 50), (90, 70), (300, 200), color="lime")
    drag(page, "rectangle", (700, 450), (500, 300), color="red")
    drag(page, "arrow", (50, 400), (120, 380))
    drag(page, "rectangle", (10, 10), (11, 11))
    assert "Drag from one corner" in page.inner_text("#pictures .said")
    words = page.locator("#pictures .marks .word").all_inner_texts()
    assert [" ".join(word.split()) for word in words] == [
        "<bbox0> within the lime rectangle",
        "<bbox1> within the red rectangle",
        "<bbox2> pointed to by the blue arrow",  # of the next colour
    ]
    page.fill("#question textarea", "Is  like the other?")
    page.evaluate("document.querySelector('#question textarea').setSelectionRange(3, 3)")
    page.click("#pictures .marks li:nth-child(3) .word")
    assert page.input_value("#question textarea") == "Is <bbox2> like the other?"
    page.click("#pictures .marks li:nth-child(1) .remove")
    assert page.input_value("#question textarea") == "Is <bbox1> like the other?"
    page.click("#pictures [aria-label=Undo]")
    assert page.input_value("#question textarea") == "Is <bbox2> like the other?"
    page.press("#question textarea", "Enter")
    engine: Any = web.state.models.by_name["first"].engine
    page.wait_for_selector("text=Yes.")  # not in another way: the page's requests go through this thread
    request = engine.tickets[-1].request
    assert "Is pointed to by the blue arrow like the other?" in request.turns[-2].text
    lime, red, arrow = request.marks
    assert (lime.phrase, red.phrase) == ("within the lime rectangle", "within the red rectangle")
    assert lime.region.box == pytest.approx((100, 50, 300, 200), abs=pixel)
    assert red.region.box == pytest.approx((500, 300, 700, 450), abs=pixel)
    assert arrow.region.strokes[0] == pytest.approx((50, 400, 120, 380), abs=pixel)
    assert {mark.alpha for mark in request.marks} == {128}
    page.click("#pictures [aria-label='Remove all marks']")
    assert page.locator("#pictures .marks li").count() == 0


def test_strokes_of_a_colour_are_one_scribble(page: Any, photo: Path) -> None:
    put(page, photo)
    for left in (100, 300):
        drag(page, "scribble", *[(left + 10 * step, 100 + 40 * (step % 2)) for step in range(6)], color="aqua")
    drag(page, "scribble", (500, 400), (600, 450), color="gold")
    (_, aqua), (_, gold) = marks_of(page)
    assert (aqua["shape"], aqua["color"], gold["color"]) == ("scribble", "aqua", "gold")
    assert [len(stroke) for stroke in aqua["strokes"]] == [12, 12]
    assert aqua["strokes"][1][:4] == pytest.approx((300, 100, 310, 140), abs=2)
    assert gold["strokes"] == [pytest.approx((500, 400, 600, 450), abs=2)]
    for number in range(2):
        drag(page, "point", (50 + 30 * number, 50))
    drag(page, "point", (50, 150))
    assert page.inner_text("#pictures .said") == "At most 4 marks are taken."
    assert len(marks_of(page)) == 4


def test_marks_of_several_pictures_are_numbered_through(page: Any, photo: Path) -> None:
    put(page, photo, photo)
    page.click("#pictures .thumbnail:nth-child(2) button")
    drag(page, "rectangle", (400, 100), (600, 300), color="red")
    page.fill("#question textarea", "What is <bbox>?")
    page.click("#pictures .thumbnail:nth-child(1) button")
    drag(page, "rectangle", (100, 100), (200, 200))
    assert page.input_value("#question textarea") == "What is <bbox1>?"
    assert [(number, region["color"]) for number, region in marks_of(page)] == [(0, "lime"), (1, "red")]
    page.click("#pictures .thumbnail:nth-child(1) .remove")
    assert page.input_value("#question textarea") == "What is <bbox0>?"
    assert [(number, region["color"]) for number, region in marks_of(page)] == [(0, "red")]
    svg = {"name": "a.svg", "mimeType": "image/svg+xml", "buffer": b"<svg/>"}
    page.set_input_files("#pictures input[type=file]", svg)
    page.wait_for_function("document.querySelector('#pictures .said').textContent.includes('a.svg: not a picture')")


def test_the_canvas_shows_what_the_model_sees(web: Live, page: Any, tmp_path: Path) -> None:
    """Every shape, drawn in the browser and drawn for the model, covers the same pixels."""
    path = tmp_path / "grey.png"
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(path)
    outline = [(200, 100), (600, 150), (500, 400), (250, 350)]
    paths = {
        "rectangle": [(200, 100), (600, 400)],
        "ellipse": [(200, 100), (600, 400)],
        "arrow": [(200, 100), (600, 400)],
        "triangle": [(200, 100), (600, 400)],
        "point": [(300, 200)],
        "scribble": [(100, 100), (500, 150), (300, 400)],
        "mask contour": outline,
        "mask": outline,
    }
    assert set(paths) == set(SHAPES)
    processor: Any = web.state.models.by_name["first"].processor
    put(page, path)
    for shape, points in paths.items():
        drag(page, shape, *points)
        url = page.evaluate("document.querySelector('#pictures canvas').toDataURL()")
        seen = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB").resize((WIDTH, HEIGHT))
        marks = read_marks([RegionBody(**region) for _, region in marks_of(page)], image=0)
        drawn = load_image(
            drawing(Request((), marks=tuple(marks)).record, 0).on(path.read_bytes(), processor.image_settings.anchor)
        )
        ones, others = _covered(seen), _covered(drawn)
        same = (ones & others).sum() / (ones | others).sum()
        print(f"{shape}: {same:.3f} of the pixels are the same")
        assert same > 0.9, shape
        page.click("#pictures [aria-label='Remove all marks']")


def _covered(picture: Image.Image) -> np.ndarray:
    """Which pixels are not grey any more."""
    return np.ptp(np.asarray(picture, dtype=np.int16), axis=2) > 60


def test_a_picture_that_is_gone_is_told(web: Live, page: Any, photo: Path) -> None:
    put(page, photo)
    web.state.files.remove(list(web.state.files._files)[-1])
    page.fill("#question textarea", "What is it?")
    page.press("#question textarea", "Enter")
    page.wait_for_selector("text=Upload it again")


def test_a_finger_draws_too(page: Any, photo: Path) -> None:
    wide = page.viewport_size
    page.set_viewport_size({"width": 420, "height": 800})
    put(page, photo)
    page.tap("#pictures [data-shape=point]")
    page.locator("#pictures canvas").scroll_into_view_if_needed()
    at = page.locator("#pictures canvas").bounding_box()
    page.touchscreen.tap(at["x"] + at["width"] / 4, at["y"] + at["height"] / 2)
    page.wait_for_selector("#pictures .marks li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    ((_, mark),) = marks_of(page)
    assert mark["shape"] == "point"
    assert mark["bbox"] == pytest.approx((200, 250, 200, 250), abs=3)
    page.set_viewport_size(wide)
