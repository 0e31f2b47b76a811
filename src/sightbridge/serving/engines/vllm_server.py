"""A vLLM server that holds a model's language model: found at the start, asked for every answer.

Its address is the operator's word and no client's; redirects are not followed, proxies of the environment not used.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpcore
import torch

from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import SettingsError, nearest
from sightbridge.serving.engines.engine import UpstreamError
from sightbridge.serving.engines.request import Request
from sightbridge.serving.engines.vllm_wire import Step, read_steps, told_by, write_request

CONNECT_SECONDS = 5.0
"""For a connection, which is to a machine nearby."""
LONGEST_ERROR = 2**16
"""Bytes that are read of what is no stream."""
RETRY_AFTER = 5.0
"""Seconds after which a client may ask again, if the server does not say it."""


class VllmServer:
    """One model of a vLLM server.

    Args:
        url: where its API is, ``http://host:8000/v1``.
        model: what it calls the language model; by default the only one that it has.
        key: for its ``Authorization`` header.
        seconds: that may pass without a word of an answer.

    Attributes:
        model: as the server calls it.
        max_tokens: the most of prompt and answer together (its ``--max-model-len``), if it tells.

    Raises:
        SettingsError: the URL is none, the server is not there or has no such model.
    """

    def __init__(self, url: str, model: str | None = None, key: str | None = None, seconds: float = 300) -> None:
        self.url = _check_url(url)
        self._headers: dict[str | bytes, str | bytes] = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        }
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._seconds = seconds
        try:
            listed = asyncio.run(self._list())
        except UpstreamError as error:
            raise SettingsError(f"--vllm-url {url}: {error}") from error
        self.model = _choose(model, list(listed), url)
        self.max_tokens = listed[self.model]

    def probe(self, width: int, dtype: torch.dtype) -> None:
        """Have one token written, to see that the server takes embeddings of this width.

        Raises ``SettingsError`` with what it says.
        """
        request = Request((), settings=GenerationSettings(max_new_tokens=1))
        body = write_request(self.model, torch.zeros(1, width, dtype=dtype), request, [])

        async def ask() -> None:
            async with self.pool() as pool:
                async for _ in self.steps(pool, body):
                    pass

        try:
            asyncio.run(ask())
        except UpstreamError as error:
            raise SettingsError(
                f"The vLLM server does not take prompts of embeddings of width {width}: {error} It needs "
                "--enable-prompt-embeds, and the language model of this folder."
            ) from error

    def pool(self) -> httpcore.AsyncConnectionPool:
        """Connections for the event loop that opens it."""
        return httpcore.AsyncConnectionPool(max_connections=None, max_keepalive_connections=16, keepalive_expiry=4)

    async def steps(self, pool: httpcore.AsyncConnectionPool, body: bytes) -> AsyncIterator[Step]:
        """Have a prompt continued; leaving the iterator closes the connection, which ends the answer there too.

        Raises ``UpstreamError``.
        """
        async with self._exchange(pool, "POST", "/completions", body) as response:
            async for step in read_steps(response.aiter_stream()):
                yield step

    async def _list(self) -> dict[str, int | None]:
        """Names of the server's models, and how much each takes."""
        async with self.pool() as pool, self._exchange(pool, "GET", "/models") as response:
            content = await _read_some(response)
        try:
            return {str(model["id"]): model.get("max_model_len") for model in json.loads(content)["data"]}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UpstreamError("what answers there is no server of OpenAI's API.") from None

    @asynccontextmanager
    async def _exchange(
        self, pool: httpcore.AsyncConnectionPool, method: str, path: str, body: bytes | None = None
    ) -> AsyncIterator[httpcore.Response]:
        """Send a request and see that it is answered. Raises ``UpstreamError``."""
        seconds = {"connect": CONNECT_SECONDS, "read": self._seconds, "write": self._seconds, "pool": self._seconds}
        try:
            async with pool.stream(
                method, self.url + path, headers=self._headers, content=body, extensions={"timeout": seconds}
            ) as response:
                if response.status != 200:
                    raise told_upstream(response, await _read_some(response))
                yield response
        except httpcore.ReadTimeout:
            raise UpstreamError(f"The vLLM server said nothing for {self._seconds:g} s.", 504) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UpstreamError(f"The vLLM server cannot be reached: {reason}.", 503, RETRY_AFTER) from error


def told_upstream(response: httpcore.Response, content: bytes) -> UpstreamError:
    """What a refusal of the server's means for who asked us."""
    try:
        said = told_by(json.loads(content))
    except (ValueError, RecursionError):
        said = "no reason given"
    headers = {name.lower(): value for name, value in response.headers}
    after = headers.get(b"retry-after", b"").decode("latin-1")
    retry_after = float(after) if after.isdigit() and len(after) < 6 else RETRY_AFTER
    status = response.status
    if status in (429, 503):
        return UpstreamError(f"The vLLM server takes no more just now: {said}.", status, retry_after)
    if status in (401, 403):
        return UpstreamError("The vLLM server refuses our key; --vllm-key-env names the variable that holds it.")
    if status in (400, 413, 422):
        return UpstreamError(f"The vLLM server does not take the prompt: {said}.", 400)
    return UpstreamError(f"The vLLM server failed with status {status}: {said}.")


async def _read_some(response: httpcore.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_stream():
        content += chunk
        if len(content) > LONGEST_ERROR:
            break
    return bytes(content)


def _check_url(url: str) -> str:
    parts: Any = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query
    except ValueError:
        usable = False
    if not usable or parts.username or not url.isascii():
        raise SettingsError(f"--vllm-url {url}: expected something like http://host:8000/v1")
    return url.rstrip("/")


def _choose(wanted: str | None, listed: list[str], url: str) -> str:
    if wanted is None and len(listed) == 1:
        return listed[0]
    if wanted is None:
        raise SettingsError(f"--vllm-url {url} has the models {', '.join(listed) or '-'}: say which with --vllm-model")
    if wanted not in listed:
        raise SettingsError(
            f"--vllm-model: {url} has no '{wanted}'.{nearest(wanted, listed)} It has: {', '.join(listed) or '-'}"
        )
    return wanted
