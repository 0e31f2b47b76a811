"""The lengths that LLaVA's order sorts by, of the reference's own rows."""

from __future__ import annotations

import json
from pathlib import Path

from sightbridge.data.readers.llava import read_llava
from sightbridge.training.order import count_words

GOLDEN = Path(__file__).parents[1] / "golden" / "llava"
ROWS = GOLDEN / "rows" / "conv.json"
REFERENCE = json.loads((GOLDEN / "order" / "vip_lengths.json").read_text())
WORDS_OF_A_PICTURE = 128
"""What ``lengths`` of the original data set counts for one, whatever the tower."""


def test_parity_words_of_conversations() -> None:
    """``modality_lengths`` of the original data set: words, negative for a row of text alone."""
    ours = [count_words(record) * (1 if record.images else -1) for record in read_llava(ROWS, ROWS.parent)]
    differ = sum(a != b for a, b in zip(ours, REFERENCE["modality_lengths"], strict=True))
    print(f"parity lengths: {differ} of {len(ours)} differ")
    assert ours == REFERENCE["modality_lengths"]


def test_parity_words_and_pictures_of_conversations() -> None:
    """``lengths`` of the original data set: words, and more for a row with a picture."""
    records = list(read_llava(ROWS, ROWS.parent))
    ours = [count_words(record) + WORDS_OF_A_PICTURE * bool(record.images) for record in records]
    print(
        f"parity lengths: {sum(a != b for a, b in zip(ours, REFERENCE['lengths'], strict=True))} of {len(ours)} differ"
    )
    assert ours == REFERENCE["lengths"]
