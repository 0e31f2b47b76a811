"""What went wrong with a request, in the form that OpenAI's clients understand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sightbridge.errors import CheckpointError, SettingsError, SightbridgeError
from sightbridge.serving.api.body import OTHER_FORM, TEXT_FORM
from sightbridge.serving.engines.engine import EngineClosedError, QueueFull, StepError, UpstreamError

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "too_large",
    415: "unsupported_media_type",
    503: "unavailable",
    504: "timeout",
}
"""The codes of errors that have no better one."""


class ApiError(Exception):
    """An error with its HTTP status; ``param`` is the field at fault, ``retry_after`` seconds to wait."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code or CODES.get(status)
        self.retry_after = retry_after
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = self.message.encode("utf-8", "replace").decode()  # it may repeat half a character that was sent
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole HTTP response."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def to_api_error(error: Exception) -> ApiError | None:
    """Put an error of ours or of the web framework into a client's words; ``None`` for one that is no client's fault.

    400 says that this request cannot be answered (a damaged picture, a prompt that is too long), 422 that a field has
    a wrong type or value.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, UpstreamError):
        return ApiError(error.status, str(error), code="upstream", retry_after=error.retry_after)
    if isinstance(error, EngineClosedError):
        return ApiError(503, str(error), retry_after=1)
    if isinstance(error, CheckpointError | StepError):
        return None
    if isinstance(error, SightbridgeError):
        return ApiError(400, str(error), param=error.key if isinstance(error, SettingsError) else None)
    if isinstance(error, RequestValidationError):
        return wrong_fields(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, f"{error.detail}.", headers=error.headers)
    return None


def wrong_fields(problems: Sequence[Any]) -> ApiError:
    """Tell the first few wrong fields; what was sent is not repeated, it may be a picture."""
    if problems[0]["type"] == "json_invalid":
        reason = problems[0].get("ctx", {}).get("error", problems[0]["msg"])
        return ApiError(400, f"The body is no JSON: {reason}.", code="invalid_json")
    lines = [(_dotted(problem["loc"]), problem["msg"].removeprefix("Value error, ")) for problem in problems[:5]]
    more = f" ({len(problems) - 5} more problems.)" if len(problems) > 5 else ""
    text = "; ".join(f"{key}: {said}" if key else said for key, said in lines)
    return ApiError(422, text + more, param=lines[0][0] or None, code="invalid_value")


def _dotted(location: Sequence[str | int]) -> str:
    return ".".join(str(key) for key in location if key not in ("body", TEXT_FORM, OTHER_FORM))[:200]
