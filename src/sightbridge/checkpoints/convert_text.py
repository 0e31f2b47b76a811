"""The tokenizers of a converted model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from sightbridge.checkpoints.connector_text import open_connector_text
from sightbridge.checkpoints.manifest import CONNECTOR_TOKENIZER, TOKENIZER
from sightbridge.config.model import ModelSettings
from sightbridge.data.qformer_processor import load_caption_tokenizer
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import CheckpointError
from sightbridge.models.build import quiet_transformers, resolve_source
from sightbridge.models.kinds import AnyModelSettings


def open_tokenizers(settings: AnyModelSettings, places: Sequence[str], vocabulary: int) -> dict[str, Any]:
    """Open the tokenizer of a model, and that of a connector which reads the question.

    Args:
        settings: of the model.
        places: where the tokenizer may be; the first one that has it counts.
        vocabulary: rows of the table of embeddings that the tokenizer's ids choose from.

    Returns:
        The folder that each goes to, inside that of the model.

    Raises:
        CheckpointError: there is none, or it has more tokens than there are embeddings.
    """
    if not isinstance(settings, ModelSettings):
        opened = {TOKENIZER: load_caption_tokenizer(resolve_source(places[0]))}
    else:
        opened = {TOKENIZER: _open_first(places, settings.language_model.tokenizer_legacy)}
        if reading := open_connector_text(settings.connector):
            opened[CONNECTOR_TOKENIZER] = reading.tokenizer
    tokenizer = opened[TOKENIZER]
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"the tokenizer of '{tokenizer.name_or_path}' has {len(tokenizer)} tokens, but the model has embeddings of "
            f"{vocabulary}. Give the one it was trained with: --tokenizer FOLDER_OR_NAME."
        )
    return opened


def _open_first(places: Sequence[str], legacy: bool | None):
    """Open the tokenizer in the first place that has one; the error of the last if none has."""
    failed: CheckpointError | None = None
    for place in places:
        try:
            # transformers also reads the config.json there, and wonders about types of models that are not its own.
            with quiet_transformers(), warnings.catch_warnings(action="ignore", category=FutureWarning):
                return load_tokenizer(resolve_source(place), legacy)
        except CheckpointError as error:
            failed = error
    reason = f" ({failed})" if failed else ""
    raise CheckpointError(f"no tokenizer was found; say where it is: --tokenizer FOLDER_OR_NAME.{reason}") from failed
