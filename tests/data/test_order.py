"""The order of the data: what comes when depends on seed, sizes and lengths alone, and nothing is lost."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import pytest

from sightbridge.data.order import RecordOrder, RowLength, RowRoom, mixed_order, pack, record_order

SAMPLER = Path(__file__).parents[1] / "golden" / "llava" / "order" / "sampler.json"
EIGHT_OF_SEED_3 = [3, 7, 2, 5, 1, 0, 4, 6, 4, 2, 7, 3, 5, 0, 1, 6]


def steps_of(order: RecordOrder, size: int, epochs: int) -> list:
    return [step for epoch in range(epochs) for step in order.steps(epoch, size)]


def indices(steps: list) -> list[int]:
    return [index for step in steps for row in step for _, index in row]


def some_lengths(number: int, decoder: int = 0) -> list[RowLength]:
    draw = random.Random(5)
    return [
        RowLength(draw.choice([4, 7, 12, 25, 60]), draw.randint(1, decoder) if decoder else 0, draw.choice([0, 1, 1]))
        for _ in range(number)
    ]


def test_the_order_of_released_runs_stays() -> None:
    """What a seed meant yesterday it means tomorrow: runs can be repeated."""
    assert [index for _, index in islice(record_order(8, seed=3), 16)] == EIGHT_OF_SEED_3
    assert indices(steps_of(RecordOrder([5, 3], seed=3), 4, 2)) == EIGHT_OF_SEED_3
    assert list(islice(record_order(8, 3), 20))[13:] == list(islice(record_order(8, 3, start=13), 7))


# --- mixtures ---


def test_a_mixture_draws_by_weight_and_repeats_no_record_before_its_source_is_through() -> None:
    sizes, weights = [40, 10, 50], [1.0, 2.0, 1.0]
    keys = list(islice(mixed_order(sizes, weights, seed=1), 4000))
    sources = [0 if index < 40 else 1 if index < 50 else 2 for _, index in keys]
    shares = [Counter(sources)[source] / 4000 for source in range(3)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    for source, size in enumerate(sizes):
        own = [key for key, of in zip(keys, sources, strict=True) if of == source]
        for epoch in range(len(own) // size):
            part = own[epoch * size : (epoch + 1) * size]
            assert {number for number, _ in part} == {epoch}
            assert len({index for _, index in part}) == size
    per_epoch = [Counter(sources[n : n + 100])[1] for n in range(0, 4000, 100)]
    assert len(set(per_epoch)) > 5, "draws are independent, not dealt out"


def test_a_mixture_goes_on_from_anywhere_and_depends_on_the_seed() -> None:
    whole = list(islice(mixed_order([4, 9], [3, 1], seed=2), 100))
    for start in (0, 5, 13, 40, 77):
        assert list(islice(mixed_order([4, 9], [3, 1], seed=2, start=start), 20)) == whole[start : start + 20]
    assert whole != list(islice(mixed_order([4, 9], [3, 1], seed=3), 100))


def test_shares() -> None:
    assert RecordOrder([10, 30]).shares == [0.25, 0.75]
    assert RecordOrder([10, 30], weights=[1, 1]).shares == [0.5, 0.5]


# --- grouping ---


def test_grouped_batches_are_alike_in_length_and_kind_and_lose_nothing() -> None:
    lengths = some_lengths(2000)
    plain = RecordOrder([2000], lengths=lengths)
    grouped = RecordOrder([2000], lengths=lengths, group_by_length=True)

    def waste(steps: list) -> float:
        longest = sum(max(lengths[row[0][1]].tokens for row in step) * len(step) for step in steps)
        return 1 - sum(lengths[row[0][1]].tokens for step in steps for row in step) / longest

    before, after = steps_of(plain, 8, 1), steps_of(grouped, 8, 1)
    assert sorted(chain.from_iterable(before)) == sorted(chain.from_iterable(after))
    assert all(len(step) == 8 for step in after)
    assert waste(before) > 0.5 and waste(after) < 0.1
    mixed_kinds = [len({lengths[row[0][1]].images > 0 for row in step}) > 1 for step in after]
    assert sum(mixed_kinds) <= 5, "one for each of the five windows"
    first = [lengths[step[0][0][1]].tokens for step in after[:50]]
    assert first != sorted(first), "steps are shuffled again"


def test_grouping_keeps_epochs_whole_and_can_be_entered_anywhere() -> None:
    order = RecordOrder([30], seed=4, lengths=some_lengths(30), group_by_length=True)
    plain = RecordOrder([30], seed=4)
    for epoch in range(4):
        here, there = list(order.steps(epoch, 8)), list(plain.steps(epoch, 8))
        assert len(here) == order.steps_before(epoch + 1, 8) - order.steps_before(epoch, 8)
        assert sorted(chain.from_iterable(here)) == sorted(chain.from_iterable(there))
    assert Counter(indices(steps_of(order, 8, 4))) == Counter(dict.fromkeys(range(30), 4))


# --- LLaVA's order ---


def order_of(lengths: list[int], batch_size: int, seed: int) -> RecordOrder:
    """Lengths as the reference has them: words, negative without a picture. Tokens are something else altogether."""
    rows = [RowLength(500 - abs(n), 0, int(n > 0), words=abs(n)) for n in lengths]
    return RecordOrder([len(rows)], seed, lengths=rows, llava_batch=batch_size)


@pytest.mark.parametrize("case", json.loads(SAMPLER.read_text()), ids=lambda case: f"{len(case['lengths'])} records")
def test_parity_of_llavas_order(case: dict) -> None:
    """``world_size`` of the reference is processes times accumulated batches; its seed was 99."""
    order = order_of(case["lengths"], case["batch_size"], seed=99)
    steps = list(order.steps(0, case["batch_size"] * case["world_size"]))
    found = indices(steps)
    different = sum(a != b for a, b in zip(found, case["by_modality"], strict=False))
    print(f"LLaVA's order of {len(case['lengths'])} records: {different} in another place")
    assert found[: len(case["lengths"])] == case["by_modality"]
    filled_up = [key for step in steps for row in step for key in row][len(case["lengths"]) :]
    assert {epoch for epoch, _ in filled_up} <= {1}, "the reference's last step is short"


def test_llavas_order_loses_nothing_in_any_epoch_and_keeps_kinds_apart() -> None:
    draw = random.Random(1)
    lengths = [draw.choice([-1, 1]) * draw.randint(1, 80) for _ in range(203)]
    order = order_of(lengths, 4, seed=7)
    for size in (8, 32):
        steps = steps_of(order, size, 4)
        assert all(len(step) == size for step in steps)
        assert Counter(key for step in steps for row in step for key in row).most_common(1)[0][1] == 1
        assert Counter(indices(steps)[: 203 * 4]) == Counter(dict.fromkeys(range(203), 4))
        mixed = [len({lengths[row[0][1]] > 0 for row in step}) > 1 for step in steps]
        assert sum(mixed) <= 3 * 4, "of each epoch what is left over, and the step that the next one fills up"
        other = order_of(lengths, 4, seed=7)
        assert list(other.steps(2, size)) == list(order.steps(2, size)), "without having been through epochs 0 and 1"
    assert list(order_of(lengths, 4, seed=8).steps(0, 8)) != list(order.steps(0, 8))


def test_llavas_order_of_a_mixture_and_of_fewer_records_than_a_step() -> None:
    lengths = [RowLength(9, 0, index % 2, words=index + 1) for index in range(10)]
    mixture = RecordOrder([4, 6], 3, weights=[3, 1], lengths=lengths, llava_batch=2)
    drawn = [key for row in islice(mixture.rows(0), 20) for key in row]
    grouped = [key for step in steps_of(mixture, 4, 2) for row in step for key in row]
    assert Counter(grouped) == Counter(drawn)
    few = order_of([5, -3, 2], 4, seed=1)
    steps = steps_of(few, 8, 8)
    assert [len(step) for step in steps] == [8, 8, 8] and Counter(indices(steps)) == Counter(dict.fromkeys(range(3), 8))


# --- packing ---


@pytest.mark.parametrize("decoder", [0, 10])
def test_packed_rows_lose_nothing_overflow_nowhere_and_are_well_filled(decoder: int) -> None:
    lengths = some_lengths(3000, decoder)
    room = RowRoom(128, 64)
    order = RecordOrder([3000], lengths=lengths, pack_to=room)
    rows = list(chain.from_iterable(steps_of(order, 4, 2)))[: order.rows_before(2)]
    assert Counter(index for row in rows for _, index in row) == Counter(dict.fromkeys(range(3000), 2))
    for row in rows:
        assert sum(lengths[index].tokens for _, index in row) <= 128
        assert sum(lengths[index].decoder_tokens for _, index in row) <= 64
    filled = sum(lengths[index].tokens for row in rows for _, index in row) / (128 * len(rows))
    assert filled > (0.9 if decoder else 0.95), "of rows with answers some are full on the decoder's side first"
    sizes = [len(row) for row in rows[:100]]
    assert sizes != sorted(sizes), "rows are shuffled"


def test_packed_epochs_join_to_steps_without_gap_and_can_be_entered_anywhere() -> None:
    def make() -> RecordOrder:
        return RecordOrder([50], seed=2, lengths=some_lengths(50), pack_to=RowRoom(100, 100))

    order = make()
    assert order.rows_per_epoch == order.rows_before(1) == len(list(islice(order.rows(0), order.rows_before(1))))
    whole = list(islice(order.rows(0), order.rows_before(5)))
    assert Counter(index for row in whole for _, index in row) == Counter(dict.fromkeys(range(50), 5))
    assert {epoch for row in whole[order.rows_before(3) : order.rows_before(4)] for epoch, _ in row} == {3}
    steps = steps_of(order, 4, 5)
    assert [row for step in steps for row in step][: len(whole)] == whole
    assert list(make().steps(3, 4)) == list(order.steps(3, 4)), "without having been through epochs 0 to 2"
    assert list(islice(make().rows(17), 20)) == whole[17:37]


def test_more_epochs_than_rows_in_a_step() -> None:
    order = RecordOrder([3], lengths=[RowLength(5, 0, 0)] * 3, pack_to=RowRoom(10, 0))
    assert order.rows_per_epoch == 2
    assert [len(list(order.steps(epoch, 8))) for epoch in range(5)] == [1, 0, 0, 0, 1]


def test_best_fit_by_hand() -> None:
    lengths = [RowLength(n, d, 0) for n, d in [(6, 1), (5, 1), (4, 1), (3, 5), (2, 1)]]
    keys = [(0, index) for index in range(5)]
    rows = [[index for _, index in row] for row in pack(keys, lengths, RowRoom(10, 6))]
    assert rows == [[0, 2], [1, 3], [4]], (
        "the last one fits by length into the second row, but not on its decoder's side"
    )
    assert [len(row) for row in pack(keys, lengths, RowRoom(10, 99))] == [2, 3]
