"""Stored features of a run: what of its model is frozen in front, under which key its output lies, and opening it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sightbridge.checkpoints.weights import unique_tensors
from sightbridge.config.load import LoadedRecipe
from sightbridge.config.qformer_recipe import ModelRecipe
from sightbridge.config.recipe import Recipe
from sightbridge.data.feature_cache import CacheKey, FeatureCache, check_cache_folder, open_cache
from sightbridge.data.feature_store import Encode, FeatureStore, MemoryFeatures, View, Views
from sightbridge.errors import DataError, ImageError
from sightbridge.images.load import describe_source
from sightbridge.models.kinds import AnyModel
from sightbridge.models.memory import memory_settings
from sightbridge.training.frozen_prefix import MEMORY, frozen_prefix
from sightbridge.training.preflight import Checked, Watch

TOLERANCE = 0.1
"""Largest relative error of stored features against recomputed ones. Rounding stays below 0.03 (fp8) and another
machine's arithmetic below 0.02 (bf16); another transform or other weights give about 1."""


def check_cache_is_there(loaded: LoadedRecipe) -> None:
    """Check, before a weight is loaded, that the cache's folder holds features made with the recipe's settings.

    Raises ``DataError`` that says what differs.
    """
    recipe = loaded.recipe
    assert isinstance(recipe, ModelRecipe)
    if recipe.data.cache not in (None, MEMORY):
        key = cache_key(recipe)
        check_cache_folder(Path(recipe.data.cache), key, cache_command(loaded.name), with_weights=False)


def cache_command(name: str) -> str:
    """The command that fills a cache for a recipe, for messages."""
    return f"sightbridge cache {name} (and the settings that you train with)"


def cache_key(recipe: ModelRecipe, model: AnyModel | None = None) -> CacheKey:
    """The key of a recipe's features; without its model the weights are not in it."""
    prefix = frozen_prefix(recipe)
    assert prefix is not None, "check_cache refuses a tower that trains"
    assert model is None or model.frozen_prefix() == prefix, "the recipe and its model disagree on what is frozen"
    tower = recipe.model.vision_tower.model_dump(mode="json", exclude={"source", "drop_path"})
    parts: dict[str, Any] = {"vision_tower": tower}
    weights = {} if model is None else {"vision_tower": weights_hash(model.vision_tower)}
    if prefix == "connector.read":
        assert isinstance(recipe, Recipe), "a first stage has no connector"
        parts["connector"] = {"kind": recipe.model.connector.kind, **recipe.model.connector.options}
        if model is not None:
            weights["connector"] = weights_hash(model.get_submodule("connector"), leave_out="output.")
    image = recipe.model.image.model_dump(mode="json", exclude={"augment", "crop_scale"})
    if image["mark_anchor"] is None:  # as in caches that are older than marks
        del image["mark_anchor"]
    for name in parts:
        if getattr(recipe.training.parts, name).fp32:
            parts[name]["fp32"] = True
    return CacheKey(
        prefix=prefix,
        weights=weights,
        parts=parts,
        image=image,
        precision=recipe.training.precision,
        dtype=recipe.data.cache_dtype,
    )


def weights_hash(part: nn.Module, leave_out: str = "\0") -> str:
    """SHA-256 of all weights of a part, but for those whose names begin with ``leave_out``, and position tables.

    Resampling a position table for another picture size may differ in the last bit between machines; the size itself
    is in the key.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(unique_tensors(part).items()):
        if not name.startswith(leave_out) and "position" not in name:
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_features(
    loaded: LoadedRecipe, checked: Checked, model: AnyModel, accelerator: Accelerator, watch: Watch
) -> FeatureStore | None:
    """The stored features that a run trains on, if its recipe asks for any: opened, or made in memory.

    Raises ``DataError``, saying what differs or is missing, unless a cache has all of them and they are right.
    """
    recipe = loaded.recipe
    assert isinstance(recipe, ModelRecipe)
    if recipe.data.cache is None:
        return None
    views = make_views(recipe)
    encode = make_encode(recipe, model, accelerator)
    if recipe.data.cache != MEMORY:
        wanted = wanted_views(checked, views)
        folder, command = Path(recipe.data.cache), cache_command(loaded.name)
        cache = open_cache(folder, cache_key(recipe, model), views, wanted, command)
        check_one(cache, wanted_views(checked, views), encode)
        return cache
    shown = "looking at every picture once"
    wanted = chain(views.of(watch(checked.train, shown), True), views.of(watch(checked.validation, shown), False))
    prefix = model.frozen_prefix()
    assert prefix is not None
    return MemoryFeatures(wanted, views, encode, dtype=recipe.data.cache_dtype, prefix=prefix)


def make_views(recipe: ModelRecipe) -> Views:
    """The views of pictures that a run sees."""
    return Views(recipe.model.image, recipe.training.seed, recipe.data.cache_views, recipe.data.decode)


def wanted_views(checked: Checked, views: Views) -> Iterator[View]:
    """Every view that training and validation will look up."""
    return chain(views.of(checked.train, training=True), views.of(checked.validation, training=False))


def make_encode(recipe: ModelRecipe, model: AnyModel, accelerator: Accelerator) -> Encode:
    """The frozen prefix as a function from pixels to features, on the accelerator and in the precision of training."""
    prefix = model.frozen_prefix()
    assert prefix is not None, "check_cache refuses a tower that trains"

    def encode(pixels: Tensor) -> Tensor:
        model.eval()
        for part in (model.vision_tower, *([model.connector] if prefix == "connector.read" else [])):
            part.to(accelerator.device)
        settings = memory_settings(model, recipe.training.parts, recipe.training.precision)
        with settings, accelerator.autocast(), torch.no_grad():
            return model.run_prefix(pixels.to(accelerator.device), prefix)

    return encode


def check_one(cache: FeatureCache, wanted: Iterator[View], encode: Encode) -> None:
    """Recompute the features of the first good picture: a look at everything that no key can know of, such as a
    library that computes differently since.

    Raises ``DataError`` if they are not those in the cache.
    """
    for view in wanted:
        try:
            stored = cache[view].float()
        except ImageError:
            continue
        computed = encode(cache.views.open(view)[None])[0].cpu().float()
        error = float((stored - computed).norm() / computed.norm()) if stored.shape == computed.shape else float("inf")
        if not error <= TOLERANCE:
            raise DataError(
                f"{cache.folder}: the features of {describe_source(view.source)} are not what the model computes now "
                f"(relative error {error:.2g}). Has a library changed since they were made? Delete that folder and run "
                "'sightbridge cache' again."
            )
        return
