"""Arguments that several verbs share, with their tab completion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sightbridge.errors import SettingsError

if TYPE_CHECKING:
    from sightbridge.config.generation import GenerationSettings


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes that begin with what was typed."""
    from sightbridge.config.catalogue import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Names of shipped tasks that begin with what was typed."""
    from sightbridge.evaluation.task import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


def complete_override(incomplete: str) -> list[str]:
    """Dotted keys of settings that begin with what was typed, ready for a value."""
    from sightbridge.config.describe import known_keys

    return [f"{key}=" for key in known_keys() if key.startswith(incomplete)]


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Name of a shipped recipe ('sightbridge recipes' lists them) or a YAML file.",
        autocompletion=complete_recipe,
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings to change, such as optim.lr=1e-4 or data.root=/data.",
        autocompletion=complete_override,
        show_default=False,
    ),
]
ModelArgument = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A model folder, such as runs/quickstart/model."),
]
SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="PART=FOLDER",
        help="Where a part lies that the model only references, if not where it was trained. Can be repeated.",
        show_default=False,
    ),
]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="The answer is cut after so many tokens.")]
BeamsOption = Annotated[int, typer.Option(min=1, help="Search so many answers at once for the likeliest.")]
SampleOption = Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")]
TemperatureOption = Annotated[
    float | None, typer.Option(help="Sample; below 1 sharpens, above 1 flattens the choice.", show_default=False)
]
TopPOption = Annotated[
    float | None, typer.Option(help="Sample from the likeliest tokens that hold this probability.", show_default=False)
]
SeedOption = Annotated[int | None, typer.Option(help="Of sampling.", show_default=False)]
SystemOption = Annotated[str | None, typer.Option(help="System text in place of the model's own.", show_default=False)]

CpuOption = Annotated[bool, typer.Option("--cpu", help="Stay on the CPU, also if there is a GPU.")]
LoadInOption = Annotated[
    Literal["8bit", "4bit"] | None,
    typer.Option(help="Hold the language model's layers in so many bits (sightbridge\\[quant]).", show_default=False),
]
DeviceMapOption = Annotated[
    Literal["auto"] | None,
    typer.Option(
        help="auto: spread the language model over all GPUs, and over the CPU's memory what they cannot hold.",
        show_default=False,
    ),
]


def read_generation(
    max_new_tokens: int, beams: int, sample: bool, temperature: float | None, top_p: float | None, seed: int | None
) -> GenerationSettings:
    """Generation settings from a verb's options; a temperature or a top-p means to sample."""
    from sightbridge.config.generation import GenerationSettings
    from sightbridge.config.problems import validate
    from sightbridge.config.yaml_tree import Given

    options = {
        "max_new_tokens": max_new_tokens,
        "num_beams": beams,
        "sample": sample or temperature is not None or top_p is not None,
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if top_p is None else top_p,
        "seed": seed,
    }
    return validate(GenerationSettings, Given({k: Given(v, "option") for k, v in options.items()}, "option"))


def read_part_sources(given: list[str] | None) -> dict[str, str]:
    """``vision_tower=FOLDER`` of each ``--source``; raises ``SettingsError`` for anything else."""
    sources = {}
    for text in given or []:
        part, equals, folder = text.partition("=")
        if not (part and equals and folder):
            raise SettingsError(f"--source: expected PART=FOLDER, such as vision_tower=/models/clip, got '{text}'")
        sources[part] = folder
    return sources
