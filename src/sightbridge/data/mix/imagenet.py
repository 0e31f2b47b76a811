"""Pictures by class, with names of the classes in many languages (ImageNet and Babel-ImageNet).

``path`` is a folder of class folders, or a list of pictures: lines of ``CLASS/NAME.JPEG``, or rows with ``image`` and
perhaps ``class``. ``classes`` is Babel-ImageNet's table, ``{"DE": [[0, 1], ["Schleie", "Goldfisch"]], ...}``, whose
numbers ``synsets`` turns into names of folders (a line for each, or JSON as ``imagenet_class_index.json``), or
``{"de": {"n01440764": "Schleie"}}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sightbridge.data.mix.files import parse_json, read_object, read_text
from sightbridge.data.mix.sample import Sample, name_picture
from sightbridge.data.mix.settings import PartSettings
from sightbridge.data.readers.rows import read_rows, take, take_id
from sightbridge.errors import DataError, SettingsError
from sightbridge.images.load import ENDINGS
from sightbridge.text.languages import find_language

Classes = list[tuple[str, str]]
"""Folder and name of each class."""


def read_imagenet(path: Path, part: PartSettings, root: Path, languages: Sequence[str]) -> Iterator[Sample]:
    """For each pass, language and class, the class's next picture; the languages come in equal shares for that reason.

    Kind ``decide`` takes a class's pictures from the last one on, as mBLIP does, so it shares few with ``classify``.
    """
    tables = read_classes(part, root)
    pictures = _read_pictures(path)
    for names in pictures.values():
        names.sort(reverse=part.kind == "decide")
    used = dict.fromkeys(pictures, 0)
    known = [code for code in languages if code in tables]
    unknown = {key for code in known for key, _ in tables[code]} - set(pictures)
    if unknown == {key for code in known for key, _ in tables[code]}:
        raise DataError(
            f"{path}: has no picture of any class in the table of names. The classes there are called "
            f"{', '.join(sorted(unknown)[:3])}; the pictures' are {', '.join(sorted(pictures)[:3])}."
        )
    for number in range(part.passes):
        for code in known:
            classes = tables[code]
            everything = [name for _, name in classes]
            for place, (key, name) in enumerate(classes):
                where = f"{path}, class '{key}'"
                if used.get(key, 0) >= len(pictures.get(key, ())):
                    yield Sample((), {}, where, code, dropped="no picture of the class left")
                    continue
                picture = pictures[key][used[key]]
                used[key] += 1
                fields = {"name": name, "next": everything[(place + 1) % len(classes)], "names": everything}
                yield Sample((name_picture(part, picture, where),), fields, f"{where}, pass {number + 1}", code)


def read_classes(part: PartSettings, root: Path) -> dict[str, Classes]:
    """Read the table of class names: for each language that is in our own table, folder and name of every class."""
    if part.classes is None:
        raise SettingsError(f"kind '{part.kind}' needs 'classes', the table of class names", "classes")
    path = root / part.classes
    folders = _read_synsets(root / part.synsets) if part.synsets else None
    tables = {}
    for code, table in read_object(path).items():
        try:
            language = find_language(code).code
        except SettingsError:
            continue  # Babel-ImageNet has about 300 languages; nobody asked for this one
        tables[language] = _read_table(table, folders, f"{path}, language '{code}'")
    return tables


def _read_table(table: Any, folders: dict[str, str] | None, where: str) -> Classes:
    if isinstance(table, dict):
        pairs = list(table.items())
    elif isinstance(table, list) and len(table) == 2 and all(isinstance(half, list) for half in table):
        if len(table[0]) != len(table[1]):
            raise DataError(f"{where}: {len(table[0])} numbers of classes, but {len(table[1])} names.")
        pairs = [(str(number), name) for number, name in zip(*table, strict=True)]
    else:
        raise DataError(f"{where}: expected [[numbers], [names]] or {{class: name}}.")
    for key, name in pairs:
        if not isinstance(name, str):
            raise DataError(f"{where}, class '{key}': expected a name, got {name!r}.")
        if folders is not None and key not in folders:
            raise DataError(f"{where}: 'synsets' has no class number {key}.")
    return [(folders[key] if folders else key, name) for key, name in pairs]


def _read_synsets(path: Path) -> dict[str, str]:
    """Folders by class number, from a JSON object, a JSON list or lines."""
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "["):
        content = parse_json(text, path)
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return {str(number): value[0] if isinstance(value, list) else str(value) for number, value in pairs}
    return {str(number): line.split()[0] for number, line in enumerate(filter(str.strip, text.splitlines()))}


def _read_pictures(path: Path) -> dict[str, list[str]]:
    """Names of pictures by class."""
    pictures: dict[str, list[str]] = {}
    if path.is_dir():
        names = [
            f"{folder.name}/{file.name}" for folder in path.iterdir() if folder.is_dir() for file in folder.iterdir()
        ]
        pairs = [(str(PurePosixPath(name).parent.name), name) for name in names if name.lower().endswith(ENDINGS)]
    elif path.suffix == ".txt":
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        pairs = [(PurePosixPath(line).parent.name, line) for line in lines]
    else:
        pairs = []
        for _, where, row in read_rows(path):
            name = take(row, "image", (str,), where, "a file name")
            pairs.append((take_id(row, "class", where) or PurePosixPath(name).parent.name, name))
    for key, name in pairs:
        pictures.setdefault(key, []).append(name)
    if not pictures:
        raise DataError(f"{path}: holds no picture.")
    return pictures
