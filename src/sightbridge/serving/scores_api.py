"""``POST /score`` and ``POST /features``."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from sightbridge.data.marks import Drawing
from sightbridge.errors import nearest
from sightbridge.scoring.scorer import check_texts
from sightbridge.serving.api_error import ApiError
from sightbridge.serving.body import FeaturesBody, ScoreBody
from sightbridge.serving.messages import read_marks
from sightbridge.serving.served import ScoreTable
from sightbridge.serving.state import State


def scores_routes(state: State) -> APIRouter:
    """Both routes."""
    router = APIRouter()

    @router.post("/score")
    async def score(body: ScoreBody, http: HttpRequest) -> JSONResponse:
        """Score every picture with every text."""
        served = state.models.find(body.model)
        _check_bounds(body, state)
        if not body.images or not body.texts:
            raise ApiError(422, "Give at least one picture and one text.", param="texts" if body.images else "images")
        check_texts(body.texts)
        kind = body.kind or served.kinds[0]
        http.scope["state"]["noted"].update(model=served.name, images=len(body.images), texts=len(body.texts))
        work = partial(
            served.score, pictures=await _pictures(body, state), texts=body.texts, kind=kind, settings=body.settings
        )
        table = await served.work.run(work, state.settings.request_seconds)
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


def _check_bounds(body: ScoreBody | FeaturesBody, state: State) -> None:
    settings = state.settings
    characters = sum(map(len, body.texts))
    for what, count, most in (
        ("texts", len(body.texts), settings.max_texts),
        ("pairs of picture and text", len(body.texts) * len(body.images), settings.max_pairs),
        ("characters", characters, settings.max_characters),
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
