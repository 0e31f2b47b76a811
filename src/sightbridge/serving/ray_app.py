"""A Ray Serve application: the same API with replicas of several models, on as many machines as Ray has.

serve run sightbridge.serving.ray_app:app models=runs/quickstart/model without_key=true

A front takes the requests (its gate, log and errors are a single server's), and every model is a deployment of its
own, which runs the same application as ``sightbridge serve`` does for that one model. ``deploy/ray.yaml`` shows all
settings that are often needed, ``ray_settings`` has the others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from sightbridge.config.serving import ServingSettings
from sightbridge.errors import SettingsError
from sightbridge.serving.api.access_log import log_to_stderr
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.app import make_app, make_state
from sightbridge.serving.api.served import ServedModel
from sightbridge.serving.front import Ask, ModelElsewhere, call, make_front
from sightbridge.serving.loading import load_served
from sightbridge.serving.ray_settings import FRONT, RaySettings, ReplicatedModel, read_ray_settings

try:
    from ray import serve  # type: ignore[import-not-found]
    from ray.exceptions import RayError  # type: ignore[import-not-found]
    from ray.serve.exceptions import BackPressureError, RayServeException  # type: ignore[import-not-found]
except ImportError as error:
    raise SettingsError(
        f"The Ray Serve application needs more packages: pip install 'sightbridge[ray,serve]' ({error})"
    ) from error

QUANTIZED = {"8bit": "8bit", "4bit": "nf4", None: None}


def app(arguments: dict[str, Any]) -> Any:
    """The application of ``serve run`` and of Ray's YAML files. Raises ``SettingsError``."""
    settings = read_ray_settings(arguments)
    limits = settings.limits.model_dump()
    replicas = [
        _deployment(model, name, settings.limits).bind(model.model_dump(exclude_unset=True), name, limits)
        for model, name in zip(settings.models, settings.names, strict=True)
    ]
    return _front(settings).bind(settings.names, replicas, limits, settings.api_key_env)


class Replica:
    """One replica of one model."""

    def __init__(self, model: Mapping[str, Any], name: str, limits: Mapping[str, Any]) -> None:
        log_to_stderr()
        settings = ServingSettings.model_validate({**limits, "allowed_hosts": []})  # the front looked at the host
        self._served = _load(ReplicatedModel.model_validate(model), name, settings)
        self._app = make_app(make_state([self._served], settings))

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The messages of the answer to a request that the front has let through."""
        async for message in call(self._app, scope, body):
            yield message

    def __del__(self) -> None:
        if hasattr(self, "_served"):  # it is loaded
            self._served.close(drain=False)  # Ray has waited for what was being answered


class Front:
    """What takes the requests."""

    def __init__(self, names: list[str], replicas: list[Any], limits: Mapping[str, Any], key_env: str | None) -> None:
        log_to_stderr()
        self._models = [ModelElsewhere(name, _ask(name, handle)) for name, handle in zip(names, replicas, strict=True)]
        self._settings = ServingSettings.model_validate(limits)
        self._key = _read_key(key_env)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray asks for it when the front is made."""
        return make_front(self._models, self._settings, self._key)


def _front(settings: RaySettings) -> Any:
    """How Ray runs the front. It is given more than it takes: its gate says 429 where Ray would let clients wait."""
    return serve.deployment(
        name=FRONT,
        num_replicas=settings.front_replicas,
        max_ongoing_requests=2 * settings.limits.max_in_flight,
        max_queued_requests=settings.limits.max_in_flight,
        graceful_shutdown_timeout_s=settings.limits.drain_seconds,
    )(serve.ingress()(Front))


def _deployment(model: ReplicatedModel, name: str, limits: ServingSettings) -> Any:
    """How Ray runs a model. What a replica has room for, and as much again, waits; more is refused."""
    scaling: dict[str, Any] = {"num_replicas": model.replicas}
    if model.autoscaling:
        wanted = model.autoscaling
        scaling = {
            "autoscaling_config": {
                "min_replicas": wanted.min_replicas,
                "max_replicas": wanted.max_replicas,
                "target_ongoing_requests": wanted.target_requests or model.max_batch,
                "upscale_delay_s": wanted.upscale_delay_s,
                "downscale_delay_s": wanted.downscale_delay_s,
            }
        }
    return serve.deployment(
        name=name,
        ray_actor_options={"num_gpus": model.gpus, "num_cpus": model.cpus},
        max_ongoing_requests=model.max_batch + model.max_queue,
        max_queued_requests=model.max_queue,
        graceful_shutdown_timeout_s=limits.drain_seconds,
        **scaling,
    )(Replica)


def _ask(name: str, handle: Any) -> Ask:
    """Have requests answered by a deployment, whatever becomes of its replicas."""
    streaming = handle.options(method_name="answer", stream=True)

    async def ask(scope: Scope, body: bytes) -> AsyncIterator[Message]:
        answer = streaming.remote(scope, body)
        try:
            async for message in answer:
                yield message
        except BackPressureError:
            raise ApiError(429, f"Too many requests wait for '{name}'.", code="queue_full", retry_after=5) from None
        except (RayError, RayServeException) as error:
            if (task := asyncio.current_task()) and task.cancelling():  # Ray has its own word for it
                raise asyncio.CancelledError from None
            raise ApiError(
                502,
                f"The replica of '{name}' that was to answer has ended. Send the request again.",
                code="bad_gateway",
            ) from error
        finally:
            answer.cancel()  # nothing, if it is done

    return ask


def _load(model: ReplicatedModel, name: str, settings: ServingSettings) -> ServedModel:
    """Load a model onto what Ray gave this replica: it sees no other GPU."""
    import torch

    from sightbridge.checkpoints.folder import load_model
    from sightbridge.models.placement import spread

    device = "cuda" if torch.cuda.is_available() and model.gpus else "cpu"

    def load_answering(folder: Path) -> Any:
        target = "cpu" if model.device_map else device
        found, processor = load_model(folder, target, model.sources, QUANTIZED[model.load_in])  # type: ignore[arg-type]
        if model.device_map:
            spread(found)
        if model.system is not None:
            processor.prompt_settings = processor.prompt_settings.model_copy(update={"system": model.system})
        return found, processor

    return load_served(
        Path(model.path),
        name,
        settings,
        device=device,
        sources=model.sources,
        load_answering=load_answering,
        max_batch=model.max_batch,
        max_queue=model.max_queue,
    )


def _read_key(variable: str | None) -> str | None:
    """The key, read where the front runs: it is in no settings, which Ray shows and keeps."""
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "").strip()):
        raise SettingsError(
            f"api_key_env: the environment variable {variable} is not set where the front runs, or empty"
        )
    return key
