"""A picture goes through the tower once, however often it is asked about."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
import torch
from engine_requests import alone, ask, engine_of, model_of
from PIL import Image

from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import ImageError
from sightbridge.serving.engines.feature_cache import FeatureCache
from sightbridge.serving.engines.request import Request
from sightbridge.text.turns import Turn
from sightbridge.visual_prompts import Mark, Region
from small_models import picture

SHORT = GenerationSettings(max_new_tokens=4)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "PNG")
    return file.getvalue()


def about(*images: object, marks: tuple[Mark, ...] = ()) -> Request:
    turns = (Turn("user", "<image>" * len(images) + "?"), Turn("assistant", None))
    return Request(turns, images, marks, SHORT)  # type: ignore[arg-type]


def test_pictures_are_known_by_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    model = model_of("llama")
    usual = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: seen.append(len(pixels)) or usual(pixels))
    data, file = png(1), tmp_path / "a.png"
    file.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    with engine_of("llama") as engine:
        texts = {engine.submit(about(source)).result(20)[0] for source in (data, file, str(file), url)}
        assert len(texts) == 1 and seen == [1]
        file.write_bytes(png(2))
        assert engine.submit(about(file)).result(20)[0] not in texts and seen == [1, 1]
        engine.submit(about(data, picture(1), png(2))).result(20)
        assert seen == [1, 1, 1], "pixels have a name of their own"
        assert engine.submit(about(Image.fromarray(picture(1)))).result(20)[0] in texts
        stats = engine.stats()
    assert (stats["feature_misses"], stats["feature_hits"]) == (3, 6) and len(seen) == 3
    assert stats["feature_bytes"] == 3 * 4 * 16 * 4


def test_a_later_turn_finds_the_pictures_of_earlier_ones() -> None:
    first = about(png(1))
    with engine_of("t5") as engine:
        text = engine.submit(first).result(20)[0]
        turns = (first.turns[0], Turn("assistant", text), Turn("user", "And this? <image>"), Turn("assistant", None))
        second = Request(turns, (png(1), png(2)), settings=SHORT)
        assert engine.submit(second).result(20)[0] == alone("t5", second)
        assert engine.stats()["feature_misses"] == 2 and engine.stats()["feature_hits"] == 1


def test_marks_make_another_picture() -> None:
    marked = about(png(1), marks=(Mark(Region((2.0, 2.0, 9.0, 9.0))),))
    with engine_of("llama") as engine:
        for request in (about(png(1)), marked, marked, about(png(1))):
            assert engine.submit(request).result(20)[0] == alone("llama", request)
        assert engine.stats()["feature_misses"] == 2


def test_the_least_lately_used_go_first() -> None:
    cache, one = FeatureCache(3 * 40), torch.zeros(10)
    for key in "abc":
        cache.put(key, one)
    assert cache.get("a") is one
    cache.put("d", one)
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"] and cache.nbytes == 120
    cache.put("large", torch.zeros(31))
    assert cache.get("large") is None and cache.nbytes == 120


def test_without_room_every_picture_is_encoded_again() -> None:
    with engine_of("llama", feature_cache_bytes=0) as engine:
        for _ in range(2):
            assert engine.submit(about(png(1))).result(20)[0] == alone("llama", about(png(1)))
        assert engine.stats()["feature_misses"] == 2 and engine.stats()["feature_bytes"] == 0


def test_a_damaged_pillow_picture_is_named() -> None:
    with engine_of("llama") as engine, pytest.raises(ImageError, match=r"picture 1: .*truncated or damaged"):
        engine.submit(about(Image.open(io.BytesIO(png(1)[:-200]))))


def test_questions_reach_features_that_are_kept() -> None:
    with engine_of("llama") as engine:
        for text in ("who", "where is the bus"):
            assert engine.submit(ask(text)).result(20)[0] == alone("llama", ask(text))
