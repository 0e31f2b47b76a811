"""``sightbridge serve`` as a process: it starts, answers, and loses nothing when it is told to end."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from cli_workplace import Workplace, run_command

from sightbridge.config.serving import ServingSettings
from sightbridge.errors import SettingsError
from sightbridge.serving.api.served import names_for


@pytest.fixture(scope="module")
def model(workplace: Workplace) -> Path:
    if not workplace.model.exists():
        assert run_command("train", "tiny/random", *workplace.overrides, "--out", workplace.run) == 0
    return workplace.model


@contextmanager
def process(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server in a process of its own, its address, and the lines of its log so far."""
    command = [sys.executable, "-m", "sightbridge", "serve", *map(str, arguments), "--port", "0", "--cpu"]
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=settings)
    assert child.stderr is not None
    lines: list[str] = []
    try:
        address = ""
        for line in child.stderr:
            lines.append(line)
            if line.startswith("serving "):
                address = line.split(" at ")[1].strip().removesuffix("/v1")
                break
        assert address, "".join(lines)
        rest = child.stderr
        reader = threading.Thread(target=lambda: lines.extend(rest), daemon=True)
        reader.start()
        wait_for(f"{address}/healthz")
        yield child, address, lines
    finally:
        child.kill()
        child.wait()


def wait_for(url: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(url).status_code == 200
            return
        except httpx.TransportError:
            assert time.monotonic() < end, "the server does not begin"
            time.sleep(0.05)


def question(picture: Path) -> list[dict]:
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": parts}]


@pytest.mark.slow
def test_a_trained_model_answers_as_ask_does_and_ends_without_loss(
    workplace: Workplace, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under load from eight sides, SIGTERM: whatever was accepted is answered, all else is refused."""
    capfd.readouterr()
    assert run_command("ask", model, workplace.picture, "What is it?", "--max-new-tokens", "20") == 0
    expected = capfd.readouterr().out.strip()
    answered, refused, lost = [], [], []
    with process(model, "--name", "scenes", "--api-key-env", "KEY", KEY="s3cret") as (child, address, lines):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="s3cret", max_retries=0)
        found = client.chat.completions.create(model="scenes", messages=question(workplace.picture), max_tokens=20)  # type: ignore[arg-type]
        assert found.choices[0].message.content == expected
        assert httpx.get(f"{address}/v1/models").status_code == 401

        body = {"messages": question(workplace.picture), "max_tokens": 100, "temperature": 1.0, "seed": 1}
        ended = threading.Event()

        def ask() -> None:
            headers = {"Authorization": "Bearer s3cret"}
            while not ended.is_set():
                try:
                    response = httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60)
                except httpx.ConnectError:
                    return  # the port is closed: nothing was accepted
                except httpx.TransportError as error:
                    lost.append(error)
                    return
                (answered if response.status_code == 200 else refused).append(response)
                if response.status_code == 503:
                    return

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        with httpx.Client(base_url=address) as watcher:
            while len(answered) < 8 or watcher.get("/healthz").json()["in_flight"] < 4:
                time.sleep(0.01)
            before = len(answered)
            child.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        ended.set()
        assert child.wait(60) == 0
        time.sleep(0.2)
    assert not lost and len(answered) > before, "what was being answered then, was"
    assert {response.json()["choices"][0]["message"]["content"] for response in answered} == {
        answered[0].json()["choices"][0]["message"]["content"]
    }
    assert {response.status_code for response in refused} <= {503}
    logged = [json.loads(line) for line in lines[1:] if line.startswith("{")]
    assert sum(line["status"] == 200 and "completion_tokens" in line for line in logged) == len(answered) + 1
    assert not any("error" in line and line["status"] == 500 for line in logged)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone"], "gone"),
        (["MODEL", "--host", "0.0.0.0"], "set a key"),
        (["MODEL", "--host", "example.com"], "set a key"),
        (["MODEL", "--api-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        (["MODEL", "--api-key-env", "PATH", "--without-key"], "exclude each other"),
        (["MODEL", "MODEL"], "two models would be called"),
        (["MODEL", "--name", "a", "--name", "b"], "names given: 2, models: 1"),
        (["MODEL", "--limit", "max_token=5"], "Did you mean 'max_tokens'?"),
        (["MODEL", "--limit", "max_tokens=0"], "at least 1"),
        (["MODEL", "--limit", "max_tokens"], "KEY=NUMBER"),
        (["MODEL", "--host", "192.0.2.1", "--without-key"], "cannot be had"),
        (["MODEL", "--device-map", "auto", "--load-in", "8bit"], "leave out --load-in"),
    ],
)
def test_mistakes_are_one_line(
    model: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run_command("serve", *[str(model) if word == "MODEL" else word for word in arguments], "--port", "0") == 1
    error = capsys.readouterr().err
    assert says in error.replace("\n", " ") and "Traceback" not in error


def test_a_port_that_is_taken(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run_command("serve", model, "--port", taken.getsockname()[1]) == 1
    assert "cannot be had" in capsys.readouterr().err


def test_the_document_lists_every_bound() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    bounds = page.partition("\n## Bounds\n")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", bounds, re.MULTILINE))
    defaults = ServingSettings().model_dump()
    assert listed == {
        name: f"{value:g}" if value < 1e5 else str(value) for name, value in defaults.items() if value != []
    }


def test_names_of_models() -> None:
    assert names_for(["runs/quickstart/model", "a/b"], []) == ["quickstart", "b"]
    assert names_for(["x", "y"], ["one", "two"]) == ["one", "two"]
    with pytest.raises(SettingsError, match="two models would be called 'a'"):
        names_for(["1/a", "2/a"], [])
