"""Pictures from other machines, fetched only from hosts that were allowed, and never from inside the own network.

Every address that a name resolves to must be public, and the connection goes to one of the addresses that were
checked: a name cannot change what it means in between. A redirect is treated like a new URL.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urljoin, urlsplit

import httpcore

from sightbridge.serving.api.api_error import ApiError

MAX_REDIRECTS = 3
NEVER = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "64:ff9b:1::/48", "2001::/32")))
"""Special networks (RFC 6890, 8215, 4380) that older versions of Python hold to be like any other."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Remote:
    """Fetches pictures.

    Args:
        hosts: that may be asked: ``example.com`` on the usual ports, ``example.com:8443`` on this one.
        max_bytes: of a picture.
        seconds: for all of one picture, redirects included.
        resolve: from host and port to addresses.
        network: opens the connections.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        max_bytes: int,
        seconds: float,
        resolve: Resolve | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self.hosts = {host.lower() for host in hosts}
        self.max_bytes = max_bytes
        self.seconds = seconds
        inner = network or httpcore.AnyIOBackend()
        self._network = _CheckedNetwork(resolve or resolve_name, inner)  # pyright: ignore[reportArgumentType]

    async def fetch(self, url: str) -> bytes:
        """Return what is at ``url``. Raises ``ApiError`` if it may not be, or cannot be, fetched."""
        if not self.hosts:
            raise ApiError(
                400,
                "Pictures are not fetched from other hosts here: send them as data: URLs, or upload them to /v1/files.",
                code="remote_images_off",
            )
        try:
            async with (
                asyncio.timeout(self.seconds),
                httpcore.AsyncConnectionPool(network_backend=self._network) as pool,
            ):
                for _ in range(MAX_REDIRECTS + 1):
                    self.check(url)
                    found = await self._get(pool, url)
                    if isinstance(found, bytes):
                        return found
                    url = found
        except TimeoutError:
            raise ApiError(400, f"A picture's host did not send it within {self.seconds:g} s.", code="remote") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise ApiError(400, f"A picture cannot be fetched: {type(error).__name__}.", code="remote") from error
        raise ApiError(400, f"A picture's URL redirects more than {MAX_REDIRECTS} times.", code="remote")

    def check(self, url: str) -> None:
        """Raise ``ApiError`` for a URL of another scheme, with a password, or of a host that is not allowed."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ApiError(400, f"A picture's URL is none: {error}.", code="remote_url") from None
        host = (parts.hostname or "").rstrip(".")
        if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable():
            raise ApiError(400, "A picture's URL must begin with data:, http:// or https://.", code="remote_url")
        if parts.username is not None or parts.password is not None:
            raise ApiError(400, "A picture's URL must not hold a user name or password.", code="remote_url")
        usual = port in (None, 443 if parts.scheme == "https" else 80)
        if not ((usual and host in self.hosts) or f"{host}:{port}" in self.hosts):
            raise ApiError(
                400,
                f"Pictures are not fetched from '{parts.netloc[:100]}'. Send it as a data: URL.",
                code="remote_host",
            )

    async def _get(self, pool: httpcore.AsyncConnectionPool, url: str) -> bytes | str:
        """The bytes at ``url``, or where it redirects to."""
        async with pool.stream("GET", url, headers={"Accept": "image/*", "Accept-Encoding": "identity"}) as response:
            if response.status in (301, 302, 303, 307, 308):
                location = {name.lower(): value for name, value in response.headers}.get(b"location", b"")
                return _join(url, location.decode("latin-1"))
            if response.status != 200:
                raise ApiError(400, f"A picture's host answers with status {response.status}.", code="remote")
            data = bytearray()
            async for chunk in response.aiter_stream():
                data += chunk
                if len(data) > self.max_bytes:
                    raise ApiError(400, f"A picture is larger than {self.max_bytes:,} bytes.", code="remote")
            return bytes(data)


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise ApiError(400, f"A picture's host redirects to what is no URL: {error}.", code="remote_url") from None


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only."""

    def __init__(self, resolve: Resolve, inner: httpcore.AsyncNetworkBackend) -> None:
        self._resolve = resolve
        self._inner = inner

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options=None
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(is_public, addresses)):
            raise ApiError(400, f"'{host}' has no address, or one that is not public.", code="remote_address")
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, *args: object, **options: object) -> httpcore.AsyncNetworkStream:
        raise AssertionError("no URL leads here")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def is_public(address: str) -> bool:
    """Whether an IP address is reachable by everybody: not private, loopback, link-local, multicast or reserved.

    An IPv6 address that stands for an IPv4 one is judged by that; those that a gateway translates are reserved.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return is_public(str(parsed.ipv4_mapped))
        if parsed.sixtofour and not is_public(str(parsed.sixtofour)):
            return False
    special = parsed.is_multicast or parsed.is_reserved or any(parsed in network for network in NEVER)
    return parsed.is_global and not special


async def resolve_name(host: str, port: int) -> list[str]:
    """All addresses of a host, as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]
