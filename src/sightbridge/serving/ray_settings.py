"""Settings of the Ray Serve application: which models, how many replicas of each, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from sightbridge.config.base import Settings
from sightbridge.config.problems import validate
from sightbridge.config.serving import ServingSettings
from sightbridge.config.yaml_tree import Given, read_yaml
from sightbridge.errors import SettingsError
from sightbridge.serving.api.served import names_for

WHERE = "arguments of the Ray Serve application"
FRONT = "front"
"""What the deployment that takes the requests is called."""
LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"]


class Autoscaling(Settings):
    """As many replicas as there is work for."""

    min_replicas: int = Field(default=1, ge=0, description="0 = the first request after a while loads the model")
    max_replicas: int = Field(ge=1, description="at most so many")
    target_requests: float | None = Field(
        default=None, gt=0, description="requests at a time for each replica; none = max_batch of the model"
    )
    upscale_delay_s: float = Field(default=30, ge=0, description="so long there must be too much to do")
    downscale_delay_s: float = Field(default=600, ge=0, description="so long there must be too little to do")

    @model_validator(mode="after")
    def _check(self) -> Autoscaling:
        if self.min_replicas > self.max_replicas:
            raise SettingsError(
                f"expected at most max_replicas ({self.max_replicas}), got {self.min_replicas}", "min_replicas"
            )
        return self


class ReplicatedModel(Settings):
    """A model, how its replicas are loaded, and how many there are."""

    path: str = Field(min_length=1, description="folder, at the same place on every machine")
    name: str | None = Field(default=None, description="in requests; none = the folder's")
    replicas: int = Field(default=1, ge=1, description="so many, always")
    autoscaling: Autoscaling | None = Field(default=None, description="in place of 'replicas'")
    gpus: float = Field(default=0, ge=0, description="of each replica; 0 = it runs on CPUs, 0.5 = two share one")
    cpus: float = Field(default=1, gt=0, description="of each replica")
    load_in: Literal["8bit", "4bit"] | None = Field(default=None, description="as 'sightbridge serve --load-in'")
    device_map: Literal["auto"] | None = Field(default=None, description="over all GPUs of the replica")
    sources: dict[str, str] = Field(default_factory=dict, description="part -> where it lies now")
    system: str | None = Field(default=None, description="system text")
    max_batch: int = Field(default=16, ge=1, description="answers that a replica writes at the same time")
    max_queue: int = Field(default=64, ge=1, description="requests that wait for a replica; others get 429")

    @model_validator(mode="after")
    def _check(self) -> ReplicatedModel:
        if self.autoscaling and "replicas" in self.model_fields_set:
            raise SettingsError("excludes 'autoscaling'; leave one out", "replicas")
        if self.device_map and self.load_in:
            raise SettingsError("excludes 'load_in'; leave one out", "device_map")
        return self


class RaySettings(Settings):
    """All of an application."""

    models: list[ReplicatedModel] = Field(min_length=1, description="what is served")
    front_replicas: int = Field(default=1, ge=1, description="of what takes the requests; it needs little")
    api_key_env: str | None = Field(
        default=None, min_length=1, description="environment variable, on every machine, with the key of requests"
    )
    without_key: bool = Field(default=False, description="answer anybody who reaches Ray's HTTP port")
    limits: ServingSettings = Field(default_factory=ServingSettings, description="bounds of every request")

    @model_validator(mode="after")
    def _check(self) -> RaySettings:
        if self.api_key_env and self.without_key:
            raise SettingsError("excludes 'api_key_env'; leave one out", "without_key")
        if not self.api_key_env and not self.without_key:
            raise SettingsError(
                "Ray's HTTP port may be reached by others: name the variable that holds a key, or say without_key=true",
                "api_key_env",
            )
        for name in self.names:
            if self.names.count(name) > 1:
                raise SettingsError(f"two of them would be called '{name}'; give each a 'name'", "models")
            if name == FRONT:
                raise SettingsError(f"none may be called '{name}', as what takes the requests is", "models")
        return self

    @property
    def names(self) -> list[str]:
        """What requests call the models, in their order."""
        return [model.name or names_for([model.path], [])[0] for model in self.models]


def read_ray_settings(arguments: Mapping[str, Any]) -> RaySettings:
    """Settings from the arguments that Ray passes: those of its YAML file, or words of its command line.

    On the command line ``models`` may be folders with commas between; other values are read as YAML. Without a key
    only requests to this machine's own names are answered, unless ``limits.allowed_hosts`` gives others: a page in a
    browser must not reach the port by a name of its own.

    Raises ``SettingsError``.
    """
    tree = {key: _read(key, value) for key, value in arguments.items()}
    settings = validate(RaySettings, Given(tree, WHERE))
    if settings.without_key and not settings.limits.allowed_hosts:
        limits = settings.limits.model_copy(update={"allowed_hosts": LOOPBACK_NAMES})
        settings = settings.model_copy(update={"limits": limits})
    return settings


def _read(key: str, value: Any) -> Given:
    if key == "models" and isinstance(value, str) and not value.lstrip().startswith("["):
        return _given([{"path": path.strip()} for path in value.split(",")])
    if isinstance(value, str):
        return read_yaml(value, lambda line: f"{key}=") or Given(None, WHERE)
    return _given(value)


def _given(value: Any) -> Given:
    """A plain value as a tree of settings."""
    if isinstance(value, Mapping):
        return Given({str(key): _given(child) for key, child in value.items()}, WHERE)
    if isinstance(value, list | tuple):
        return Given([_given(child) for child in value], WHERE)
    return Given(value, WHERE)
