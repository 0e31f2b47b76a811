"""The lengths that LLaVA's order sorts by, of the reference's own rows."""

from __future__ import annotations

from pathlib import Path

from sightbridge.data.readers.llava import read_llava
from sightbridge.training.order import count_words

ROWS = Path(__file__).parents[1] / "golden" / "llava" / "rows" / "conv.json"


def test_parity_words_of_conversations() -> None:
    """``modality_lengths`` of the original data set: words, negative for a row of text alone."""
    ours = [count_words(record) * (1 if record.images else -1) for record in read_llava(ROWS, ROWS.parent)]
    reference = [16, 21, -10, 36, 16]
    print(f"parity lengths: {sum(a != b for a, b in zip(ours, reference, strict=True))} of {len(ours)} differ")
    assert ours == reference
