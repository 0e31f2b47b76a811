"""What the settings are: their keys, meanings and values, and a JSON schema for editors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin

from pydantic.json_schema import models_json_schema

from sightbridge.config.base import Settings
from sightbridge.config.recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe: its dotted key, its value and what it means ("" inside free-form settings)."""

    key: str
    value: Any
    meaning: str


def describe(settings: Settings, prefix: str = "") -> list[Setting]:
    """Every setting with its value and meaning, in the order of the settings models.

    Lists of groups and free-form mappings (Hugging Face configurations, connector options) are opened too, so that
    each key in the result can be used in an override.
    """
    rows: list[Setting] = []
    for name, field in type(settings).model_fields.items():
        rows += _open(f"{prefix}{name}", getattr(settings, name), field.description or "")
    for name, value in (settings.model_extra or {}).items():
        rows += _open(f"{prefix}{name}", value, "")
    return rows


def _open(key: str, value: Any, meaning: str) -> list[Setting]:
    if isinstance(value, Settings):
        return describe(value, f"{key}.")
    if isinstance(value, list) and value and all(isinstance(item, Settings) for item in value):
        return [row for index, item in enumerate(value) for row in describe(item, f"{key}.{index}.")]
    if isinstance(value, dict) and value:
        return [row for name, item in value.items() for row in _open(f"{key}.{name}", item, "")]
    return [Setting(key, value, meaning)]


def group_at(root: type[Settings], path: tuple[str | int, ...]) -> type[Settings] | None:
    """The settings class found at a path of keys, or ``None`` where settings are free-form or single values."""
    group: type[Settings] | None = root
    is_name = False
    for key in path:
        if isinstance(key, int) or is_name:
            is_name = False
            continue  # an element of a list or a mapping of groups has the class that was declared for all
        if group is None or key not in group.model_fields:
            return None
        annotation = group.model_fields[key].annotation
        group, is_name = settings_class(annotation), get_origin(annotation) is dict
    return group


def settings_class(annotation: Any) -> type[Settings] | None:
    """The settings class inside a type such as ``X``, ``X | None`` or ``list[X]``, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for part in get_args(annotation) if (found := settings_class(part))), None)


@cache
def known_keys(root: type[Settings] = Recipe) -> list[str]:
    """Dotted keys of all settings below ``root``, groups included; elements of lists have no key of their own."""
    return list(_walk_keys(root, ""))


def _walk_keys(group: type[Settings], prefix: str) -> Iterator[str]:
    for name, field in group.model_fields.items():
        yield f"{prefix}{name}"
        inner = settings_class(field.annotation)
        if inner and inner is field.annotation:
            yield from _walk_keys(inner, f"{prefix}{name}.")


def recipe_schema(kinds: Sequence[type[Settings]] = (Recipe,)) -> dict[str, Any]:
    """JSON schema of a recipe *file* of one of these kinds, for completion and checks in editors.

    A file may leave anything to its ``base``, so nothing is required here; the loader checks what is missing.
    """
    _, schema = models_json_schema([(kind, "validation") for kind in kinds])
    schema = _without_required(schema)
    for kind in kinds:
        schema["$defs"][kind.__name__]["properties"]["base"] = {
            "type": "string",
            "description": "recipe (name, or path relative to this file) whose settings this file changes",
        }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["anyOf"] = [{"$ref": f"#/$defs/{kind.__name__}"} for kind in kinds]
    return schema


def _without_required(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: _without_required(value)
            for key, value in schema.items()
            if not (key == "required" and isinstance(value, list))
        }
    return [_without_required(item) for item in schema] if isinstance(schema, list) else schema
