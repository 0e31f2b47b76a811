"""The story of a quickstart: parents, data, training, evaluation, report."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

from rich.console import Console

import sightbridge
from sightbridge.checkpoints.folder import load_model
from sightbridge.checkpoints.weights import fingerprint
from sightbridge.config.load import LoadedRecipe, read_recipe, write_atomically
from sightbridge.config.parent import ParentRecipe
from sightbridge.config.recipe import Recipe
from sightbridge.data.processor import Processor
from sightbridge.data.readers.llava import read_llava
from sightbridge.data.record import Record
from sightbridge.data.scenes.world import ObjectSet
from sightbridge.data.scenes.write import ScenesSettings, write_scenes
from sightbridge.models.build import part_summary
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.parents.language import train_language_parent
from sightbridge.parents.vision import train_vision_parent
from sightbridge.quickstart.accuracy import Answered, accuracy_by, ask_all, chance, with_mean, without_pictures
from sightbridge.quickstart.report import write_report
from sightbridge.training.run import run_recipe
from sightbridge.training.run_folder import MODEL, check_run_folder

ConnectorKind = Literal["linear", "mlp", "qformer"]
LanguageModelKind = Literal["decoder", "encoder-decoder"]

RECIPE_PREFIX: dict[LanguageModelKind, str] = {"decoder": "decoder", "encoder-decoder": "encdec"}
PROBE = 200
"""Held-out questions that are asked now and then while training, for the curve."""


@dataclass(frozen=True)
class QuickstartSettings:
    """What to join, on which pictures, and where to write it."""

    connector: ConnectorKind = "mlp"
    language_model: LanguageModelKind = "decoder"
    data: ObjectSet = "shapes"
    folder: Path = Path("runs/quickstart")
    from_scratch: bool = False
    overwrite: bool = False
    train_pictures: int = 4000
    test_pictures: int = 500
    seed: int = 0
    overrides: tuple[str, ...] = ()


@dataclass
class Stopwatch:
    """Seconds of each phase, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)


def run_quickstart(settings: QuickstartSettings, console: Console) -> dict[str, Any]:
    """Train a bridge between frozen parents, ask it about new pictures, write ``results.json`` and ``report.html``.

    Returns the results. Raises ``SettingsError`` if the folder holds something else, or another run and ``overwrite``
    is not set.
    """
    check_run_folder(settings.folder, settings.overwrite)
    clock = Stopwatch()
    sources: list[str] = []
    if settings.from_scratch:
        with clock.phase("parents"):
            sources = train_parents(settings, console)
    with clock.phase("drawing"):
        draw_pictures(settings, console)

    loaded = read_recipe(
        f"tiny/{RECIPE_PREFIX[settings.language_model]}-{settings.connector}",
        [f"data.root={settings.folder / 'scenes'}", f"training.seed={settings.seed}", *sources, *settings.overrides],
    )
    test = read_questions(settings, "test.json")
    probe = random.Random(0).sample(test, min(PROBE, len(test)))
    fingerprints: list[dict[str, str]] = []

    def evaluate(model: VisionLanguageModel, processor: Processor, _: object, step: int) -> dict[str, float]:
        fingerprints.append(frozen_fingerprints(model))
        answers = ask_all(model, processor, probe)
        return {"accuracy": sum(answer.right for answer in answers) / len(answers)}

    with clock.phase("training"):
        history = run_recipe(
            loaded, settings.folder, overwrite=settings.overwrite, evaluate=evaluate, console=console, title="bridge"
        )
    # what the run left behind is loaded as anybody would load it, so the report is about that and nothing else
    model, processor = load_model(settings.folder / MODEL)
    fingerprints.append(frozen_fingerprints(model))
    assert all(found == fingerprints[-1] for found in fingerprints), "a frozen weight has changed"

    with clock.phase("evaluation"):
        answers = ask_all(model, processor, test)
        new_answers = ask_all(model, processor, read_questions(settings, "test_new.json"))
        blind_answers = ask_all(model, processor, without_pictures(test))
    results = summarise(settings, answers, new_answers, blind_answers)
    results |= count_weights(model, loaded) | {"frozen_weights_unchanged": True, "seconds": clock.seconds}
    write_atomically(settings.folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_report(settings.folder / "report.html", results, history, answers, next_commands(settings, test))
    return results


def summarise(
    settings: QuickstartSettings, answers: list[Answered], new_answers: list[Answered], blind_answers: list[Answered]
) -> dict[str, Any]:
    """What was joined, and how well it answers: with its picture, about new combinations, without a picture."""
    return {
        "connector": settings.connector,
        "language_model": settings.language_model,
        "data": settings.data,
        "seed": settings.seed,
        "accuracy": with_mean(accuracy_by(answers, "type")),
        "accuracy_new_combinations": with_mean(accuracy_by(new_answers, "type"))["mean"],
        "text_only_baseline": with_mean(accuracy_by(blind_answers, "type")),
        "chance": with_mean(chance(answers)),
        "accuracy_by_language": accuracy_by(answers, "language"),
        "questions": len(answers),
        "pictures": len({str(answer.record.images[0]) for answer in answers}),
        "versions": {"sightbridge": sightbridge.__version__}
        | {name: version(name) for name in ("torch", "transformers")},
    }


def count_weights(model: VisionLanguageModel, loaded: LoadedRecipe) -> dict[str, Any]:
    """Name, class and size of each part and whether it was trained, and the sums."""
    parts = cast(Recipe, loaded.recipe).training.parts
    described = [
        {
            "name": name.replace("_", " "),
            "what": what,
            "parameters": parameters,
            "trained": getattr(parts, name).train != "frozen",
        }
        for name, what, parameters, _ in part_summary(model)
    ]
    return {
        "parts": described,
        "trained_parameters": sum(part["parameters"] for part in described if part["trained"]),
        "frozen_parameters": sum(part["parameters"] for part in described if not part["trained"]),
    }


def train_parents(settings: QuickstartSettings, console: Console) -> list[str]:
    """Train the parents anew; returns the overrides that put them in the shipped ones' places."""
    folder = settings.folder / "parents"
    language = f"tiny/parent-{RECIPE_PREFIX[settings.language_model]}"
    for name, recipe, train in (
        ("vision", "tiny/parent-vision", train_vision_parent),
        ("language", language, train_language_parent),
    ):
        if (folder / name / "done").exists():
            continue
        console.print(f"training the {name} parent ({recipe}); this takes several minutes")
        train(cast(ParentRecipe, read_recipe(recipe).recipe), folder / name)
        write_atomically(folder / name / "done", "")
    return [
        f"model.vision_tower.source={folder / 'vision'}",
        f"model.language_model.source={folder / 'language'}",
    ]


def draw_pictures(settings: QuickstartSettings, console: Console) -> None:
    """Write the pictures and questions as ordinary files."""
    folder = settings.folder / "scenes"
    scenes = ScenesSettings(
        object_set=settings.data,
        train=settings.train_pictures,
        test=settings.test_pictures,
        seed=settings.seed,
        one_question_per_row=settings.language_model == "encoder-decoder",
    )
    total = scenes.train + scenes.test + scenes.test // 4
    with console.status(f"drawing {total:,} pictures"):
        write_scenes(folder, scenes)


def read_questions(settings: QuickstartSettings, name: str) -> list[Record]:
    """Read one of the annotation files that ``draw_pictures`` wrote."""
    folder = settings.folder / "scenes"
    return list(read_llava(folder / name, folder))


def frozen_fingerprints(model: VisionLanguageModel) -> dict[str, str]:
    """What changes if a single bit of a frozen part does."""
    return {name: fingerprint(model.get_submodule(name)) for name in ("vision_tower", "language_model")}


def next_commands(settings: QuickstartSettings, test: Sequence[Record]) -> list[str]:
    """What to try next, ready to be pasted."""
    picture = test[0].images[0]
    model = settings.folder / MODEL
    return [
        f'sightbridge ask {model} {picture} "How many shapes are there?"',
        f'sightbridge ask {model} {picture} "Was ist auf dem Bild?"',
        f"sightbridge inspect model {model}",
        f"sightbridge inspect data {settings.folder / 'scenes' / 'train.json'} --format llava --model {model}",
    ]
