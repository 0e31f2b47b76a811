"""The page's table of scores: those of ``POST /score``, with its bounds and its errors."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import SteeredEngine, png, served
from score_models import first_stage

pytest.importorskip("gradio")

import gradio as gr

from sightbridge.scoring.kinds import TokenScore
from sightbridge.serving.api.app import make_state
from sightbridge.serving.api.body import ScoreBody
from sightbridge.serving.api.one_at_a_time import OneAtATime
from sightbridge.serving.api.scores_api import find_scores
from sightbridge.serving.api.served import ScoreTable, ServedModel
from sightbridge.serving.api.state import State
from sightbridge.serving.web.pictures_box import ShownPicture
from sightbridge.serving.web.score_tab import ScoreTab
from sightbridge.serving.web.score_table import write_table

USUAL = ("", "", "as usual", "", True)
"""What nobody changed under "What is asked"."""


@pytest.fixture
def tab() -> Iterator[ScoreTab]:
    models = [served(SteeredEngine()), ServedModel("stage1", *first_stage(), None, OneAtATime("stage1", 4))]
    with gr.Blocks():
        made = ScoreTab(make_state(models))
    yield made
    for model in models:
        model.close(drain=False)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda message, **about: said.append(message))
    return said


def run(tab: ScoreTab, *inputs: Any) -> list[Any]:
    """All that the button's function shows."""

    async def collect() -> list[Any]:
        return [shown async for shown in tab.score(*inputs)]

    return asyncio.run(collect())


def files_in(shown: str) -> dict[str, str]:
    found = re.findall(r'download="([^"]*)" href="data:[^,]*;base64,([^"]*)"', shown)
    return {name: base64.b64decode(data).decode() for name, data in found}


def test_scores_are_those_of_the_api(tab: ScoreTab) -> None:
    region = {"bbox": [1, 1, 15, 20], "shape": "mask", "color": "red", "alpha": 1.0}
    box = json.loads(tab.box.value([("a.png", png(1)), ("b.png", png(2))]))
    box["pictures"][1]["regions"] = [region]
    texts = "a dog\n\n  a yellow dog near a bus \r\ntwo cats"
    question = 'Is "{}" here?'
    *_, last = run(tab, json.dumps(box), "small", "vqascore", texts, question, "", "product", "", False)
    urls = [{"url": picture["file"], "regions": picture["regions"]} for picture in box["pictures"]]
    body = ScoreBody.model_validate(
        {
            "images": urls,
            "model": "small",
            "texts": ["a dog", "a yellow dog near a bus", "two cats"],
            "question_template": question,
            "reduction": "product",
            "answer_eos": False,
        }
    )
    expected = asyncio.run(find_scores(body, tab.state))
    saved = files_in(last[1])
    rows = list(csv.DictReader(io.StringIO(saved["scores.csv"])))
    assert [row["image"] for row in rows] == ["a.png"] * 3 + ["b.png"] * 3
    assert [row["text"] for row in rows] == body.texts * 2
    assert [float(row["score"]) for row in rows] == pytest.approx([v for row in expected.scores for v in row])
    assert [json.loads(line)["text"] for line in saved["scores.jsonl"].splitlines()] == body.texts * 2
    record = json.loads(saved["scores.json"])["record"]
    assert (record["question_template"], record["reduction"], record["model"]) == (question, "product", "small")


def test_other_kinds_ask_nothing(tab: ScoreTab) -> None:
    box = tab.box.value([("a.png", png(1))])
    *_, last = run(tab, box, "stage1", "itm", "a dog", "left over from {} before", "", "sum", "", True)
    assert json.loads(files_in(last[1])["scores.json"])["record"]["kind"] == "itm"
    kinds, templates = tab._choose_model("stage1")
    assert (kinds["choices"], kinds["value"], templates["visible"]) == (["itm", "itc"], "itm", False)


def test_errors_are_those_of_the_api(tab: ScoreTab, warnings: list[str]) -> None:
    box = tab.box.value([("a.png", png(1))])
    outside = json.loads(box)
    outside["pictures"][0]["regions"] = [{"bbox": [900, 900, 950, 950]}]
    for inputs, said in [
        (("", "small", "vqascore", "a dog", *USUAL), "Give at least one picture and one text."),
        ((box, "small", "vqascore", " \n", *USUAL), "Give at least one picture and one text."),
        (("{", "small", "vqascore", "a dog", *USUAL), "no JSON"),
        ((json.dumps(outside), "small", "vqascore", "a dog", *USUAL), "lies outside of the picture"),
        ((box, "smal", "vqascore", "a dog", *USUAL), "There is no model 'smal'. Did you mean 'small'?"),
        ((box, "<b>smal", "vqascore", "a dog", *USUAL), "There is no model '&lt;b&gt;smal'"),  # notices are HTML
        ((box, ["small"], "vqascore", "a dog", *USUAL), "model: "),
        ((box, "small", "itm", "a dog", *USUAL), "'small' has no scores of kind 'itm'"),
        ((box, "small", "vqascore", "a dog", "Yes?", "", "as usual", "", True), "has a '{}'"),
        ((box, "small", "vqascore", "a\n" * 257, *USUAL), "257 texts; at most 256 are taken."),
        ((box, "small", "vqascore", "a" * 100_001, *USUAL), "100,001 characters"),
    ]:
        *_, last = run(tab, *inputs)
        assert said in warnings.pop(), inputs
        assert last[1] == gr.skip() and last[2]["interactive"]
    tab.state.draining = True
    run(tab, box, "small", "vqascore", "a dog", *USUAL)
    assert "about to end" in warnings.pop()
    assert tab.state.in_flight == 0


def test_whoever_leaves_ends_the_work(tab: ScoreTab) -> None:
    steps, go_on = [], threading.Event()

    def run_beside(work: Any) -> Any:
        steps.append(work)
        assert go_on.wait(10)
        return work()

    served_model = tab.state.models.by_name["small"]
    served_model.engine.run_beside = run_beside  # type: ignore[union-attr,method-assign]
    box, texts = tab.box.value([("a.png", png(1))]), "\n".join(f"text {number}" for number in range(130))

    async def leave() -> None:
        shown = tab.score(box, "small", "vqascore", texts, *USUAL)
        first = await anext(shown)
        assert "0 of 130 pairs" in first[0] and not first[2]["interactive"] and first[3]["visible"]
        await shown.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
        go_on.set()
        while served_model.work.outstanding:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(leave(), 10))
    assert len(steps) == 1 and tab.state.in_flight == 0


def test_the_best_are_marked_and_nothing_is_markup() -> None:
    table = ScoreTable(
        [[0.1, 0.9], [0.2, 0.3]], [[[TokenScore('<"yes">', -0.5)], []], [[], []]], {"kind": "vqascore", "model": "<m>"}
    )
    shown = write_table(
        table, [ShownPicture("f", "<a>.png", png(1)), ShownPicture("g", "b.png", png(2))], ["<b>one", "two"], 0.5, 336
    )
    cells = re.findall(r"<td[^>]*>(.*?)</td>", shown)
    assert [re.sub("<[^>]*>", "", cell) for cell in cells] == ["0.1000", "0.9000 ★ ▲", "0.2000 ▲", "0.3000 ★"]
    assert "&lt;b&gt;one" in shown and "&lt;a&gt;.png" in shown and "&lt;m&gt;" in shown
    assert "<b>one" not in shown and "<a>" not in shown and '<"yes">' not in shown
    assert "4 pairs in 0.50 s" in shown
    alone = write_table(ScoreTable([[0.1]], [[[]]], {"kind": "itm"}), [ShownPicture("f", "a", png(1))], ["one"], 1, 336)
    assert "★" not in alone and "▲" not in alone and "1 pair in" in alone


def test_a_table_in_a_browser(page: Any, tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2):
        paths.append(tmp_path / f"{seed}.png")
        paths[-1].write_bytes(png(seed))
    page.get_by_role("tab", name="Scores").click()
    page.set_input_files("#scored input[type=file]", [str(path) for path in paths])
    page.wait_for_selector("#scored .thumbnail:nth-child(2)")
    page.click("#score-go")
    page.wait_for_selector("text=Give at least one picture and one text.")
    page.fill("#score-texts textarea", "a dog\ntwo cats\na bus")
    page.click("#score-go")
    page.wait_for_selector("table.scores")
    assert page.locator("table.scores td").count() == 6
    assert page.locator("table.scores td.best").count() == 2
    with page.expect_download() as started:
        page.click("text=scores.csv")
    assert started.value.suggested_filename == "scores.csv"
    rows = list(csv.DictReader(io.StringIO(Path(started.value.path()).read_text(encoding="utf-8"))))
    assert [row["text"] for row in rows] == ["a dog", "two cats", "a bus"] * 2
    assert [row["image"] for row in rows] == ["1.png"] * 3 + ["2.png"] * 3
    page.get_by_role("tab", name="Chat").click()


def test_without_a_model_that_scores_it_says_so(tab: ScoreTab) -> None:
    state = State(tab.state.models, tab.state.settings, tab.state.files, tab.state.pictures, tab.state.metrics)
    state.models.by_name["small"].__class__ = type("Elsewhere", (ServedModel,), {"kinds": []})
    del state.models.by_name["stage1"]
    with gr.Blocks() as blocks:
        ScoreTab(state)
    assert [type(block).__name__ for block in blocks.children] == ["Markdown"]
