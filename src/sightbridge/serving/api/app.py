"""The web application: its routes, and the layers around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, UploadFile
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import sightbridge
from sightbridge.config.serving import ServingSettings
from sightbridge.errors import SightbridgeError
from sightbridge.serving.api.access_log import AccessLog
from sightbridge.serving.api.api_error import ApiError, to_api_error
from sightbridge.serving.api.chat_api import chat_routes
from sightbridge.serving.api.files import Files, StoredFile
from sightbridge.serving.api.limits import Gate
from sightbridge.serving.api.llava_protocol import llava_routes
from sightbridge.serving.api.metrics import Metrics
from sightbridge.serving.api.pictures import Pictures
from sightbridge.serving.api.remote import Remote
from sightbridge.serving.api.scores_api import scores_routes
from sightbridge.serving.api.served import ServedModel, ServedModels
from sightbridge.serving.api.state import State

REFUSALS = (400, 401, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504)


class ErrorFields(BaseModel):
    """What went wrong, in words; the field at fault; a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is none."""

    error: ErrorFields


def make_state(
    models: Sequence[ServedModel],
    settings: ServingSettings | None = None,
    api_key: str | None = None,
    remote: Remote | None = None,
) -> State:
    """What a server of ``models`` begins with; ``remote`` fetches pictures in place of the usual way."""
    settings, found = settings or ServingSettings(), ServedModels(models)
    files = Files(settings.max_files_bytes)
    remote = remote or Remote(
        settings.remote_hosts, max_bytes=settings.max_image_bytes, seconds=settings.remote_seconds
    )
    metrics = Metrics(lambda: {model.name: model.engine.stats() for model in models if model.engine})
    return State(found, settings, files, Pictures(settings, files, remote), metrics, api_key)


def make_app(state: State) -> FastAPI:
    """The application, with the web page if the state says so. Other origins' pages get nothing (no CORS)."""
    app = FastAPI(
        title="sightbridge",
        version=sightbridge.__version__,
        docs_url=None,
        redoc_url=None,
        responses={status: {"model": ErrorBody} for status in REFUSALS},
    )
    app.include_router(chat_routes(state))
    app.include_router(scores_routes(state))
    app.include_router(_file_routes(state))
    app.include_router(_other_routes(state))
    if state.speaks_llava:
        app.include_router(llava_routes(state))
    for kind in (ApiError, SightbridgeError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    if state.shows_page:
        from sightbridge.serving.web.page import mount_page

        mount_page(app, state)
    app.add_middleware(Gate, state=state)
    app.add_middleware(AccessLog, state=state)
    return app


async def _answer_error(http: HttpRequest, error: Exception) -> JSONResponse:
    known = to_api_error(error)
    if known is None:
        raise error
    http.scope["state"]["noted"]["error"] = known.code or known.status
    return known.response()


def _file_routes(state: State) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/files")
    async def upload(
        file: Annotated[UploadFile, File(description="a picture")], purpose: Annotated[str, Form()] = "vision"
    ) -> dict[str, Any]:
        """Keep a picture to ask about; its id stands in place of a URL."""
        data = await file.read()
        name = (file.filename or "")[:200]
        await state.pictures.check(data, name or "the file")
        return state.files.add(StoredFile(data, name, purpose[:50])).description

    @router.get("/v1/files/{file_id}")
    async def describe(file_id: str) -> dict[str, Any]:
        """Tell about an uploaded picture."""
        return state.files.get(file_id).description

    @router.delete("/v1/files/{file_id}")
    async def delete(file_id: str) -> dict[str, Any]:
        """Forget an uploaded picture."""
        state.files.remove(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return router


def _other_routes(state: State) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """All models, and what each can be asked for."""
        return {"object": "list", "data": [model.description for model in state.models.by_name.values()]}

    @router.get("/v1/models/{name:path}")
    async def describe_model(name: str) -> dict[str, Any]:
        """One model."""
        return state.models.find(name).description

    @router.get("/healthz")
    async def health() -> dict[str, Any]:
        """Whether requests are taken: for load balancers."""
        if state.draining:
            raise ApiError(503, "This server is about to end.", retry_after=5)
        return {"status": "ok", "models": list(state.models.by_name), "in_flight": state.in_flight}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Numbers for Prometheus."""
        return PlainTextResponse(state.metrics.write(), media_type="text/plain; version=0.0.4")

    return router
