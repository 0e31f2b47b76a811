"""The tokenizer of a connector that reads the question beside the picture."""

from __future__ import annotations

from pathlib import Path

from sightbridge.config.model import ConnectorSettings
from sightbridge.data.connector_text import ConnectorText
from sightbridge.data.qformer_processor import load_caption_tokenizer
from sightbridge.errors import SettingsError
from sightbridge.models.build import resolve_source
from sightbridge.models.connectors import check_connector
from sightbridge.models.connectors.qformer import QFormerOptions


def open_connector_text(settings: ConnectorSettings, folder: Path | None = None) -> ConnectorText | None:
    """Open the tokenizer that the settings name, or the one in ``folder``; ``None`` if the connector reads no text.

    Raises:
        CheckpointError: there is none, or it cannot be opened.
        SettingsError: an option is wrong, or the tokenizer has more tokens than the connector has embeddings.
    """
    options = check_connector(settings)
    if not isinstance(options, QFormerOptions) or not options.text_input:
        return None
    assert options.text_tokenizer is not None, "checked by the options"
    source = folder or resolve_source(options.text_tokenizer)
    tokenizer = load_caption_tokenizer(str(source))
    if len(tokenizer) > options.text_vocabulary:
        raise SettingsError(
            f"the tokenizer in '{source}' has {len(tokenizer)} tokens, but the Q-Former has embeddings of "
            f"{options.text_vocabulary}. Give the tokenizer it was trained with, or set connector.text_vocabulary.",
            key="connector.text_vocabulary",
        )
    return ConnectorText(tokenizer, options.max_text_length)
