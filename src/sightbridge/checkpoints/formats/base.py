"""What a foreign format is, and what one of its files holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sightbridge.checkpoints.sources.base import Weights


@dataclass(frozen=True)
class Found:
    """A foreign file in our words.

    Attributes:
        format: name of the format.
        what: what exactly the file holds, for people: "BLIP-2, stage 2, projection to 2560 wide, no language model".
        weights: all of it under canonical names (``vision_tower.``, ``bridge.``, ``language_model.``, ``adapter.``).
        kind: ``qformer`` for the model of BLIP-2's first stage.
        settings: those settings of a model (``config.model``, nested) that the file's configuration, its shapes or the
            code of its family fix; nothing else.
        tokenizer: folder that holds the tokenizer, if there is one.
        notes: for the report: what was dropped, which quirks are kept.
        partial: whether its bridge is only what trained of one; the rest is in the file that the training started from.
    """

    format: str
    what: str
    weights: Weights
    kind: Literal["generation", "qformer"]
    settings: dict[str, Any]
    tokenizer: Path | None = None
    notes: tuple[str, ...] = ()
    partial: bool = False


@dataclass(frozen=True)
class Format:
    """A layout that files come in.

    Attributes:
        name: as in ``FORMATS``.
        what: for people: "LAVIS .pth (BLIP-2)".
        matches: whether weights are of this format, told by names, shapes and configuration alone.
        read: say what they are; no weight is read for it.
    """

    name: str
    what: str
    matches: Callable[[Weights], bool]
    read: Callable[[Weights], Found]
