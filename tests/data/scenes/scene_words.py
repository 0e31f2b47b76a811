"""Reading texts about scenes back, from the words of ``languages.yaml`` alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import sightbridge.data.scenes
from sightbridge.data.scenes.world import Scene, SceneObject

FILE = Path(sightbridge.data.scenes.__file__).parent / "languages.yaml"
LANGUAGES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))


def flat(value: Any) -> list[str]:
    """All words inside nested dictionaries and lists."""
    if isinstance(value, str):
        return [value]
    return [word for inner in (value.values() if isinstance(value, dict) else value) for word in flat(inner)]


def said(text: str, words: list[str], code: str) -> bool:
    """Whether one of the words is in the text, as a word of its own where there are spaces."""
    if code == "zh":
        return any(word in text for word in words)
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words)


def colour_in(text: str, code: str) -> str | None:
    """The one colour that a text names."""
    colours = LANGUAGES[code]["colours"].items()
    found = [name for name, forms in colours if said(text, flat({k: v for k, v in forms.items() if k != "a"}), code)]
    assert len(found) < 2, (text, found)
    return found[0] if found else None


def kind_in(text: str, code: str) -> str | None:
    """The one shape or digit that a text names."""
    kinds = LANGUAGES[code]["kinds"].items()
    found = [name for name, forms in kinds if said(text, [forms["one"], forms["many"]], code)]
    found += re.findall(r"\d", text)
    assert len(found) < 2, (text, found)
    return found[0] if found else None


def position_in(text: str, code: str) -> int:
    """The cell that a text names: the longest name, as 'top left' holds 'top'."""
    names = LANGUAGES[code]["positions"]
    return max((name in text, len(name), cell) for cell, name in enumerate(names))[2]


def fitting(scene: Scene, kind: str | None, colour: str | None) -> list[SceneObject]:
    """The objects that have this kind and this colour, if any is given."""
    return [o for o in scene.objects if (kind is None or o.kind == kind) and (colour is None or o.colour == colour)]
