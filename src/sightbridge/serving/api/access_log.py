"""A line of JSON about every request, an id for each, and no traceback to anybody but the log."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.state import State

ACCESS = logging.getLogger("sightbridge.access")
ERRORS = logging.getLogger("sightbridge.serving")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class AccessLog:
    """The outermost layer: gives a request its id, measures it, logs it, and answers for a failure within.

    The id is the client's own (``X-Request-Id``), if that is harmless, and goes back in the same header. What inner
    layers put into ``scope["state"]["noted"]`` becomes part of the line; what they put into ``["at_end"]`` is called
    when the exchange is over, however it ends.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self.state)
        try:
            await self.app(scope, receive, exchange.send)
        except Exception:
            log_failure(exchange.id)
            if not exchange.status:
                await internal_error(exchange.id).response()(scope, receive, exchange.send)
        finally:
            for call in exchange.at_end:
                call()
            self._tell(exchange)

    def _tell(self, exchange: _Exchange) -> None:
        """Log and count a request that is over. Its path is counted as the route's, of which there are few."""
        scope, seconds = exchange.scope, time.monotonic() - exchange.start
        route = getattr(scope.get("route"), "path", "other")
        status = exchange.status or 499  # nobody was left to answer to
        self.state.metrics.requests.labels(route, _known_method(scope["method"]), str(status)).inc()
        self.state.metrics.seconds.labels(route).observe(seconds)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": exchange.id,
            "client": scope["client"][0] if scope.get("client") else None,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(seconds, 4),
            "bytes": exchange.bytes,
            **exchange.noted,
        }
        ACCESS.info(json.dumps(line))


class _Exchange:
    """One request and what has been sent in answer to it."""

    def __init__(self, scope: Scope, send: Send, state: State) -> None:
        self.scope = scope
        self.start = time.monotonic()
        self.status = 0
        self.bytes = 0
        self._send = send
        self._state = state
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        self.id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.noted: dict[str, Any] = {}
        self.at_end: list[Callable[[], object]] = []
        scope["state"] = {**scope.get("state", {}), "request_id": self.id, "noted": self.noted, "at_end": self.at_end}

    async def send(self, message: Message) -> None:
        """Pass a message on, with the id in its headers if it begins an answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
            if self._state.draining:  # or the client's next request would come by a connection that ends
                message["headers"].append((b"connection", b"close"))
        elif message["type"] == "http.response.body":
            self.bytes += len(message.get("body", b""))
        await self._send(message)


def internal_error(request_id: str) -> ApiError:
    """What a client is told of a failure of ours."""
    return ApiError(
        500, f"Something failed here; it is not the request's fault. The log tells more about request {request_id}."
    )


def log_failure(request_id: str) -> None:
    """Log the exception that is being handled, as a line of JSON."""
    told = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": request_id,
        "error": traceback.format_exc(),
    }
    ERRORS.error(json.dumps(told))


def log_to_stderr() -> None:
    """Let both logs write their lines to stderr, and nowhere else."""
    for logger in (ACCESS, ERRORS):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonLine())
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)


class _JsonLine(logging.Formatter):
    """What is JSON already stays; everything else, such as what the engine logs, becomes a line of it."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if message.startswith("{") and not record.exc_info:
            return message
        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "message": message}
        return json.dumps(told | ({"error": self.formatException(record.exc_info)} if record.exc_info else {}))


def _known_method(method: str) -> str:
    return method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH") else "other"
