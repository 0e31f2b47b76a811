"""Loading a model to answer with: onto which device, whether it fits there, and with which system text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sightbridge.cli.console import console
from sightbridge.errors import SettingsError

if TYPE_CHECKING:
    from sightbridge.checkpoints.footprint import Footprint
    from sightbridge.data.processor import Processor
    from sightbridge.models.vlm import VisionLanguageModel

LOAD_IN: dict[str, Literal["8bit", "nf4"]] = {"8bit": "8bit", "4bit": "nf4"}
LARGE = 2**30
"""Bytes from which on a model's size is told before it is loaded."""


def load_for_answers(
    folder: Path,
    sources: dict[str, str],
    system: str | None,
    *,
    cpu: bool = False,
    load_in: Literal["8bit", "4bit"] | None = None,
    device_map: Literal["auto"] | None = None,
) -> tuple[VisionLanguageModel, Processor]:
    """Load a model onto the GPU, if there is one, with ``system`` as its system text, if that is given.

    Raises ``SettingsError`` for options that exclude each other, and for a model that cannot fit.
    """
    import torch

    from sightbridge.checkpoints.folder import load_model

    if device_map and (cpu or load_in):
        other = "--cpu" if cpu else "--load-in"
        raise SettingsError(f"--device-map {device_map} spreads the whole model over all devices; leave out {other}")
    device = "cuda" if torch.cuda.is_available() and not cpu else "cpu"
    quantize = LOAD_IN[load_in] if load_in else None
    tell_memory(folder, sources, device, quantize, spread=device_map is not None)
    with console(stderr=True).status("loading the model"):
        model, processor = load_model(folder, "cpu" if device_map else device, sources, quantize)
        if device_map:
            from sightbridge.models.placement import spread

            spread(model)
    if system is not None:
        processor.prompt_settings = processor.prompt_settings.model_copy(update={"system": system})
    return model, processor


def tell_memory(
    folder: Path, sources: dict[str, str], device: str, quantize: Literal["8bit", "nf4"] | None, *, spread: bool
) -> None:
    """Say how much memory a large model takes, and warn if it is not free.

    Raises ``SettingsError`` if the machine does not have it at all.
    """
    from sightbridge.checkpoints.footprint import footprint, free_memory, tell_problem

    needs = footprint(folder, sources, quantize)
    err = console(stderr=True)
    if needs.needed(device) >= LARGE:
        err.print(describe_memory(needs), style="dim", markup=False, soft_wrap=True)
    if problem := tell_problem(needs, free_memory(device), spread):
        err.print("warning:", style="bold yellow", end=" ")
        err.print(problem, markup=False, soft_wrap=True)


def describe_memory(needs: Footprint) -> str:
    """What a loaded model takes, and what of it."""
    from sightbridge.checkpoints.footprint import show_bytes

    parts = [f"{name.replace('_', ' ')} {show_bytes(size)}" for name, size in needs.parts.items()]
    if needs.cache:
        parts.append(f"a conversation of {needs.tokens:,} tokens {show_bytes(needs.cache)}")
    full = f"{show_bytes(needs.kept('none'))} ({', '.join(parts)})"
    if needs.quantize != "none":
        full = f"{show_bytes(needs.kept())} in {needs.quantize}, of {full} in full"
    return f"memory: {full}; {show_bytes(needs.needed('cpu'))} while it is loaded"
