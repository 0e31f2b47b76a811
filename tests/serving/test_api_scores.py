"""Scores and features over HTTP are those of the library."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from api_server import Live, SteeredEngine, data_url, error_of, live, png, served, wait_until
from engine_requests import ask, engine_of, model_of, processor_of
from score_models import first_stage, save_clip

from sightbridge.data.marks import drawing
from sightbridge.data.record import Record
from sightbridge.evaluation.features import first_stage_features
from sightbridge.scoring.clip import load_clip
from sightbridge.scoring.load import make_backend
from sightbridge.scoring.scorer import Scorer
from sightbridge.serving.api.body import RegionBody
from sightbridge.serving.api.messages import read_marks
from sightbridge.serving.api.one_at_a_time import OneAtATime
from sightbridge.serving.api.served import ServedModel
from sightbridge.serving.engines.engine import EngineClosedError
from sightbridge.visual_prompts import draw

TEXTS = ["a dog", "a yellow dog near a bus", "two cats"]
PICTURES = [png(1), png(2)]
URLS = [data_url(1), data_url(2)]
REGION = {"bbox": [2, 3, 12, 20], "shape": "ellipse", "color": "lime"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def server(clip: Path) -> Iterator[Live]:
    stage = ServedModel("stage1", *first_stage(), None, OneAtATime("stage1", 4))
    whole = ServedModel("clip", load_clip(str(clip), "cpu", None), None, None, OneAtATime("clip", 4))
    with live(served(SteeredEngine()), stage, whole) as running:
        yield running


def post(server: Live, path: str, **fields: Any) -> dict[str, Any]:
    response = server.http.post(path, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def scorer(kind: Any) -> Scorer:
    return Scorer(make_backend(model_of("llama"), processor_of("llama"), kind))


@pytest.mark.parametrize("kind", ["vqascore", "visualgpt", "options"])
def test_all_pairs(server: Live, kind: str) -> None:
    found = post(server, "/score", model="small", images=URLS, texts=TEXTS, kind=kind)
    assert (found["object"], found["model"], found["kind"]) == ("scores", "small", kind)
    expected = scorer(kind).score(PICTURES, TEXTS)
    torch.testing.assert_close(torch.tensor(found["scores"]), expected, rtol=1e-4, atol=1e-5)
    assert found["record"]["kind"] == kind and found["record"]["weights"] and "tokens" not in found


def test_many_pictures_in_their_order(server: Live) -> None:
    pictures = [png(number) for number in range(20)]
    found = post(server, "/score", model="small", images=[data_url(one) for one in pictures], texts=TEXTS * 2)
    expected = scorer("vqascore").score(pictures, TEXTS * 2)
    torch.testing.assert_close(torch.tensor(found["scores"]), expected, rtol=1e-4, atol=1e-5)


def test_many_texts_in_their_order(server: Live) -> None:
    texts = [f"a dog number {number}" for number in range(70)]
    found = post(server, "/score", model="small", images=URLS, texts=texts, trace=True)
    expected = scorer("vqascore").score(PICTURES, texts, trace=True)
    torch.testing.assert_close(torch.tensor(found["scores"]), expected.values, rtol=1e-4, atol=1e-5)
    assert [len(row) for row in found["tokens"]] == [70, 70]


def test_scores_beside_answers() -> None:
    """One model answers and scores at the same time, in one thread; both are as they are alone."""
    question = {"model": "small", "messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 60}
    with live(served()) as server:
        alone = post(server, "/v1/chat/completions", **question)["choices"]
        together: list[Any] = []
        asking = threading.Thread(
            target=lambda: together.extend(post(server, "/v1/chat/completions", **question) for _ in range(5))
        )
        asking.start()
        found = [post(server, "/score", images=URLS, texts=TEXTS)["scores"] for _ in range(5)]
        asking.join()
        assert [answer["choices"] for answer in together] == [alone] * 5
    expected = scorer("vqascore").score(PICTURES, TEXTS)
    for scores in found:
        torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-4, atol=1e-5)


def test_work_beside_answers_is_the_engines() -> None:
    with engine_of("llama") as engine:
        assert engine.run_beside(lambda: threading.current_thread().name) == "sightbridge-engine-llama"
        with pytest.raises(ZeroDivisionError):
            engine.run_beside(lambda: 1 / 0)
        assert engine.submit(ask()).result(10)
    with pytest.raises(EngineClosedError):
        engine.run_beside(lambda: None)


def test_templates_and_tokens(server: Live) -> None:
    options = {"question_template": "Is there {}?", "answer_template": "No", "reduction": "sum"}
    found = post(server, "/score", model="small", images=URLS[:1], texts=TEXTS, trace=True, **options)
    expected = scorer("vqascore").score(PICTURES[:1], TEXTS, trace=True, **options)
    torch.testing.assert_close(torch.tensor(found["scores"]), expected.values, rtol=1e-4, atol=1e-5)
    assert [token["token"] for token in found["tokens"][0][0]] == [token.text for token in expected.tokens[0][0]]
    total = sum(token["logprob"] for token in found["tokens"][0][0])
    assert found["scores"][0][0] == pytest.approx(total, rel=1e-4)


def test_marks_are_drawn(server: Live) -> None:
    found = post(server, "/score", model="small", images=[{"url": URLS[0], "regions": [REGION]}], texts=TEXTS)
    marks = read_marks([RegionBody(**REGION)], image=0)
    anchor = processor_of("llama").image_settings.anchor
    marked = drawing(Record("request", (PICTURES[0],), (), marks=tuple(marks)), 0).on(PICTURES[0], anchor)
    expected = scorer("vqascore").score([marked], TEXTS)
    torch.testing.assert_close(torch.tensor(found["scores"]), expected, rtol=1e-4, atol=1e-5)
    bare = post(server, "/score", model="small", images=URLS[:1], texts=TEXTS)
    assert found["scores"] != bare["scores"]


def test_marks_are_those_of_the_command_line() -> None:
    """Widths are fixed and nothing is random about a box: the same picture as ``sightbridge ask`` shows."""
    from sightbridge.cli.marks import read_marks as read_options

    there = read_options(bbox=["2,3,12,20"], region=["polygon=1,1,9,2,5,9;shape=mask contour", "bbox=4,4,8,8"])
    here = read_marks(
        [
            RegionBody(bbox=[2, 3, 12, 20]),
            RegionBody(polygon=[1, 1, 9, 2, 5, 9], shape="mask_contour"),
            RegionBody(bbox=[4, 4, 8, 8]),
        ],
        image=0,
    )
    assert here == there
    assert [mark.phrase for mark in here][2] == "within the lime rectangle"
    first = draw(png_image(), here, random.Random(0), anchor=28)
    assert first.tobytes() == draw(png_image(), there, random.Random(0), anchor=28).tobytes()


def png_image() -> Any:
    from sightbridge.images.load import load_image

    return load_image(PICTURES[0])


def test_kinds_of_a_first_stage_model(server: Live) -> None:
    for kind in ("itm", "itc"):
        found = post(server, "/score", model="stage1", images=URLS, texts=TEXTS, kind=kind)
        expected = Scorer(make_backend(*first_stage(), kind)).score(PICTURES, TEXTS)
        torch.testing.assert_close(torch.tensor(found["scores"]), expected, rtol=1e-4, atol=1e-5)
    assert post(server, "/score", model="stage1", images=URLS, texts=TEXTS)["kind"] == "itm"


def test_a_whole_clip(server: Live, clip: Path) -> None:
    found = post(server, "/score", model="clip", images=URLS, texts=TEXTS)
    expected = Scorer(load_clip(str(clip), "cpu", None)).score(PICTURES, TEXTS)
    torch.testing.assert_close(torch.tensor(found["scores"]), expected, rtol=1e-4, atol=1e-5)
    assert found["kind"] == "clip"


def test_features_of_pictures_texts_and_pairs(server: Live) -> None:
    def expected(pictures: list[bytes], texts: list[str]) -> dict[str, torch.Tensor]:
        return first_stage_features(*first_stage(), pictures, texts, 16, iter)

    for images, texts in ((URLS, []), ([], TEXTS), (URLS, TEXTS[:2])):
        found = post(server, "/features", model="stage1", images=images, texts=texts)["features"]
        wanted = expected(PICTURES if images else [], texts)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(torch.tensor(found[name]), tensor, rtol=1e-4, atol=1e-5)
    some = post(server, "/features", model="stage1", images=URLS, names=["image_embeds_proj"])
    assert list(some["features"]) == ["image_embeds_proj"]


@pytest.mark.parametrize(
    ("path", "fields", "status", "says"),
    [
        ("/score", {"model": "small", "images": URLS, "texts": TEXTS, "kind": "itm"}, 400, "vqascore"),
        ("/score", {"model": "small", "images": URLS, "texts": TEXTS, "kind": "itn"}, 422, "'itm'"),
        ("/score", {"model": "small", "images": URLS, "texts": []}, 422, "one text"),
        ("/score", {"model": "small", "images": [], "texts": TEXTS}, 422, "one picture"),
        ("/score", {"model": "small", "images": URLS, "texts": ["a", " "]}, 400, "text 2 of 2"),
        ("/score", {"model": "small", "images": URLS, "texts": ["a"] * 300}, 413, "300 texts"),
        ("/score", {"model": "small", "images": URLS * 9, "texts": ["a"] * 250}, 413, "4,500 pairs"),
        ("/score", {"model": "small", "images": URLS * 40, "texts": ["a"]}, 413, "80 pictures"),
        ("/score", {"model": "small", "images": ["/etc/passwd"], "texts": ["a"]}, 400, "not fetched"),
        ("/score", {"model": "small", "images": URLS, "texts": ["a"], "question_template": "?"}, 400, "{}"),
        ("/score", {"model": "small", "images": [{"uri": "x"}], "texts": ["a"]}, 422, "images.0"),
        ("/score", {"model": "small", "images": 5, "texts": ["a"]}, 422, "images"),
        ("/score", {"model": "stage1", "images": URLS, "texts": ["a"], "reduction": "sum"}, 400, "reduction"),
        ("/score", {"model": "gone", "images": URLS, "texts": ["a"]}, 404, "gone"),
        ("/features", {"model": "small", "images": URLS}, 400, "no model of the first stage"),
        ("/features", {"model": "stage1"}, 422, "one picture or one text"),
        ("/features", {"model": "stage1", "images": URLS, "texts": TEXTS}, 400, "no pairs"),
        ("/features", {"model": "stage1", "images": URLS, "names": ["image_embed"]}, 422, "'image_embeds'"),
        ("/v1/chat/completions", {"model": "stage1", "messages": [{"role": "user", "content": "a"}]}, 400, "scores"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    server: Live, path: str, fields: dict[str, Any], status: int, says: str
) -> None:
    error = error_of(server.http.post(path, json=fields))
    assert error["status"] == status and says in error["message"], error


def test_scores_wait_for_each_other_and_end_in_time() -> None:
    """A score that takes too long is told so; its work ends before the next piece of it, and the queue is bounded."""
    model = served(SteeredEngine())
    model.work = OneAtATime("small", 1)
    hold, pieces = threading.Event(), []

    def score(self: Any, *args: Any, **options: Any) -> None:
        pieces.append(1)
        hold.wait(10)

    with pytest.MonkeyPatch.context() as patch, live(model, request_seconds=0.3) as server:
        patch.setattr(Scorer, "score", score)
        body = {"images": URLS * 20, "texts": TEXTS}
        for _ in range(2):
            assert error_of(server.http.post("/score", json=body))["status"] == 504
        full = server.http.post("/score", json=body)
        assert error_of(full)["status"] == 429 and full.headers["retry-after"]
        hold.set()
        wait_until(lambda: model.work.outstanding == 0)
        assert len(pieces) == 1  # of the first request; the second ended before it began
