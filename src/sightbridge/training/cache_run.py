"""Filling a recipe's feature cache: check, build what is frozen, look what is missing, encode it."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console

import sightbridge
from sightbridge.config.load import LoadedRecipe
from sightbridge.config.qformer_recipe import ModelRecipe
from sightbridge.data.feature_cache import CacheKey, FeatureCache, write_key
from sightbridge.data.feature_cache_build import build_entries
from sightbridge.data.feature_store import Encode, Views, entry_bytes, to_dtype
from sightbridge.data.picture_hashes import PictureHashes
from sightbridge.errors import DataError
from sightbridge.images.load import image_key
from sightbridge.models.kinds import AnyModel
from sightbridge.training.features import cache_key, make_encode, make_views, wanted_views
from sightbridge.training.loop import make_accelerator
from sightbridge.training.preflight import Checked, check_run
from sightbridge.training.run import build_start, progress_bars

DEFAULT_FOLDER = "feature_cache"
"""Where features go if the recipe says nothing, relative to the working directory."""
SPARE = 1.02
"""Free space asked for, as a multiple of the features' size: names, hashes and the file system take some too."""


@dataclass(frozen=True)
class CachePlan:
    """What filling a cache means, known before a picture is opened.

    ``there`` and ``missing`` count views of pictures; ``shape`` is that of one view's features.
    """

    folder: Path
    key: CacheKey
    prefix: str
    shape: tuple[int, ...]
    picture_bytes: int
    there: int
    missing: int
    free_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes that are to be written."""
        return self.missing * self.picture_bytes


@dataclass(frozen=True)
class CacheResult:
    """What was done: the plan, and the pictures that cannot be opened, with the reason, of this process."""

    plan: CachePlan
    bad: dict[str, str] = field(default_factory=dict)


Progress = Callable[[CachePlan], AbstractContextManager[Callable[[int], None]]]
"""Called once with the plan; inside of what it returns, its value is called with the number of pictures done."""


def build_recipe_cache(
    loaded: LoadedRecipe, progress: Progress, *, batch_size: int = 32, only_plan: bool = False
) -> CacheResult:
    """Encode what is missing of a recipe's pictures and store it in ``data.cache``.

    One process or many, as ``torchrun`` or ``accelerate launch`` started it; each writes shards of its own.

    Raises ``SettingsError`` and ``DataError`` for all that training would refuse, if nothing is frozen in front, and if
    the disk has no room.
    """
    recipe = loaded.recipe
    assert isinstance(recipe, ModelRecipe)
    accelerator = make_accelerator(recipe.training.precision)
    checked = check_run(loaded, progress_bars(shown=accelerator.is_main_process))
    model = build_start(loaded, recipe, Console(quiet=True))
    encode = make_encode(recipe, model, accelerator)
    views = make_views(recipe)
    cache = _open(recipe, model, checked, views, loaded.name, accelerator)
    wanted = cache.entries(wanted_views(checked, views))
    missing = cache.missing(wanted)
    accelerator.wait_for_everyone()  # all must have looked before one begins to write
    plan = _plan(cache, recipe, encode, len(wanted), len(missing))
    with progress(plan) as advance:
        if only_plan:
            return CacheResult(plan)
        _check_room(plan)
        share = dict(islice(missing.items(), accelerator.process_index, None, accelerator.num_processes))
        bad = build_entries(
            cache.folder,
            share,
            views,
            encode,
            recipe.data.cache_dtype,
            batch_size=batch_size,
            workers=recipe.data.workers,
            process=accelerator.process_index,
            advance=advance,
        )
        accelerator.wait_for_everyone()
    return CacheResult(plan, bad)


def _open(
    recipe: ModelRecipe,
    model: AnyModel,
    checked: Checked,
    views: Views,
    name: str,
    accelerator: Accelerator,
) -> FeatureCache:
    """The cache as it is, after every process has hashed its share of the pictures that nobody has hashed before."""
    folder, key = Path(recipe.data.cache or DEFAULT_FOLDER), cache_key(recipe, model)
    if accelerator.is_main_process:
        packages = {package: version(package) for package in ("torch", "transformers", "pillow")}
        write_key(
            folder,
            key,
            {
                "recipe": name,
                "vision tower": recipe.model.vision_tower.source or "random weights",
                "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
                "versions": {"sightbridge": sightbridge.__version__, **packages},
            },
        )
    accelerator.wait_for_everyone()
    cache = FeatureCache(folder, key, views)
    sources = list({image_key(view.source): view.source for view in wanted_views(checked, views)}.values())
    cache.hashes.learn(sources[accelerator.process_index :: accelerator.num_processes], accelerator.process_index)
    accelerator.wait_for_everyone()
    cache.hashes.reload()
    return cache


def _plan(cache: FeatureCache, recipe: ModelRecipe, encode: Encode, wanted: int, missing: int) -> CachePlan:
    """Encode a blank picture to know the size of features, and count."""
    size = recipe.model.image.size
    (features,) = encode(torch.zeros(1, 3, size, size))
    return CachePlan(
        folder=cache.folder,
        key=cache.key,
        prefix=cache.prefix,
        shape=tuple(features.shape),
        picture_bytes=entry_bytes(*to_dtype(features, recipe.data.cache_dtype)),
        there=wanted - missing,
        missing=missing,
        free_bytes=shutil.disk_usage(cache.folder).free,
    )


def _check_room(plan: CachePlan) -> None:
    if plan.nbytes * SPARE > plan.free_bytes:
        raise DataError(
            f"{plan.folder}: {plan.missing:,} pictures take {plan.nbytes / 1e9:.1f} GB, but only "
            f"{plan.free_bytes / 1e9:.1f} GB are free there. Choose another disk (data.cache=FOLDER), a smaller type "
            "(data.cache_dtype=fp8) or fewer views."
        )


def used_entries(folder: Path, recipes: Sequence[LoadedRecipe]) -> dict[str, set[str]]:
    """The entries of a cache that ``recipes`` look up, by the name of their key's folder."""
    used: dict[str, set[str]] = {}
    hashes = PictureHashes(folder)
    for loaded in recipes:
        recipe = loaded.recipe
        assert isinstance(recipe, ModelRecipe)
        checked, views = check_run(loaded), make_views(recipe)
        key = cache_key(recipe, build_start(loaded, recipe, Console(quiet=True)))
        entries = FeatureCache(folder, key, views, hashes).entries(wanted_views(checked, views))
        used.setdefault(key.folder, set()).update(entries)
    return used
