"""Opening a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightbridge.errors import CheckpointError


def load_tokenizer(source: str | Path, legacy: bool | None = None, setting: str = "language_model.tokenizer") -> Any:
    """Open the tokenizer in a folder (or of a hub name) and make sure that it has a padding token.

    ``legacy`` is the flag of SentencePiece tokenizers that decides whether text behind a special token begins with a
    word boundary; ``None`` leaves what the tokenizer's own files say. A tokenizer without a padding token pads with
    its unknown token, as LLaVA does, or else with its end-of-sequence token: no token is ever added, so no embedding
    table needs to grow. Which of them it is changes no result, since padding is masked by position, not by id.
    ``setting`` is where the message tells to name another one.

    Raises ``CheckpointError`` if there is none, or it cannot be opened.
    """
    from transformers import AutoTokenizer

    options = {} if legacy is None else {"legacy": legacy}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"cannot open a tokenizer in '{source}': {reason.rstrip('.')}. Give a folder with the tokenizer's "
            f"files (tokenizer.json, or a SentencePiece model with its tokenizer_config.json) as {setting}."
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise CheckpointError(f"the tokenizer in '{source}' has no padding, unknown or end-of-sequence token.")
    return tokenizer
