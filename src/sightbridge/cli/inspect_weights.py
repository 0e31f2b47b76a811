"""What ``sightbridge inspect model`` shows of weights in a foreign format."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from sightbridge.cli.console import new_table, show_table, wide_console

if TYPE_CHECKING:
    from sightbridge.checkpoints.describe_foreign import ForeignDescription

FLAGS = {
    "vision tower": "--vision",
    "connector": "--bridge",
    "Q-Former": "--bridge",
    "rest of the connector": "--bridge",
    "language model": "--language-model",
}
"""What names each part on the command line."""
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
MAX_VALUE = 100
"""Characters shown of a value that a file holds beside its tensors."""


def show_foreign(path: Path, found: ForeignDescription) -> None:
    """Print what was found on stdout."""
    out = wide_console()
    for name, value in _facts(path, found):
        out.print(Text(f"{name:<16} ", style="bold").append(value, style="not bold"))
    table = new_table("part", "tensors", "parameters", "size", "type")
    for part in found.parts:
        table.add_row(
            part.name,
            f"{part.tensors:,}",
            f"{part.parameters:,}",
            _size(part.bytes),
            ", ".join(part.types),
        )
    for name in found.absent:
        table.add_row(name, "-", "-", "-", "not in it")
    show_table(table)
    out.print(Text("next: ", style="bold").append(next_step(path, found), style="not bold"))


def next_step(path: Path, found: ForeignDescription) -> str:
    """The command that makes something of it."""
    here = shlex.quote(str(path))
    if found.role == "language_model":
        return f"name it in a recipe (model.language_model.source={here}) or with --language-model when converting"
    if found.role == "vision_tower":
        return f"name it in a recipe (model.vision_tower.source={here}) or with --vision when converting"
    if found.role == "adapter":
        return f"start with them in a model that has some of the same kind (model.lora): training.init_from={here}"
    missing = " ".join(f"{FLAGS[name]} NAME_OR_PATH" for name in found.absent)
    if not {"connector", "Q-Former"} & {part.name for part in found.parts}:
        flag = next((FLAGS[part.name] for part in found.parts if part.name in FLAGS), "--language-model")
        return f"sightbridge merge-weights OUT {flag} {here} {missing}".rstrip()
    return f"sightbridge convert {here} OUT {missing}".rstrip()


def _facts(path: Path, found: ForeignDescription) -> list[tuple[str, str]]:
    files, weights = found.files, found.weights
    size = _size(sum(file.stat().st_size for file in files))
    where = f"{len(files)} file{'s' if len(files) > 1 else ''}, {size}, {len(weights.infos):,} tensors"
    facts = [("folder" if path.is_dir() else "file", str(path)), ("container", f"{weights.kind}, {where}")]
    if found.format:
        facts.append(("format", found.format))
    facts.append(("holds", found.what))
    if weights.config:
        facts.append(("config.json", f"of type {_plain(weights.config.get('model_type', 'unknown'))}"))
    if found.template:
        facts.append(("template", found.template))
    return facts + _beside(weights.extra) + [("note", note) for note in found.notes]


def _beside(extra: dict[str, Any]) -> list[tuple[str, str]]:
    """Plain values that a file holds beside its tensors, and what else was not read."""
    from sightbridge.checkpoints.sources.weights import LEFT_OUT

    single = {name: value for name, value in extra.items() if not isinstance(value, list | tuple | dict)}
    tables = [name for name in extra if name not in single and name != LEFT_OUT]
    facts = []
    if single:
        facts.append(("beside", ", ".join(f"{name} {_plain(value)}" for name, value in list(single.items())[:12])))
    if tables:
        facts.append(("tables beside", ", ".join(tables[:12])))
    if extra.get(LEFT_OUT):
        facts.append(("not read", ", ".join(extra[LEFT_OUT][:12])))
    return facts


def _size(count: int) -> str:
    unit, divisor = next((unit for unit in UNITS if count >= unit[1]), UNITS[-1])
    return f"{count / divisor:,.1f} {unit}"


def _plain(value: Any) -> str:
    """A value on one line, without what could move the cursor."""
    text = "".join(char if char.isprintable() else "?" for char in str(value))
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"
