"""Two servers as processes behind a real nginx that runs the shipped file: one of them ends, or dies, under load."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from api_server import image, text, user, wait_until

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
BODY = {"messages": [user(image(1), text("What is it?"))], "max_tokens": 60, "temperature": 1.0}
SEEDS = 5
"""So many different answers are asked for."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Replica:
    """One server; ``start`` it again after it has ended."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / f"replica-{self.port}.log"
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("replica.py")), str(self.port)]
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stderr=log, env=settings)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return _answers(f"http://127.0.0.1:{self.port}/healthz")

    @property
    def in_flight(self) -> int:
        return httpx.get(f"http://127.0.0.1:{self.port}/healthz").json()["in_flight"]

    def told(self, status: int) -> int:
        """How many questions its log says that it has answered so."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return sum(line.get("status") == status and line["method"] == "POST" for line in lines)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Proxy:
    """nginx in front of replicas."""

    url: str
    log: Path
    replicas: list[Replica]


def shipped_nginx(port: int, ports: list[int]) -> str:
    """The shipped file with this machine's ports in place of its own."""
    text = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    wanted = iter(ports * 2)  # two groups name the same servers
    text, found = re.subn(r"server 10\.0\.0\.\d:8000", lambda _: f"server 127.0.0.1:{next(wanted)}", text)
    text, listens = re.subn(r"\n    listen 80;", f"\n    listen 127.0.0.1:{port};", text)
    assert found == 2 * len(ports) and listens == 1
    return text


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    replicas = [Replica(folder) for _ in range(2)]
    (folder / "sightbridge.conf").write_text(shipped_nginx(port, [replica.port for replica in replicas]))
    paths = [f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    paths += [f"access_log {folder}/access.log;", f"include {folder}/sightbridge.conf;"]
    user_line = "user root;" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log info; {user_line}\n"
        f"events {{}} http {{ {' '.join(paths)} }}\n"
    )
    nginx = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", f"{folder}/error.log"])
    try:
        found = Proxy(f"http://127.0.0.1:{port}", folder / "error.log", replicas)
        wait_until(lambda: all(replica.is_ready() for replica in replicas) and _answers(f"{found.url}/healthz"), 180)
        yield found
    finally:
        nginx.terminate()  # it ends its workers
        nginx.wait()
        for replica in replicas:
            replica.process.kill()
            replica.process.wait()


@dataclass
class Load:
    """Clients that ask again and again, every second one streamed: what they were told.

    ``answers`` are (seed, text); ``refused`` statuses; ``cut`` are streams or connections that ended before their
    answer did.
    """

    url: str
    answers: list[tuple[int, str]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    cut: list[Exception] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, clients: int) -> None:
        self.threads = [threading.Thread(target=self._go_on, args=(number,)) for number in range(clients)]
        for thread in self.threads:
            thread.start()

    def finish(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self.threads), "a request hangs"

    def _go_on(self, number: int) -> None:
        while not self.ended.is_set():
            number += 1
            ask = self._stream if number % 2 else self._plain
            try:
                ask(number % SEEDS)
            except (httpx.TransportError, openai.APIError) as error:
                self.cut.append(error)

    def _plain(self, seed: int) -> None:
        response = httpx.post(f"{self.url}/v1/chat/completions", json={**BODY, "seed": seed}, timeout=60)
        if response.status_code != 200:
            self.refused.append((response.status_code, response.json()["error"]["message"]))
            return
        self.answers.append((seed, response.json()["choices"][0]["message"]["content"]))

    def _stream(self, seed: int) -> None:
        body = {**BODY, "seed": seed, "stream": True}
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=60) as response:
            if response.status_code != 200:
                self.refused.append((response.status_code, json.loads(response.read())["error"]["message"]))
                return
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert lines[-1] == "[DONE]", lines[-1]
        deltas = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
        self.answers.append((seed, "".join(deltas)))


def under_load(proxy: Proxy, happens: Callable[[Replica], Any], clients: int = 8) -> tuple[Load, int]:
    """Ask from many sides; when both replicas are at work, let something happen to the first, and go on for a while.

    Returns what clients were told, and how many answers there were when it happened.
    """
    load = Load(proxy.url)
    load.start(clients)
    try:
        wait_until(lambda: len(load.answers) >= 8 and all(replica.in_flight >= 2 for replica in proxy.replicas), 60)
        happens(proxy.replicas[0])
        before = len(load.answers) + len(load.refused) + len(load.cut)
        wait_until(lambda: len(load.answers) >= before + 3 * clients, 60)
    finally:
        load.finish()
    return load, before


def expected(proxy: Proxy) -> dict[int, str]:
    """The answers of a replica that is asked alone."""
    load = Load(f"http://127.0.0.1:{proxy.replicas[1].port}")
    for seed in range(SEEDS):
        load._plain(seed)
    return dict(load.answers)


@pytest.mark.slow
def test_one_ends_under_load_and_nothing_is_lost(proxy: Proxy) -> None:
    """SIGTERM: every request gets its whole answer, also those that come to the one that ends."""
    answers = expected(proxy)
    assert len(set(answers.values())) > 1
    load, before = under_load(proxy, lambda replica: replica.process.send_signal(signal.SIGTERM))
    assert proxy.replicas[0].process.wait(60) == 0
    assert not load.refused and not load.cut
    assert all(answers[seed] == said for seed, said in load.answers)
    sent_on = proxy.replicas[0].told(503)
    assert sent_on, "the one that ended was asked too, and another one answered"
    print(f"{len(load.answers)} answers, {before} when one was told to end; {sent_on} sent on by it; none lost")
    again(proxy)


@pytest.mark.slow
def test_one_dies_under_load_and_the_other_goes_on(proxy: Proxy) -> None:
    """SIGKILL: what it had begun ends with a clear error, nothing hangs, what comes later is answered by the other."""
    answers = expected(proxy)
    load, _ = under_load(proxy, lambda replica: replica.process.kill())
    proxy.replicas[0].process.wait()
    assert all(answers[seed] == said for seed, said in load.answers)
    assert 1 <= len(load.refused) + len(load.cut) <= 8, "at most what it had begun"
    assert all(status == 502 and "Send the request again" in message for status, message in load.refused)
    assert all("incomplete" in str(error) or "peer closed" in str(error) for error in load.cut), load.cut
    print(f"{len(load.answers)} answers; begun by the one that died: {len(load.refused)} told 502, {len(load.cut)} cut")
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0)
    for _ in range(5):
        assert client.chat.completions.create(model="small", **{**BODY, "seed": 1}).choices[0].message.content  # type: ignore[arg-type]


def again(proxy: Proxy) -> None:
    """Start the first replica again, and see that it gets its share."""
    replica = proxy.replicas[0]
    replica.start()
    wait_until(replica.is_ready, 180)
    time.sleep(3.1)  # as long as nginx takes it for down
    before = replica.told(200)
    load = Load(proxy.url)
    load.start(4)
    wait_until(lambda: len(load.answers) >= 16, 60)
    load.finish()
    assert not load.refused and not load.cut and replica.told(200) > before


@pytest.mark.slow
def test_what_the_proxy_does_besides(proxy: Proxy) -> None:
    """Streams come token by token, ids and messages of servers go through, uploads and metrics do not."""
    with httpx.Client(base_url=proxy.url, timeout=30) as http:
        error = http.post("/v1/chat/completions", json={"messages": []}, headers={"X-Request-Id": "mine-1"})
        assert error.status_code == 422 and error.headers["x-request-id"] == "mine-1"
        assert re.fullmatch("[0-9a-f]{32}", http.get("/v1/models").headers["x-request-id"])
        large = http.post(
            "/v1/chat/completions", content=b"x" * (32 * 2**20 + 1), headers={"Content-Type": "application/json"}
        )
        assert large.status_code == 413 and "larger than 33,554,432 bytes" in large.json()["error"]["message"]
        upload = http.post("/v1/files", files={"file": ("a.png", b"x")})
        assert upload.status_code == 404 and "data: URLs" in upload.json()["error"]["message"]
        assert http.get("/metrics").status_code == 404
        times = []
        body = {**BODY, "max_tokens": 400, "seed": 3, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            for _ in response.iter_lines():
                times.append(time.monotonic())
    assert len(times) > 50 and times[len(times) // 2] - times[0] > 0.2 * (times[-1] - times[0])
