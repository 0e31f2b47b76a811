"""The Ray Serve application in Ray's local testing mode, in which nothing of Ray runs but its classes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
import yaml
from api_server import SteeredEngine, answer_yes, error_of, image, served, text, user, wait_until

from sightbridge.errors import SettingsError
from sightbridge.serving.engines.engine import QueueFull
from sightbridge.serving.engines.request import Piece
from sightbridge.serving.engines.ticket import Ticket
from sightbridge.serving.ray_settings import read_ray_settings

SHIPPED = Path(__file__).parents[2] / "deploy" / "ray.yaml"


def test_arguments_of_the_command_line() -> None:
    settings = read_ray_settings({"models": "runs/a/model, b", "without_key": "true", "front_replicas": "2"})
    assert settings.names == ["a", "b"] and settings.front_replicas == 2 and settings.models[0].replicas == 1
    assert settings.limits.allowed_hosts == ["localhost", "127.0.0.1", "[::1]"]
    settings = read_ray_settings({"models": "[{path: a, name: x, replicas: 3}]", "api_key_env": "KEY"})
    assert settings.names == ["x"] and settings.models[0].replicas == 3 and settings.limits.allowed_hosts == []
    settings = read_ray_settings(
        {"models": "a", "without_key": "true", "limits": "{allowed_hosts: [me], max_tokens: 9}"}
    )
    assert settings.limits.allowed_hosts == ["me"] and settings.limits.max_tokens == 9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"without_key": True}, "models"),
        ({"models": "a"}, "without_key=true"),
        ({"models": "a", "api_key_env": "KEY", "without_key": True}, "excludes 'api_key_env'"),
        ({"models": [{"path": "a"}, {"path": "b/a"}], "without_key": True}, "two of them would be called 'a'"),
        ({"models": "front", "without_key": True}, "none may be called 'front'"),
        ({"models": [{"path": "a", "replicas": 0}], "without_key": True}, "at least 1"),
        ({"models": [{"path": "a", "replica": 2}], "without_key": True}, "Did you mean 'replicas'?"),
        ({"models": [{"path": "a", "load_in": "3bit"}], "without_key": True}, "8bit"),
        (
            {"models": [{"path": "a", "replicas": 2, "autoscaling": {"max_replicas": 3}}], "without_key": True},
            "excludes 'autoscaling'",
        ),
        (
            {"models": [{"path": "a", "autoscaling": {"min_replicas": 4, "max_replicas": 3}}], "without_key": True},
            "at most max_replicas (3), got 4",
        ),
        ({"models": "a", "without_key": True, "limits": {"max_token": 5}}, "Did you mean 'max_tokens'?"),
    ],
)
def test_wrong_arguments_are_told_with_their_place(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_ray_settings(arguments)
    assert says in str(caught.value)


def test_the_shipped_file_is_an_application() -> None:
    (application,) = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))["applications"]
    assert application["import_path"] == "sightbridge.serving.ray_app:app"
    settings = read_ray_settings(application["args"])
    assert settings.api_key_env and any(model.autoscaling for model in settings.models)


def test_ray_is_told_how_many_and_on_what() -> None:
    pytest.importorskip("ray")
    from sightbridge.serving.ray_app import _deployment, _front

    arguments = {
        "models": [
            {"path": "a", "replicas": 3, "gpus": 0.5, "max_batch": 4, "max_queue": 6},
            {"path": "b", "cpus": 2, "autoscaling": {"min_replicas": 0, "max_replicas": 5}},
        ],
        "without_key": True,
        "limits": {"drain_seconds": 7},
    }
    settings = read_ray_settings(arguments)
    fixed, scaled = (
        _deployment(model, name, settings.limits) for model, name in zip(settings.models, settings.names, strict=True)
    )
    assert (fixed.name, fixed.num_replicas, fixed.max_ongoing_requests, fixed.max_queued_requests) == ("a", 3, 10, 6)
    assert fixed.ray_actor_options == {"num_gpus": 0.5, "num_cpus": 1}
    assert fixed._deployment_config.graceful_shutdown_timeout_s == 7
    assert _front(settings).max_ongoing_requests > settings.limits.max_in_flight
    wanted = scaled._deployment_config.autoscaling_config
    assert (wanted.min_replicas, wanted.max_replicas, wanted.target_ongoing_requests) == (0, 5, 16)


@contextmanager
def application(monkeypatch: pytest.MonkeyPatch, engines: dict[str, SteeredEngine], **more: Any) -> Iterator[str]:
    """Run the application of models with steered engines behind a port: its address.

    The front's ASGI application is the one that Ray would run in its proxy's stead; local testing mode has no proxy.
    """
    pytest.importorskip("ray")
    from ray import serve  # type: ignore[import-not-found]

    from sightbridge.serving import ray_app

    monkeypatch.setattr(ray_app, "load_served", lambda folder, name, *_, **__: served(engines[name], name=name))
    monkeypatch.setattr(ray_app, "log_to_stderr", lambda: None)
    arguments = {"models": ",".join(engines), **({} if "api_key_env" in more else {"without_key": "true"}), **more}
    handle = serve.run(ray_app.app(arguments), _local_testing_mode=True)
    app = handle._init_router()._user_callable_wrapper._callable.app
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def test_the_application_answers_as_a_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = {"one": SteeredEngine(), "two": SteeredEngine()}
    monkeypatch.setenv("RAY_KEY", "s3cret")
    with application(
        monkeypatch, engines, api_key_env="RAY_KEY", limits={"max_tokens": 50, "default_tokens": 50}
    ) as url:
        assert error_of(httpx.get(f"{url}/v1/models"))["status"] == 401
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret", max_retries=0)
        assert [model.id for model in client.models.list().data] == ["one", "two"]
        messages: Any = [user(image(1), text("What is it?"))]
        whole = client.chat.completions.create(model="two", messages=messages)
        assert whole.choices[0].message.content == "Yes." and whole.model == "two"
        chunks = list(client.chat.completions.create(model="one", messages=messages, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Yes."
        assert [len(engine.tickets) for engine in engines.values()] == [1, 1]
        with pytest.raises(openai.NotFoundError, match="Known: one, two"):
            client.chat.completions.create(model="three", messages=messages)
        with pytest.raises(openai.APIStatusError, match="at most 50"):
            client.chat.completions.create(model="one", messages=messages, max_tokens=51)


def test_who_leaves_or_comes_too_late(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def begin(ticket: Ticket) -> None:
        ticket.tell(Piece("Yes", (1,)))

    def refuse(ticket: Ticket) -> None:
        raise QueueFull("64 requests wait already.", 7)

    engine = SteeredEngine(begin)
    with application(monkeypatch, {"small": engine}) as url:
        body = {"messages": [user("Hello")], "stream": True}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.5)
        wait_until(lambda: engine.tickets[0].is_cancelled)
        assert "broke off" not in caplog.text, "that somebody leaves is no failure"
        engine.then = refuse
        full = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert error_of(full)["status"] == 429 and full.headers["retry-after"] == "7"
        engine.then = answer_yes
        assert "[DONE]" in httpx.post(f"{url}/v1/chat/completions", json=body).text


def test_what_ray_says_of_replicas_is_told_in_the_apis_words(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from ray.exceptions import ActorDiedError  # type: ignore[import-not-found]
    from ray.serve.exceptions import BackPressureError  # type: ignore[import-not-found]

    from sightbridge.serving import ray_app

    broken: dict[str, Exception] = {}
    engine = SteeredEngine()

    async def fail(self: Any, scope: Any, body: bytes) -> Any:
        raise broken["by"]
        yield

    monkeypatch.setattr(ray_app.Replica, "answer", fail)
    with application(monkeypatch, {"small": engine}) as url:
        for error, status, code in (
            (BackPressureError(num_queued_requests=4, max_queued_requests=3), 429, "queue_full"),
            (ActorDiedError(), 502, "bad_gateway"),
        ):
            broken["by"] = error
            response = httpx.post(f"{url}/v1/chat/completions", json={"messages": [user("Hello")]})
            assert (error_of(response)["status"], error_of(response)["code"]) == (status, code)


def test_a_key_that_is_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(Exception, match="NO_SUCH_KEY is not set"),
        application(monkeypatch, {"small": SteeredEngine()}, api_key_env="NO_SUCH_KEY"),
    ):
        pass


def test_without_ray_the_way_to_it_is_told() -> None:
    try:
        import ray  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(SettingsError, match=r"pip install 'sightbridge\[ray,serve\]'"):
            import sightbridge.serving.ray_app  # noqa: F401
    else:
        pytest.skip("Ray is here")
