"""YAML read safely into a tree in which every value knows where it was given.

PyYAML only splits the text into nodes; what a scalar means follows the core schema of YAML 1.2 (yaml.org/spec/1.2.2,
section 10.3): ``1e-4`` is a number, ``no`` and ``2024-01-01`` are text. No tag can make an object.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from sightbridge.errors import SettingsError

MAX_BYTES = 256 * 1024
"""Largest settings file; far above any recipe, far below what would stall the parser."""
MAX_VALUES = 20_000
"""Most values in one file, aliases counted each time they are used."""

Scalar = str | int | float | bool | None
Where = Callable[[int], str]
"""From a line number, counted from 1, to the place shown in messages: ``my.yaml:12`` or ``override 3``."""


@dataclass(frozen=True)
class Given:
    """A value as somebody gave it. ``replaces`` marks a ``!replace`` mapping, which is not merged into its base."""

    value: dict[str, Given] | list[Given] | Scalar
    where: str
    replaces: bool = False

    def plain(self) -> Any:
        """The value without its origins."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def step(self, key: str | int) -> Given | None:
        """The value under one key or list index, or ``None`` if nobody gave one."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and str(key).isdecimal() and int(key) < len(self.value):
            return self.value[int(key)]
        return None


def merge(base: Given, over: Given) -> Given:
    """Lay ``over`` on ``base``: mappings merge key by key, everything else is replaced."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)) or over.replaces:
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Given(merged, over.where)


def replace_at(tree: Given, keys: list[str], value: Given, done: tuple[str, ...] = ()) -> Given:
    """Return ``tree`` with ``value`` at a path of keys; missing mappings on the way are made.

    Raises:
        SettingsError: the path leads through a single value, or to a list element that is not there.
    """
    if not keys:
        return value
    head, *rest = keys
    nothing = Given({}, value.where)
    if tree.value is None or isinstance(tree.value, dict):
        children = tree.value or {}
        return Given(children | {head: replace_at(children.get(head, nothing), rest, value, (*done, head))}, tree.where)
    parent = ".".join(done)
    if not isinstance(tree.value, list):
        raise SettingsError(
            f"{value.where}: {parent} is the single value {tree.plain()!r}, it has no '{head}' inside", parent
        )
    child = tree.step(head)
    if child is None:
        raise SettingsError(f"{value.where}: {parent} has no element '{head}' (it has {len(tree.value)})", parent)
    elements = list(tree.value)
    elements[int(head)] = replace_at(child, rest, value, (*done, head))
    return Given(elements, tree.where)


def read_yaml(text: str, where: Where) -> Given | None:
    """Parse one YAML document; ``None`` if it is empty or only a comment.

    Raises:
        SettingsError: invalid YAML, a duplicate key, an unknown tag, or more than the bounds allow.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise SettingsError(f"{where(1)}: larger than {MAX_BYTES // 1024} KiB, which no settings need")
    try:
        node = yaml.compose(text, Loader=CoreLoader)
        return None if node is None else _TreeBuilder(where).build(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        detail = ", ".join(part for part in (error.context, error.problem) if part)
        raise SettingsError(f"{where(mark.line + 1 if mark else 1)}: not valid YAML: {detail}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SettingsError(f"{where(line)}: the character U+{error.character:04X} is not allowed in YAML") from error
    except RecursionError as error:
        raise SettingsError(f"{where(1)}: nested too deeply") from error


class CoreLoader(yaml.SafeLoader):
    """Resolves plain scalars by YAML 1.2's core schema, with ``_`` allowed between the digits of whole numbers."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own way)


_TAG = "tag:yaml.org,2002:"
CORE_SCALARS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    (f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    (f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    (f"{_TAG}int", re.compile(r"(?:[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+)\Z"), list("-+0123456789")),
    (
        f"{_TAG}float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        list("-+.0123456789"),
    ),
)
"""Tag, pattern and possible first characters of every plain scalar that is not text."""
for _tag, _pattern, _first in CORE_SCALARS:
    CoreLoader.add_implicit_resolver(_tag, _pattern, _first)

_FROM_TEXT: dict[str, Callable[[str], Scalar]] = {
    f"{_TAG}null": lambda text: None,
    f"{_TAG}bool": lambda text: text.lower() == "true",
    f"{_TAG}int": lambda text: int(text, 16) if text.startswith("0x") else int(text.replace("_", "")),
    f"{_TAG}float": lambda text: float(re.sub(r"\.(?=[iInN])", "", text)),
    f"{_TAG}str": str,
}


class _TreeBuilder:
    """Turns PyYAML's nodes into ``Given`` values, counting them."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self.count = 0

    def build(self, node: yaml.Node, line: int | None = None) -> Given:
        where = self.where(line or node.start_mark.line + 1)
        self.count += 1
        if self.count > MAX_VALUES:
            raise SettingsError(f"{where}: more than {MAX_VALUES} values, which no settings need")
        if isinstance(node, yaml.MappingNode):
            replaces = node.tag == "!replace"
            if not replaces:
                self._check_tag(node.tag, "map", where)
            return Given(self._mapping(node), where, replaces)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node.tag, "seq", where)
            return Given([self.build(child) for child in node.value], where)
        if node.tag not in _FROM_TEXT:
            raise SettingsError(f"{where}: the tag '{node.tag}' is not supported")
        try:
            return Given(_FROM_TEXT[node.tag](node.value), where)
        except ValueError as error:
            raise SettingsError(f"{where}: cannot read '{node.value[:40]}' as a number") from error

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Given]:
        children: dict[str, Given] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                raise SettingsError(f"{self.where(line)}: a key must be a name ('<<' is not supported, 'base:' is)")
            # Keys are names, whatever they look like: `0:` and `null:` are the texts "0" and "null".
            if key_node.value in children:
                raise SettingsError(
                    f"{self.where(line)}: '{key_node.value}' is given twice, first at "
                    f"{children[key_node.value].where}; remove one"
                )
            children[key_node.value] = self.build(value_node, line)
        return children

    @staticmethod
    def _check_tag(tag: str, kind: str, where: str) -> None:
        if tag != f"{_TAG}{kind}":
            raise SettingsError(f"{where}: the tag '{tag}' is not supported")
