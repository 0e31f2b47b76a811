"""``sightbridge serve``: models behind an HTTP server that OpenAI's clients can talk to."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sightbridge.cli.arguments import (
    CpuOption,
    DeviceMapOption,
    LoadInOption,
    SourceOption,
    SystemOption,
    read_part_sources,
)
from sightbridge.cli.console import console
from sightbridge.cli.loading import load_for_answers
from sightbridge.errors import SettingsError

if TYPE_CHECKING:
    from sightbridge.config.serving import ServingSettings
    from sightbridge.serving.api.served import ServedModel
    from sightbridge.serving.engines.vllm_server import VllmServer

LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"]


ModelsArgument = Annotated[
    list[Path], typer.Argument(metavar="MODEL...", help="Model folders; for CLIPScores also a CLIP's folder.")
]
NameOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="What requests call a model. Once for each model.", show_default="its folder's"),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="VARIABLE", help="Environment variable with the key that requests must bring.", show_default=False
    ),
]
WithoutKeyOption = Annotated[bool, typer.Option("--without-key", help="Answer anybody, also beyond this machine.")]
NoWebOption = Annotated[bool, typer.Option("--no-web", help="Leave out the web page.")]
LlavaOption = Annotated[
    bool, typer.Option("--llava-protocol", help="Be a controller and worker for LLaVA's pages and scripts, too.")
]
RemoteOption = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST", help="Fetch pictures from this host. Can be repeated.", show_default="none"),
]
AllowHostOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST",
        help="What else a Host header may say, such as the name of a proxy. Can be repeated.",
        show_default="this machine; anything with another --host",
    ),
]
EngineOption = Annotated[
    Literal["own", "vllm"],
    typer.Option(help="vllm: a vLLM server writes the answers, of the prompts' embeddings that are made here."),
]
VllmUrlOption = Annotated[
    str | None, typer.Option(metavar="URL", help="Its API: http://host:8000/v1.", show_default=False)
]
VllmModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What it calls the language model.", show_default="the only one it has"),
]
VllmKeyOption = Annotated[
    str | None,
    typer.Option(metavar="VARIABLE", help="Environment variable with the key that it asks for.", show_default=False),
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A bound, such as max_tokens=2048; docs/serving.md lists them."),
]
VotesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Let people vote on answers, and append their votes to a JSONL file.", show_default=False
    ),
]


def serve(
    models: ModelsArgument,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    name: NameOption = None,
    api_key_env: KeyOption = None,
    without_key: WithoutKeyOption = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers that are written at the same time.")] = 16,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that wait; others are told to come later.")] = 64,
    allow_remote_images: RemoteOption = None,
    allow_host: AllowHostOption = None,
    limit: LimitOption = None,
    no_web: NoWebOption = False,
    votes: VotesOption = None,
    system: SystemOption = None,
    source: SourceOption = None,
    cpu: CpuOption = False,
    load_in: LoadInOption = None,
    device_map: DeviceMapOption = None,
    llava_protocol: LlavaOption = False,
    engine: EngineOption = "own",
    vllm_url: VllmUrlOption = None,
    vllm_model: VllmModelOption = None,
    vllm_key_env: VllmKeyOption = None,
) -> None:
    """Serve models over HTTP, as OpenAI's API does: chat about pictures, and scores, and features; and a web page.

    It listens at this machine only, unless --host says otherwise. SIGTERM finishes what was begun.

    \b
    Examples:
      sightbridge serve runs/quickstart/model
      sightbridge serve vip-llava clip-flant5 --port 8080 --load-in 4bit
      SIGHT_KEY=... sightbridge serve MODEL --host 0.0.0.0 --api-key-env SIGHT_KEY
      sightbridge serve MODEL --engine vllm --vllm-url http://gpu:8001/v1
    """
    _check_extra()
    from sightbridge.serving.api.app import make_state
    from sightbridge.serving.api.served import names_for
    from sightbridge.serving.server import open_port, run_server

    key = _read_key(host, api_key_env, without_key)
    settings = _read_settings(host, limit or [], allow_remote_images or [], allow_host or [])
    names = names_for([str(model) for model in models], name or [])
    _check_folders(models)
    shows_page = not no_web and _has_web()
    _check_votes(votes, shows_page)
    sources = read_part_sources(source)
    loading: dict[str, Any] = {"cpu": cpu, "load_in": load_in, "device_map": device_map, "system": system}
    bounds = {"max_batch": max_batch, "max_queue": max_queue}
    vllm = _find_vllm(engine, vllm_url, vllm_model, vllm_key_env, len(models), loading, settings)
    taken = open_port(host, port)
    load = partial(_load_front, vllm=vllm) if vllm else _load
    served = [
        load(folder, called, sources, settings, loading, bounds) for folder, called in zip(models, names, strict=True)
    ]
    state = make_state(served, settings, key)
    state.shows_page, state.votes, state.speaks_llava = shows_page, votes, llava_protocol
    run_server(state, taken, partial(_tell_addresses, names, host, taken.getsockname()[1], shows_page, no_web))


def _tell_addresses(names: list[str], host: str, port: int, shows_page: bool, no_web: bool) -> None:
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    told = console(stderr=True)
    told.print(f"serving {', '.join(names)} at {address}/v1", markup=False, soft_wrap=True)
    if shows_page:
        told.print(f"web page at {address}/", markup=False, soft_wrap=True)
    elif not no_web:
        told.print("no web page: pip install 'sightbridge[web]'", markup=False)


def _load(
    folder: Path,
    name: str,
    sources: dict[str, str],
    settings: ServingSettings,
    loading: dict[str, Any],
    bounds: dict[str, int],
) -> ServedModel:
    """Load a model of any kind, and start its engine if it answers."""
    import torch

    from sightbridge.serving.loading import load_served

    device = "cuda" if torch.cuda.is_available() and not loading["cpu"] else "cpu"
    load = partial(load_for_answers, sources=sources, **loading)
    return load_served(folder, name, settings, device=device, sources=sources, load_answering=load, **bounds)


def _find_vllm(
    engine: str,
    url: str | None,
    model: str | None,
    key_variable: str | None,
    models: int,
    loading: dict[str, Any],
    settings: ServingSettings,
) -> VllmServer | None:
    """The vLLM server that is to answer, if one is; found before anything is loaded."""
    if engine == "own":
        for option, value in (("url", url), ("model", model), ("key-env", key_variable)):
            if value is not None:
                raise SettingsError(f"--vllm-{option} is for --engine vllm; add that, or leave it out")
        return None
    from sightbridge.serving.engines.vllm_server import VllmServer

    if url is None:
        raise SettingsError("--engine vllm needs --vllm-url, such as http://host:8000/v1")
    if models > 1:
        raise SettingsError("--engine vllm is for one MODEL, whose language model the vLLM server holds")
    if loading["load_in"] or loading["device_map"]:
        raise SettingsError("--load-in and --device-map are for a language model that is here; leave them out")
    key = os.environ.get(key_variable, "").strip() if key_variable else None
    if key_variable and not key:
        raise SettingsError(f"--vllm-key-env: the environment variable {key_variable} is not set, or empty")
    return VllmServer(url, model, key, settings.request_seconds)


def _load_front(
    folder: Path,
    name: str,
    sources: dict[str, str],
    settings: ServingSettings,
    loading: dict[str, Any],
    bounds: dict[str, int],
    vllm: VllmServer,
) -> ServedModel:
    """Load what makes prompts, for a vLLM server that answers them."""
    import time

    import torch

    from sightbridge.checkpoints.front import load_front
    from sightbridge.serving.api.one_at_a_time import OneAtATime
    from sightbridge.serving.api.served import ServedModel
    from sightbridge.serving.engines.vllm_engine import VllmEngine

    device = "cuda" if torch.cuda.is_available() and not loading["cpu"] else "cpu"
    model, processor = load_front(folder, device, sources)
    if loading["system"] is not None:
        processor.prompt_settings = processor.prompt_settings.model_copy(update={"system": loading["system"]})
    weights = sum(parameter.numel() for parameter in model.parameters())
    console(stderr=True).print(
        f"loaded vision tower, connector and input embeddings, {weights:,} weights; '{vllm.model}' at {vllm.url} "
        "writes the answers",
        markup=False,
        soft_wrap=True,
    )
    engine = VllmEngine(model, processor, vllm, name=name, **bounds)
    work = OneAtATime(name, settings.max_waiting_scores)
    return ServedModel(name, model, processor, engine, work, int(time.time()))


def _check_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import httpcore  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SettingsError(f"'serve' needs more packages: pip install 'sightbridge[serve]' ({error})") from error


def _has_web() -> bool:
    """Whether what the page needs is installed."""
    from importlib.util import find_spec

    return find_spec("gradio") is not None


def _check_votes(votes: Path | None, shows_page: bool) -> None:
    """See that votes can be written before the first model is loaded."""
    if votes is None:
        return
    if not shows_page:
        raise SettingsError("--votes is for the web page: pip install 'sightbridge[web]', and leave out --no-web")
    from sightbridge.serving.web.votes import check_file

    check_file(votes)


def _read_key(host: str, variable: str | None, without: bool) -> str | None:
    """The key that requests must bring; none only where just this machine can ask, or if that is wished."""
    from sightbridge.serving.server import is_loopback

    if variable is not None:
        if without:
            raise SettingsError("--api-key-env and --without-key exclude each other; leave one out")
        if not (key := os.environ.get(variable, "").strip()):
            raise SettingsError(f"--api-key-env: the environment variable {variable} is not set, or empty")
        return key
    if not without and not is_loopback(host):
        raise SettingsError(
            f"--host {host} can be reached by others: set a key (--api-key-env VARIABLE), or say --without-key"
        )
    return None


def _read_settings(host: str, limits: list[str], remote: list[str], names: list[str]) -> ServingSettings:
    """The server's bounds from ``KEY=VALUE`` and the lists of hosts. Raises ``SettingsError``."""
    from sightbridge.config.problems import validate
    from sightbridge.config.serving import ServingSettings
    from sightbridge.config.yaml_tree import Given
    from sightbridge.serving.server import is_loopback

    tree: dict[str, Any] = {}
    for text in limits:
        key, _, value = text.partition("=")
        try:
            tree[key] = json.loads(value)
        except ValueError:
            raise SettingsError(f"--limit: expected KEY=NUMBER, such as max_tokens=2048, got '{text}'") from None
    tree["remote_hosts"] = remote
    tree["allowed_hosts"] = [*LOOPBACK_NAMES, *names] if is_loopback(host) else names
    given = {
        key: Given([Given(v, "option") for v in x] if isinstance(x, list) else x, "--limit") for key, x in tree.items()
    }
    return validate(ServingSettings, Given(given, "--limit"))


def _check_folders(models: list[Path]) -> None:
    """See that there are models before the first one is loaded."""
    from sightbridge.checkpoints.atomic import existing_folder
    from sightbridge.checkpoints.manifest import read_manifest
    from sightbridge.scoring.clip import is_clip_folder

    for model in models:
        if not is_clip_folder(model):
            read_manifest(existing_folder(model.expanduser().resolve()))
