"""What our exports for transformers leave beside the weights, for which its classes have no place."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from torch import Tensor

from sightbridge.checkpoints.formats.base import Found
from sightbridge.checkpoints.formats.llava import lora_settings
from sightbridge.checkpoints.formats.views import RenamedWeights
from sightbridge.checkpoints.key_map import JoinedWeights
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.config.base import Settings
from sightbridge.config.model import PromptSettings
from sightbridge.errors import CheckpointError

BESIDE = "sightbridge.export.json"
"""Name of the file."""
TOKENIZER = "sightbridge.tokenizer"
"""Folder of the tokenizer as it was before it learnt a word for pictures."""
ADAPTER = "adapter"
"""Folder of adapters that were not merged, with the names of modules in the whole model."""
PEFT = "base_model.model."
LANGUAGE_MODEL = "language_model."
TABLES = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "lm_head.weight", "lm_head.bias")
"""Ends of the names of what has a row for every word."""
MAX_BYTES = 1 << 20


class Beside(Settings):
    """How prompts are written, and how many words the language model knew before one was added for pictures."""

    prompt: PromptSettings
    vocabulary: int | None = Field(default=None, ge=1)


def with_beside(found: Found, weights: Weights) -> Found:
    """What was found, with the prompt settings, without the rows that were added, and with adapters that lie apart.

    Raises ``CheckpointError`` if any of it is damaged.
    """
    if not weights.path.is_dir() or found.kind != "generation":
        return found
    if (weights.path / BESIDE).is_file():
        beside = _read(weights.path / BESIDE)
        found = _with_prompt(found, beside.prompt)
        if beside.vocabulary:
            found = _without_added_rows(found, beside.vocabulary)
    if (weights.path / TOKENIZER).is_dir():
        found = replace(found, tokenizer=weights.path / TOKENIZER)
    if (weights.path / ADAPTER / "adapter_config.json").is_file():
        found = _with_adapter(found, weights.path / ADAPTER)
    return found


def _read(path: Path) -> Beside:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too long")
        return Beside.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not what an export writes beside its weights ({reason}).") from error


def _with_prompt(found: Found, prompt: PromptSettings) -> Found:
    notes = [note for note in found.notes if "prompt template" not in note]  # which one was guessed
    notes.append(f"prompt template {prompt.template}, from {BESIDE}")
    settings = found.settings | {"prompt": prompt.model_dump(exclude_none=True)}
    return replace(found, settings=settings, notes=tuple(notes))


class FirstRows(RenamedWeights):
    """Weights of which some tables are cut to their first rows."""

    def __init__(self, source: Weights, tables: Collection[str], rows: int) -> None:
        super().__init__(source, {name: name for name in source.infos})
        self.tables, self.rows = tables, rows
        for name in tables:
            self.infos[name] = replace(source.infos[name], shape=(rows, *source.infos[name].shape[1:]))

    def read(self, name: str) -> Tensor:
        """Read it, and cut it if it is one of the tables."""
        tensor = super().read(name)
        return tensor[: self.rows] if name in self.tables else tensor


def _without_added_rows(found: Found, rows: int) -> Found:
    """The tables of words as they were before the export gave pictures a word of their own."""
    infos = found.weights.infos
    tables = [name for name in infos if name.startswith(LANGUAGE_MODEL) and name.endswith(TABLES)]
    grown = [name for name in tables if infos[name].shape and infos[name].shape[0] > rows]
    if not grown:
        return found
    language_model = dict(found.settings["language_model"])
    language_model["config"] = language_model["config"] | {"vocab_size": rows}
    note = f"left out: the word that the export added for pictures; the language model has {rows} again"
    settings = found.settings | {"language_model": language_model}
    return replace(found, weights=FirstRows(found.weights, grown, rows), settings=settings, notes=(*found.notes, note))


def _with_adapter(found: Found, folder: Path) -> Found:
    """Adapters of the language model under the names of its own modules."""
    content: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    weights = open_weights(folder)
    names = {f"adapter.{PEFT}{_own_name(name.removeprefix(PEFT))}": name for name in weights.infos}
    modules = {name.removeprefix(f"adapter.{PEFT}").rpartition(".lora_")[0] for name in names}
    pattern = "|".join(sorted({re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in modules}))
    settings = found.settings | {"lora": lora_settings(content, folder) | {"targets": pattern}}
    joined = JoinedWeights(found.weights, RenamedWeights(weights, names))
    return replace(found, weights=joined, settings=settings, what=f"{found.what}; adapters")


def _own_name(name: str) -> str:
    """A module's name within the language model, which Llava splits into body and head, and Blip2 has as one."""
    if name.startswith("model.language_model."):
        return f"model.{name.removeprefix('model.language_model.')}"
    return name.removeprefix(LANGUAGE_MODEL)
