"""The process around the application: its port, and how it ends."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from sightbridge.errors import SettingsError
from sightbridge.serving.api.access_log import log_to_stderr
from sightbridge.serving.api.app import make_app
from sightbridge.serving.api.state import State

LAST_CALL = 1.0
"""Seconds after the last answer that a server goes on saying that it ends: what was on its way is told, not cut off."""


def open_port(host: str, port: int) -> socket.socket:
    """Take a port, but do not listen yet. Raises ``SettingsError`` if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise SettingsError(
            f"--host {host} --port {port} cannot be had: {error.strerror or error}. Choose another."
        ) from error
    return taken


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run_server(state: State, port: socket.socket, tell: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was begun. A second signal ends at once.

    ``tell`` is called as soon as requests are taken.
    """
    log_to_stderr()
    server = _Server(state, make_app(state), tell)
    try:
        server.run(sockets=[port])
    finally:
        for model in state.models.by_name.values():
            model.close(drain=not server.force_exit, timeout=state.settings.drain_seconds)


class _Server(uvicorn.Server):
    """Ends only after every request that was taken is answered, or ``drain_seconds`` are over.

    uvicorn itself would close its port first, so that a load balancer sees errors where it should see 503.
    """

    def __init__(self, state: State, app: object, tell: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self._state = state
        self._tell = tell
        self._draining_since = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, and tell."""
        await super().startup(sockets)
        if self.started:
            self._tell()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; or, asked a second time, end."""
        if self._state.draining:
            self.should_exit = self.force_exit = True
        self._state.draining = True
        self._draining_since = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """See ten times a second whether it is time to end."""
        if self._state.draining and not self.should_exit:
            now = time.monotonic()
            quiet = now - max(self._draining_since, self._state.last_end)
            idle = self._state.in_flight == 0 and quiet >= LAST_CALL
            self.should_exit = idle or now - self._draining_since >= self._state.settings.drain_seconds
            if self.should_exit:
                self._state.ending.set()
        return await super().on_tick(counter)
