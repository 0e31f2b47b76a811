"""What our exports for transformers leave beside the weights, for which its classes have no place."""

from __future__ import annotations

import json
from dataclasses import replace

from pydantic import ValidationError

from sightbridge.checkpoints.formats.base import Found
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.config.model import PromptSettings
from sightbridge.errors import CheckpointError

PROMPT = "sightbridge_prompt.json"
"""How prompts are written: template, system text, switches, lengths."""
ADAPTER_CONFIG = "adapter/adapter_config.json"
MAX_BYTES = 1 << 20


def with_beside(found: Found, weights: Weights) -> Found:
    """What was found, with the prompt settings of an export, and a note on adapters that were not merged into it.

    Raises ``CheckpointError`` if the prompt settings are damaged.
    """
    if not weights.path.is_dir():
        return found
    if (weights.path / ADAPTER_CONFIG).is_file():
        note = "left out: the adapters in adapter/. 'sightbridge export --merge' puts them inside before"
        found = replace(found, notes=(*found.notes, note))
    path = weights.path / PROMPT
    if not path.is_file() or found.kind != "generation":
        return found
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too long")
        prompt = PromptSettings.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not the prompt settings that an export writes ({reason}).") from error
    notes = [note for note in found.notes if "prompt template" not in note]  # which one was guessed
    notes.append(f"prompt template {prompt.template}, from {PROMPT}")
    return replace(
        found, settings=found.settings | {"prompt": prompt.model_dump(exclude_none=True)}, notes=tuple(notes)
    )
