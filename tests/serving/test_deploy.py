"""Files in ``deploy``: their times and sizes fit the server's, their commands exist, tools that are here take them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_replicas import NGINX, shipped_nginx
from typer.main import get_command

from sightbridge.cli.main import build_app
from sightbridge.config.serving import ServingSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
BOUNDS = ServingSettings()


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def in_seconds(value: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([smh])", value).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def check_serve(words: list[str]) -> None:
    """Every option of a command is one of ``sightbridge serve``, and it has a model."""
    serve = get_command(build_app()).commands["serve"]  # type: ignore[attr-defined]
    options = {name: parameter for parameter in serve.params for name in parameter.opts}
    given, models = list(words), 0
    while given:
        word = given.pop(0)
        if not word.startswith("--"):
            models += 1
        elif not options[word].is_flag:
            given.pop(0)
    assert models


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    return {found["kind"]: found for found in yaml.safe_load_all(read("kubernetes.yaml"))}


def test_nginx_waits_longer_and_takes_more_than_a_server() -> None:
    text = read("nginx.conf")
    (size,) = re.findall(r"client_max_body_size +(\d+)m;", text)
    assert int(size) * 2**20 > BOUNDS.max_body_bytes
    times = dict(re.findall(r"^    (proxy_read_timeout|client_body_timeout) +(\w+);", text, re.MULTILINE))
    assert in_seconds(times["proxy_read_timeout"]) > BOUNDS.request_seconds
    assert in_seconds(times["client_body_timeout"]) <= BOUNDS.body_seconds


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize("encrypted", [False, True])
def test_nginx_takes_its_file(tmp_path: Path, encrypted: bool) -> None:
    text = shipped_nginx(18080, [18001, 18002])
    if encrypted:
        made = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout {tmp_path}/key -out {tmp_path}/pem"
        subprocess.run(made.split(), check=True, capture_output=True)
        text = re.sub(r"\n    # (listen 443 ssl|ssl_\w+ )", r"\n    \1", text)
        text = text.replace("listen 443", "listen 127.0.0.1:18443")
        text = re.sub(r"/etc/ssl/(private/)?sightbridge\.", f"{tmp_path}/", text)
    (tmp_path / "site.conf").write_text(text)
    user = "user root;" if os.getuid() == 0 else ""
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid; {user} events {{}} http {{ include site.conf; }}")
    command = [str(NGINX), "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "log")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0 and "warn" not in found.stderr, found.stderr


def test_a_pod_has_the_time_to_finish(objects: dict[str, Any]) -> None:
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    (bound,) = [word for word in server["args"] if word.startswith("drain_seconds=")]
    waits = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= waits + float(bound.partition("=")[2]) + 5
    ready = server["readinessProbe"]
    assert waits > ready["periodSeconds"] * ready["failureThreshold"], "balancers have time to notice"


def test_the_parts_of_the_cluster_name_each_other(objects: dict[str, Any]) -> None:
    deployment = objects["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    pod = deployment["template"]["spec"]
    (server,) = pod["containers"]
    assert deployment["selector"]["matchLabels"] == labels == objects["Service"]["spec"]["selector"]
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", objects["Deployment"]["metadata"]["name"])
    (key,) = server["env"]
    assert key["valueFrom"]["secretKeyRef"]["name"] == objects["Secret"]["metadata"]["name"]
    assert key["valueFrom"]["secretKeyRef"]["key"] in objects["Secret"]["stringData"]
    assert {mount["name"] for mount in server["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {server[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        "/healthz"
    }
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", read("Dockerfile"), re.MULTILINE)
    words = yaml.safe_load(entry)
    assert words[:2] == ["sightbridge", "serve"] and key["name"] in words
    check_serve(words[2:] + server["args"])


def test_the_image_holds_what_is_there_and_runs_as_nobody_special(objects: dict[str, Any]) -> None:
    text = read("Dockerfile")
    copied = [name for names in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in names.split()]
    ignored = read("Dockerfile.dockerignore").splitlines()
    assert copied and all((DEPLOY.parent / name).exists() and f"!{name}" in ignored for name in copied)
    assert re.search(r"^torch==", (DEPLOY.parent / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    (user,) = re.findall(r"^USER (\d+):", text, re.MULTILINE)
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    assert int(user) == pod["securityContext"]["runAsUser"] != 0
    project = (DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"EXTRAS=([\w,]+)", text)
    assert extras and all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in ",".join(extras).split(","))


def test_compose_gives_servers_the_time_to_finish() -> None:
    services = yaml.safe_load(read("compose.yaml"))["services"]
    assert in_seconds(services["one"]["stop_grace_period"]) > BOUNDS.drain_seconds
    assert set(services["nginx"]["depends_on"]) == {"one", "two"}


def test_the_unit_starts_a_server_and_gives_it_time(tmp_path: Path) -> None:
    unit = read("sightbridge.service")
    settings = dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))
    assert int(settings["TimeoutStopSec"]) > BOUNDS.drain_seconds
    _, verb, *words = shlex.split(settings["ExecStart"])
    assert verb == "serve"
    check_serve(words)
    if verify := shutil.which("systemd-analyze"):
        here = re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", unit, flags=re.MULTILINE)
        (tmp_path / "sightbridge.service").write_text(here)
        found = subprocess.run(
            [verify, "verify", str(tmp_path / "sightbridge.service")], capture_output=True, text=True
        )
        assert "sightbridge.service" not in found.stderr, found.stderr
