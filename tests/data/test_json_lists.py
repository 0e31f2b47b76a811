"""JSON lists are decoded element by element, with the values and the messages that decoding them whole would give."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightbridge.data.readers import rows
from sightbridge.errors import DataError

TEXT = st.text(alphabet='ab"\\\n{}[],: é😀', max_size=10)
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


def read(text: str) -> list[Any]:
    return [row for _, _, row in rows._list_rows(Path("p"), io.StringIO(text))]


@given(
    values=st.lists(VALUE, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    window=st.sampled_from([1, 3, 40]),
    damage=st.none() | st.tuples(st.integers(0, 200), st.sampled_from(["", "x", '"', ",", "]", "1."])),
)
def test_lists_are_read_as_json_reads_them(
    values: list[Any], indent: int | None, window: int, damage: tuple[int, str] | None
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=False)
    if damage is not None:
        place = 1 + damage[0] % len(text)  # the bracket stays: it is what tells a list
        text = text[:place] + damage[1] + text[place + 1 :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "WINDOW", window)
        try:
            expected = json.loads(text)
        except json.JSONDecodeError as error:
            with pytest.raises(DataError) as refused:
                read(text)
            assert str(refused.value) == f"p, line {error.lineno}, column {error.colno}: broken JSON: {error.msg}."
        else:
            assert json.dumps(read(text)) == json.dumps(expected)


def test_rows_come_before_the_file_is_read_to_its_end() -> None:
    class Watched(io.StringIO):
        asked = 0

        def read(self, size: int | None = -1) -> str:
            self.asked += size or 0
            return super().read(size)

    file = Watched(json.dumps([{"text": "x" * 1000}] * 10_000))
    elements = rows._list_rows(Path("p"), file)
    next(elements)
    assert file.asked == rows.WINDOW < 10_000_000 // 2
    assert sum(1 for _ in elements) == 9_999
