"""Foreign formats, one file for each family; all that is known of their names and quirks lives here."""

from __future__ import annotations

import re
from collections import Counter

from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.clip_flant5 import CLIP_FLANT5
from sightbridge.checkpoints.formats.hf_blip2 import HF_BLIP2
from sightbridge.checkpoints.formats.hf_llava import HF_LLAVA
from sightbridge.checkpoints.formats.lavis import LAVIS, LAVIS_TOWER
from sightbridge.checkpoints.formats.llava import LLAVA, LLAVA_LORA
from sightbridge.checkpoints.formats.mblip import MBLIP
from sightbridge.checkpoints.formats.minigpt4qwen import MINIGPT4QWEN
from sightbridge.checkpoints.formats.mm_projector import MM_PROJECTOR
from sightbridge.checkpoints.formats.paddle import PADDLE
from sightbridge.checkpoints.formats.qwen1 import QWEN1
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.errors import CheckpointError

__all__ = ["FORMATS", "Format", "Found", "detect"]

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        LLAVA,
        LLAVA_LORA,
        MM_PROJECTOR,
        HF_LLAVA,
        CLIP_FLANT5,
        LAVIS,
        LAVIS_TOWER,
        PADDLE,
        HF_BLIP2,
        MBLIP,
        MINIGPT4QWEN,
        QWEN1,
    )
}
"""Every format that can be read, by name. A family's module lists its own; a new family adds a line here."""


def detect(weights: Weights) -> Format:
    """Return the one format that ``weights`` are of, told by their content, never by the name of a file.

    Raises:
        CheckpointError: none, or more than one, with what was seen there.
    """
    matching = [format for format in FORMATS.values() if format.matches(weights)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise CheckpointError(
            f"{weights.path}: could be any of {', '.join(f.what for f in matching)}. It has {_seen(weights)}."
        )
    known = "; ".join(format.what for format in FORMATS.values())
    raise CheckpointError(f"{weights.path}: of no known format. It has {_seen(weights)}. Known: {known}.")


def _seen(weights: Weights) -> str:
    """What stands out: how many names of which beginnings, and the model's type in a config.json."""
    beginnings = Counter(".".join(re.sub(r"\d+", "{n}", name).split(".")[:2]) for name in weights.infos)
    listed = ", ".join(f"{name}* ({count})" for name, count in beginnings.most_common(6))
    more = f" and {len(beginnings) - 6} more beginnings" if len(beginnings) > 6 else ""
    kind = (weights.config or {}).get("model_type")
    config = f"a config.json of type '{kind}'" if kind else "no model type in a config.json"
    return f"{len(weights.infos)} weights: {listed}{more}; {config}"
