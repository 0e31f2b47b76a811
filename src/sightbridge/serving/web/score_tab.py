"""The page's table of scores: how well pictures and texts fit, by any model that scores."""

from __future__ import annotations

import asyncio
import html
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from anyio.to_thread import run_sync
from pydantic import ValidationError

from sightbridge.scoring.settings import ANSWER_KINDS, KINDS, Reduction
from sightbridge.serving.api.access_log import internal_error, log_failure
from sightbridge.serving.api.api_error import ApiError, to_api_error, wrong_fields
from sightbridge.serving.api.body import ScoreBody
from sightbridge.serving.api.scores_api import find_scores
from sightbridge.serving.api.state import State
from sightbridge.serving.web.asking import check_room
from sightbridge.serving.web.pictures_box import PicturesBox
from sightbridge.serving.web.score_table import write_table
from sightbridge.serving.web.toast import warn

TOLD_EVERY = 0.25
"""Seconds between two lines about how far it is."""
EMPTY = "<div class='scores-empty'>Every picture is scored with every text: write one on each line.</div>"
USUAL = "as usual"
DEFAULTS = ANSWER_KINDS["vqascore"]


def score_tab(state: State) -> None:
    """Put the table into the ``gr.Blocks`` (a tab of them) that is being made."""
    ScoreTab(state)


class ScoreTab:
    """The tab's components, and what happens with them."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.models = {name: model.kinds for name, model in state.models.by_name.items() if model.kinds}
        if not self.models:
            gr.Markdown("No model that is served here gives scores.")
            return
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                self._make_inputs()
            with gr.Column(scale=7, min_width=320):
                self.said = gr.HTML(**_look(), elem_id="score-said")
                self.table = gr.HTML(EMPTY, **_look(), elem_id="scores")
        self._connect()

    def _make_inputs(self) -> None:
        settings, names = self.state.settings, list(self.models)
        with gr.Row():
            self.model = gr.Dropdown(names, value=names[0], label="Model", min_width=140, elem_id="score-model")
            self.kind = gr.Dropdown(**self._kinds_of(names[0]), label="Score", min_width=140, elem_id="score-kind")
        self.what = gr.HTML(_told_of(self.models[names[0]][0]), **_look(), elem_id="score-what")
        self.box = PicturesBox(self.state, elem_id="scored", max_images=settings.max_scored_images, height=260)
        self.texts = gr.Textbox(
            label="Texts, one on each line",
            lines=4,
            max_lines=12,
            placeholder="a dog on a lawn\na cat on a sofa",
            max_length=settings.max_characters,
            elem_id="score-texts",
        )
        with gr.Accordion("What is asked", open=False, visible=self._asks(names[0])) as self.templates:
            self.question = gr.Textbox(
                label="Question",
                info="{} is the text",
                placeholder=DEFAULTS.question_template,
                elem_id="score-question",
            )
            self.answer = gr.Textbox(
                label="Answer",
                elem_id="score-answer",
                info="whose probability is taken; {} is the text",
                placeholder=DEFAULTS.answer_template,
            )
            with gr.Row():
                self.reduction = gr.Dropdown(
                    [USUAL, *get_args(Reduction)], value=USUAL, label="Of the tokens' probabilities", min_width=120
                )
                self.other = gr.Textbox(label="Other answer", info="for yes_no", placeholder=DEFAULTS.other_answer)
            self.eos = gr.Checkbox(DEFAULTS.answer_eos, label="The end of the answer counts as a token")
        with gr.Row():
            self.go = gr.Button("Score", variant="primary", elem_id="score-go")
            self.stop = gr.Button("Stop", visible=False, elem_id="score-stop")

    def _connect(self) -> None:
        hidden: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        asked = [self.question, self.answer, self.reduction, self.other, self.eos]
        shown = [self.said, self.table, self.go, self.stop]
        inputs = [self.box.component, self.model, self.kind, self.texts, *asked]
        going = self.go.click(self.score, inputs, shown, **hidden)
        self.stop.click(_stopped, None, shown, cancels=going, **hidden)
        self.model.change(self._choose_model, self.model, [self.kind, self.templates], **hidden)
        self.kind.change(_choose_kind, self.kind, [self.question, self.answer, self.what], **hidden)

    async def score(
        self, box: Any, model: Any, kind: Any, texts: Any, *asked: Any
    ) -> AsyncIterator[tuple[Any, Any, Any, Any]]:
        """Score every picture of the box with every text."""
        begun, done = time.monotonic(), [0]
        try:
            check_room(self.state)
            pictures = self.box.read(box, self.state)
            body = _read_body(model, kind, texts, asked, [picture.scored for picture in pictures])
            pairs = len(pictures) * len(body.texts)
            with self.state.handling():
                working = asyncio.ensure_future(find_scores(body, self.state, lambda count: done.__setitem__(0, count)))
                try:
                    while not (await asyncio.wait([working], timeout=TOLD_EVERY))[0]:
                        yield _going_on(f"{done[0]:,} of {pairs:,} pairs, {time.monotonic() - begun:.0f} s")
                finally:
                    working.cancel()
                table = working.result()
            shown = await run_sync(write_table, table, pictures, body.texts, time.monotonic() - begun, self.box.anchor)
        except Exception as error:
            warn(_as_told(error).message)
            yield _ended(gr.skip())
            return
        yield _ended(shown)

    def _choose_model(self, model: str) -> Any:
        return gr.update(**self._kinds_of(model)), gr.update(visible=self._asks(model))

    def _kinds_of(self, model: str) -> dict[str, Any]:
        kinds = self.models[model]
        return {"choices": list(kinds), "value": kinds[0]}

    def _asks(self, model: str) -> bool:
        return self.models[model][0] in ANSWER_KINDS


def _look() -> dict[str, Any]:
    css = (Path(__file__).parent / "score_tab.css").read_text(encoding="utf-8")
    return {"css_template": css, "js_on_load": None, "apply_default_css": False}


def _choose_kind(kind: str) -> Any:
    """Show what a kind asks unless something else is written."""
    asked = ANSWER_KINDS.get(kind, DEFAULTS)
    return (
        gr.update(placeholder=asked.question_template or "nothing: the picture alone"),
        gr.update(placeholder=asked.answer_template),
        _told_of(kind),
    )


def _told_of(kind: Any) -> str:
    return f"<p class='scores-legend'>{html.escape(KINDS.get(kind, ''))}</p>"


def _read_body(model: Any, kind: Any, texts: Any, asked: tuple[Any, ...], images: list[dict[str, Any]]) -> ScoreBody:
    """What the page says, as a request for ``POST /score``. Raises ``ApiError``."""
    question, answer, reduction, other, eos = asked
    lines = [line.strip() for line in str(texts or "").splitlines() if line.strip()]
    given = {"question_template": question, "answer_template": answer, "other_answer": other}
    given["reduction"] = None if reduction == USUAL else reduction
    fields = {name: value for name, value in given.items() if value}
    if kind in ANSWER_KINDS and eos != ANSWER_KINDS[kind].answer_eos:
        fields["answer_eos"] = eos
    if kind not in ANSWER_KINDS:
        fields = {}  # its fields are not shown
    try:
        return ScoreBody.model_validate({"model": model, "kind": kind, "images": images, "texts": lines, **fields})
    except ValidationError as error:
        raise wrong_fields(error.errors()) from None


def _as_told(error: Exception) -> ApiError:
    """What is said about an error, which is logged if it is ours."""
    if known := to_api_error(error):
        return known
    log_failure(number := uuid.uuid4().hex)
    return internal_error(number)


def _going_on(said: str) -> tuple[Any, Any, Any, Any]:
    return f"<p class='scores-legend'>{said}</p>", gr.skip(), gr.update(interactive=False), gr.update(visible=True)


def _ended(table: Any) -> tuple[Any, Any, Any, Any]:
    return "", table, gr.update(interactive=True), gr.update(visible=False)


def _stopped() -> tuple[Any, Any, Any, Any]:
    return _ended(gr.skip())
