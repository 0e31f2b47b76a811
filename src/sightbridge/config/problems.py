"""Wrong settings in words of our own: one line per problem, with its dotted key and where it was given."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from sightbridge.config.base import Settings
from sightbridge.config.describe import group_at, known_keys
from sightbridge.config.yaml_tree import Given
from sightbridge.errors import SettingsError, nearest

Path = tuple[str | int, ...]
AnySettings = TypeVar("AnySettings", bound=Settings)

EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a group of settings",
    "model_type": "a group of settings",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "too_long": "at most {max_length} values",
    "too_short": "at least {min_length} values",
}
"""What was expected, for each of pydantic's error types that our settings can meet."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where in the settings, and what, without the key."""

    path: Path
    text: str

    @property
    def key(self) -> str:
        """The dotted key."""
        return ".".join(map(str, self.path))


def validate(root: type[AnySettings], tree: Given) -> AnySettings:
    """Make settings of a tree, or tell everything that is wrong with it.

    Validation is strict (``true`` is no number, ``"3"`` neither) and goes through JSON, where pydantic still takes a
    list for a tuple.

    Raises:
        SettingsError: with one line per problem.
    """
    try:
        return root.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        problems = find_problems(root, tree, error)
    lines = [": ".join(filter(None, (origin(tree, p.path), p.key, p.text))) for p in problems]
    if len(lines) == 1:
        raise SettingsError(lines[0], problems[0].key)
    raise SettingsError("\n  ".join([f"{len(lines)} problems in the settings", *lines]), problems[0].key)


def origin(tree: Given, path: Path) -> str:
    """Where the value at ``path`` was given, or else the nearest group around it."""
    for key in path:
        child = tree.step(key)
        if child is None:
            break
        tree = child
    return tree.where


def find_problems(root: type[Settings], tree: Given, error: ValidationError) -> list[Problem]:
    """Translate pydantic's errors; the branches of a union that were all tried become one problem."""
    by_path: dict[Path, list[str]] = {}
    details = [(*_key_path(tree, item), item) for item in error.errors(include_url=False)]
    for path, in_union, item in details:
        # [1, x] for `list[int] | "output"` is a list with a bad element: that it is not "output" says nothing more.
        if in_union and any(other[: len(path)] == path and len(other) > len(path) for other, *_ in details):
            continue
        if item["type"] in EXPECTED:
            by_path.setdefault(path, []).append(_wrong_value(item))
        else:
            by_path[path] = [_other(root, path, item)]
    return [Problem(path, _joined(texts)) for path, texts in by_path.items()]


def _key_path(tree: Given, item: Any) -> tuple[Path, bool]:
    """Keys from pydantic's location, which also names the branches of unions; and whether it named one."""
    path: list[str | int] = []
    in_union = False
    last = len(item["loc"]) - 1
    for index, key in enumerate(item["loc"]):
        child = tree.step(key)
        if child is not None:
            tree = child
        elif not (index == last and item["type"] == "missing"):
            in_union = True
            continue
        path.append(key)
    error = item.get("ctx", {}).get("error")
    if isinstance(error, SettingsError) and error.key:
        path += error.key.split(".")
    return tuple(path), in_union


def _wrong_value(item: Any) -> str:
    expected = EXPECTED[item["type"]].format(**item.get("ctx", {}))
    value = item["input"]
    hint = ""
    if item["type"] == "literal_error" and isinstance(value, str):
        hint = "." + nearest(value, re.findall(r"'([^']*)'", expected))
    return f"expected {expected}, got {show(value)}{hint if hint != '.' else ''}"


def _joined(texts: list[str]) -> str:
    """``expected a, got x`` and ``expected b, got x`` make ``expected a or b, got x``."""
    if len(texts) == 1:
        return texts[0]
    expected = [text.removeprefix("expected ").rsplit(", got ", 1)[0] for text in texts]
    return f"expected {' or '.join(dict.fromkeys(expected))}, got {texts[0].rsplit(', got ', 1)[1]}"


def _other(root: type[Settings], path: Path, item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return _unknown_key(root, path)
    if item["type"] == "missing":
        return "missing, it must be given" if isinstance(path[-1], str) else "missing, the list is too short"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    return item["msg"]


def _unknown_key(root: type[Settings], path: Path) -> str:
    """Point to the nearest sibling, else to the same name elsewhere, else list the siblings."""
    *parents, key = path
    name = str(key)
    group = group_at(root, tuple(parents))
    siblings = list(group.model_fields) if group else []
    hint = nearest(name, siblings)
    if not hint:
        elsewhere = [known for known in known_keys(root) if known.rsplit(".", 1)[-1] == name]
        hint = f" Did you mean '{elsewhere[0]}'?" if elsewhere else f" Known here: {', '.join(siblings)}."
    return f"unknown setting.{hint}"


def show(value: Any) -> str:
    """A value as it would be written, shortened to fit into a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
