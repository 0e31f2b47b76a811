"""Caches that rows join and leave, against plain lists."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sightbridge.serving.engines.slots import ROOM, RowLayer

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 30)),
        st.tuples(st.just("step"), st.integers(1, 2 * ROOM)),
        st.tuples(st.just("drop"), st.integers(0, 99)),
    ),
    max_size=25,
)


@given(MOVES, st.integers(0, 2**31))
def test_a_layer_shows_every_row_at_the_right_edge(moves: list[tuple[str, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, length: int) -> torch.Tensor:
        return torch.randn(rows, 2, length, 3, generator=generator)

    layer, rows = RowLayer(), []
    for move, number in moves:
        if move == "add":
            row = draw(1, number)
            layer.add(row, -row)
            rows.append(row[0])
        elif rows and move == "step":
            for _ in range(number):
                new = draw(len(rows), 1)
                keys, values = layer.update(new, -new)
                rows = [torch.cat([row, one], dim=1) for row, one in zip(rows, new, strict=True)]
            assert keys is layer.keys and values is layer.values
        elif len(rows) > 1:
            index = number % len(rows)
            rows[index] = rows[-1]
            rows.pop()
            layer.drop(index, max(row.shape[1] for row in rows))
        if rows:
            assert layer.keys is not None and layer.values is not None
            width = max(row.shape[1] for row in rows)
            assert layer.keys.shape == (len(rows), 2, width, 3) and layer.get_seq_length() == width
            for index, row in enumerate(rows):
                assert layer.keys[index, :, width - row.shape[1] :].equal(row)
                assert layer.values[index, :, width - row.shape[1] :].equal(-row)
            assert layer.keys.isfinite().all(), "padding is multiplied by zero, which must give zero"
