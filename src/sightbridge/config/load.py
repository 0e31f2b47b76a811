"""Load a recipe: a YAML file, the files it is based on, and ``key=value`` overrides; write it back when resolved."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TextIO

import yaml

from sightbridge.config.catalogue import find_recipe, recipe_names
from sightbridge.config.chain import ChainRecipe
from sightbridge.config.describe import Setting, describe, recipe_schema
from sightbridge.config.parent import ParentRecipe
from sightbridge.config.problems import origin, validate
from sightbridge.config.qformer_recipe import QFormerRecipe
from sightbridge.config.recipe import Recipe
from sightbridge.config.yaml_tree import CORE_SCALARS, MAX_BYTES, Given, merge, read_yaml, replace_at
from sightbridge.errors import SettingsError

__all__ = [
    "LoadedRecipe",
    "Setting",
    "atomic_file",
    "describe",
    "load_recipe",
    "read_recipe",
    "read_tree",
    "recipe_names",
    "recipe_schema",
    "save_resolved",
    "write_atomically",
]


AnyRecipe = Recipe | QFormerRecipe | ChainRecipe | ParentRecipe
KINDS: dict[str, tuple[type[AnyRecipe], str]] = {
    "parent": (ParentRecipe, "trains a parent on one modality alone and has no model of pictures and text"),
    "chain": (ChainRecipe, "is a chain of several runs"),
    "model.qformer": (QFormerRecipe, "trains a Q-Former that has not met a language model yet"),
}
"""The key that tells a kind of recipe, its class, and what it does; without any of the keys it is a ``Recipe``."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that still knows where each setting was given, for messages and explanations."""

    name: str
    recipe: AnyRecipe
    tree: Given

    def where(self, key: str) -> str:
        """``file:line`` or ``override 3`` of a dotted key, or of the nearest group around it."""
        return origin(self.tree, tuple(key.split(".")))

    def given(self, key: str) -> str | None:
        """Where exactly this key was given; ``None`` if it has its default."""
        found = _find(self.tree, key)
        return found.where if found else None

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Inside this block a ``SettingsError`` that names its key is shown with the place it was given at.

        For checks that only a later room can make, such as the options of a connector.
        """
        try:
            yield
        except SettingsError as error:
            if error.key is None:
                raise
            where, message = self.where(error.key), str(error)
            if message.startswith(f"{where}: "):
                raise
            named = message if error.key in message else f"{error.key}: {message}"
            raise SettingsError(f"{where}: {named}", error.key) from error


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Settings of one run that trains a model.

    Args:
        name_or_path: a shipped recipe such as ``tiny/random``, or a YAML file. A file with a top-level
            ``base: other/recipe`` states only what differs: mappings are merged, lists and single values replaced;
            a mapping tagged ``!replace`` is not merged either.
        overrides: ``optim.lr=1e-4``, ``data.train.0.limit=100``, ``model.prompt.system=null``; values are YAML, and
            replace what was there.

    Raises:
        SettingsError: anything is unknown, missing or of the wrong type; all such problems at once, each with its
            dotted key, what was expected, and the line or override it stands in. Also for a recipe of another kind,
            whose model answers nothing: that of a parent, or of a Q-Former's first stage.
    """
    loaded = read_recipe(name_or_path, overrides)
    if isinstance(loaded.recipe, Recipe):
        return loaded.recipe
    key, what = next((key, what) for key, (kind, what) in KINDS.items() if isinstance(loaded.recipe, kind))
    raise SettingsError(f"{loaded.where(key)}: '{loaded.name}' {what}; 'sightbridge train {loaded.name}' runs it", key)


def read_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Like ``load_recipe``, for recipes of every kind, keeping where each setting was given."""
    tree = read_tree(find_recipe(str(name_or_path)), overrides)
    kind = next((kind for key, (kind, _) in KINDS.items() if _find(tree, key)), Recipe)
    return LoadedRecipe(str(name_or_path), validate(kind, tree), tree)


def read_tree(
    path: Path, overrides: Sequence[str] = (), find: Callable[[str, Path | None], Path] = find_recipe
) -> Given:
    """Read a file of settings laid on its base, which ``find`` looks up by name, and apply ``key=value`` overrides."""
    tree = _read_file(path, (), find)
    for index, override in enumerate(overrides, start=1):
        tree = apply_override(tree, override, f"override {index}")
    return tree


def _find(tree: Given, key: str) -> Given | None:
    """What was given for a dotted key, if anything."""
    found: Given | None = tree
    for part in key.split("."):
        found = found and found.step(part)
    return found


def _read_file(path: Path, based: tuple[Path, ...], find: Callable[[str, Path | None], Path]) -> Given:
    """One file laid on its base, which may have a base itself. ``based`` are the files that led here."""
    if path.resolve() in [known.resolve() for known in based]:
        circle = " -> ".join(str(known) for known in (*based, path))
        raise SettingsError(f"recipes are based on each other in a circle: {circle}", "base")
    tree = _parse(_read_text(path), path)
    if not isinstance(tree.value, dict):
        raise SettingsError(f"{tree.where}: a recipe is a group of settings (key: value)")
    base = tree.value.get("base")
    if base is None:
        return tree
    own = Given({key: child for key, child in tree.value.items() if key != "base"}, tree.where)
    if not isinstance(base.value, str):
        raise SettingsError(f"{base.where}: base: expected the name or path of a recipe", "base")
    try:
        base_path = find(base.value, path.parent)
    except SettingsError as error:
        raise SettingsError(f"{base.where}: base: {error}", "base") from error
    return merge(_read_file(base_path, (*based, path), find), own)


@lru_cache(maxsize=512)
def _parse(text: str, path: Path) -> Given:
    """The tree of a file. Kept, for many recipes share their bases and nothing changes a tree once it is read."""
    return read_yaml(text, lambda line: f"{path}:{line}") or Given({}, f"{path}:1")


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1).decode("utf-8-sig")
    except OSError as error:
        raise SettingsError(f"cannot read recipe '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error


def apply_override(tree: Given, override: str, where: str) -> Given:
    """Return ``tree`` with a ``key=value`` in it; raises ``SettingsError`` if ``override`` is not of that form."""
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise SettingsError(f"{where}: '{override}' is not of the form key=value, such as optim.lr=1e-4")
    try:
        value = read_yaml(text, lambda line: where)
    except SettingsError as error:
        raise SettingsError(f"{error} (in '{override}')") from error
    if value is None:
        raise SettingsError(f"{where}: '{override}' has no value; write {key}=null for none, {key}='\"\"' for no text")
    return replace_at(tree, keys, value)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or our own reader would take for something else."""


for _tag, _pattern, _first in CORE_SCALARS:
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Escape Unicode's own line ends: in any style but double quotes, they are folded into spaces when read."""
    style = '"' if any(end in text for end in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


def save_resolved(recipe: AnyRecipe, path: str | Path) -> None:
    """Write every setting, defaults included, as a YAML file that ``load_recipe`` reads back to an equal recipe."""
    text = yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    write_atomically(
        Path(path), f"# Every setting of one run, defaults included. This file is a recipe itself.\n{text}"
    )


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 file that other processes see either not at all or complete, also after a crash."""
    with atomic_file(path) as file:
        file.write(text)


@contextmanager
def atomic_file(path: Path) -> Iterator[TextIO]:
    """Yield a UTF-8 file to write piece by piece, which takes the place of ``path`` once all of it is on the disk.

    If the block raises, ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
