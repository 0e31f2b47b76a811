"""``POST /score`` and ``POST /features``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from sightbridge.data.marks import Drawing
from sightbridge.errors import nearest
from sightbridge.scoring.scorer import check_texts
from sightbridge.scoring.settings import Kind
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.body import FeaturesBody, ScoreBody
from sightbridge.serving.api.messages import read_marks
from sightbridge.serving.api.served import ScoreTable, ServedModel
from sightbridge.serving.api.state import State


def scores_routes(state: State) -> APIRouter:
    """Both routes."""
    router = APIRouter()

    @router.post("/score")
    async def score(body: ScoreBody, http: HttpRequest) -> JSONResponse:
        """Score every picture with every text."""
        served, kind = scoring_model(body, state)
        http.scope["state"]["noted"].update(model=served.name, images=len(body.images), texts=len(body.texts))
        table = await find_scores(body, state)
        return JSONResponse(
            {
                "object": "scores",
                "model": served.name,
                "kind": kind,
                "scores": table.scores,
                "record": table.record,
            }
            | ({"tokens": _tokens(table)} if body.trace else {})
        )

    @router.post("/features")
    async def features(body: FeaturesBody, http: HttpRequest) -> JSONResponse:
        """Features of pictures, of texts, or of pairs by a model of the first stage."""
        served = state.models.find(body.model)
        if not served.description["features"]:
            raise ApiError(400, f"'{served.name}' is no model of the first stage: it gives no features.", param="model")
        _check_bounds(body, state)
        if not body.images and not body.texts:
            raise ApiError(422, "Give at least one picture or one text.", param="images")
        check_texts(body.texts)
        http.scope["state"]["noted"].update(model=served.name, images=len(body.images), texts=len(body.texts))
        work = partial(served.features, pictures=await _pictures(body, state), texts=body.texts)
        found = await served.work.run(work, state.settings.request_seconds)
        for name in body.names or ():
            if name not in found:
                known = list(found)
                raise ApiError(
                    422,
                    f"There is no '{name[:50]}'.{nearest(name[:50], known)} Known: {', '.join(known)}.",
                    param="names",
                )
        kept = {name: tensor.tolist() for name, tensor in found.items() if name in (body.names or found)}
        return JSONResponse({"object": "features", "model": served.name, "features": kept})

    return router


def scoring_model(body: ScoreBody, state: State) -> tuple[ServedModel, Kind]:
    """The model that a request asks for scores, and their kind. Raises ``ApiError``."""
    served = state.models.find(body.model)
    if not served.kinds:
        raise ApiError(400, f"'{served.name}' has its answers from a vLLM server: it gives no scores.", param="model")
    return served, body.kind or served.kinds[0]


async def find_scores(body: ScoreBody, state: State, tell: Callable[[int], None] | None = None) -> ScoreTable:
    """Score every picture with every text, within the bounds and in the turn of the model's other work.

    ``tell`` is told now and then, in another thread, how many pairs have their scores.

    Raises ``ApiError``, ``DataError`` or ``SettingsError`` for what cannot be scored.
    """
    served, kind = scoring_model(body, state)
    _check_bounds(body, state)
    if not body.images or not body.texts:
        raise ApiError(422, "Give at least one picture and one text.", param="texts" if body.images else "images")
    check_texts(body.texts)
    pictures = await _pictures(body, state)
    work = partial(served.score, pictures=pictures, texts=body.texts, kind=kind, settings=body.settings, tell=tell)
    return await served.work.run(work, state.settings.request_seconds)


def _check_bounds(body: ScoreBody | FeaturesBody, state: State) -> None:
    settings = state.settings
    for what, count, most in (
        ("texts", len(body.texts), settings.max_texts),
        ("pairs of picture and text", len(body.texts) * len(body.images), settings.max_pairs),
        ("characters", body.characters, settings.max_characters),
    ):
        if count > most:
            raise ApiError(413, f"{count:,} {what}; at most {most:,} are taken.", code="too_much")


async def _pictures(body: ScoreBody | FeaturesBody, state: State) -> list[tuple[bytes, Drawing]]:
    """The pictures, and what is to be drawn on each."""
    marks = [mark for number, picture in enumerate(body.pictures) for mark in read_marks(picture.regions, image=number)]
    return await state.pictures.read_with_drawings(
        [picture.source for picture in body.pictures], marks, state.settings.max_scored_images
    )


def _tokens(table: ScoreTable) -> list[Any]:
    return [
        [[{"token": token.text, "logprob": token.logprob} for token in pair] for pair in row] for row in table.tokens
    ]
