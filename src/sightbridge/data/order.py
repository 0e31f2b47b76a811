"""The endless order in which records are trained on.

All of it is a pure function of the seed, the sources' sizes and the records' lengths: any place of it can be found
again without having walked there, which is what makes resuming exact and lets every process find its own share.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, count, islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from sightbridge.data.modality_order import modality_order

T = TypeVar("T")
Key = tuple[int, int]
"""Epoch, and index of a record. What is drawn for a record (crops, cuts of its answer) depends on both."""
Keys = tuple[Key, ...]
"""The records of one row of a batch: one, or several when they are packed."""

GROUP_WINDOW = 50
"""Optimiser steps that are sorted by length together: enough for rows of a batch to be alike, few enough for chance to
decide which records meet (the trainer of transformers sorts windows of 50 batches as well)."""
PACK_WINDOW = 1024
"""Records that are packed together; more would fill the rows hardly better."""


class RowLength(NamedTuple):
    """Positions of a record's row, image slots included; of its decoder's row (encoder-decoder only); its pictures.

    ``words`` of all turns are counted only where they matter, for LLaVA's order.
    """

    tokens: int
    decoder_tokens: int
    images: int
    words: int = 0


class RowRoom(NamedTuple):
    """Positions that a packed row, and its decoder's row, have room for."""

    tokens: int
    decoder_tokens: int


class RecordOrder:
    """Endless rows of records, epoch after epoch; an epoch draws as many records as there are.

    Args:
        sizes: records of each source; indices count through the sources one after the other.
        seed: of everything that is drawn.
        weights: how often each source is drawn from, relative to the others (see ``mixed_order``); ``None`` = the
            sources are concatenated, and every record comes once per epoch.
        lengths: of every record; grouping and packing need them.
        group_by_length: rows of a step have similar lengths, and all of them pictures or none.
        llava_batch: records of a batch, for LLaVA's order (see ``modality_order``); ``None`` = another order.
        pack_to: room of a row that several records share; ``None`` = one record per row.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int = 0,
        *,
        weights: Sequence[float] | None = None,
        lengths: Sequence[RowLength] = (),
        group_by_length: bool = False,
        llava_batch: int | None = None,
        pack_to: RowRoom | None = None,
    ) -> None:
        assert sum(map(bool, (group_by_length, llava_batch, pack_to))) <= 1, "one order excludes the others"
        self.sizes = sizes
        self.seed = seed
        self.weights = weights
        self.lengths = lengths
        self.group_by_length = group_by_length
        self.llava_batch = llava_batch
        self.pack_to = pack_to
        self.total = sum(sizes)
        self._plans: dict[int, list[Keys]] = {}
        self._rows_before = [0]

    @property
    def shares(self) -> list[float]:
        """Share of the draws that each source is expected to get."""
        return mixture_shares(self.sizes if self.weights is None else self.weights)

    @property
    def rows_per_epoch(self) -> int:
        """Rows of an epoch. Packing fills a few more or fewer in each; this is the first epoch's number."""
        return self.rows_before(1)

    def rows_before(self, epoch: int) -> int:
        """Rows of all epochs before ``epoch``. Packing has to plan those epochs once: seconds for a million records."""
        if self.pack_to is None:
            return epoch * self.total
        for planned in range(len(self._rows_before) - 1, epoch):
            self._rows_before.append(self._rows_before[-1] + len(self._plan(planned)))
        return self._rows_before[epoch]

    def steps_before(self, epoch: int, size: int) -> int:
        """Steps of ``size`` rows that begin before ``epoch``."""
        return -(-self.rows_before(epoch) // size)

    def steps(self, epoch: int, size: int) -> Iterator[list[Keys]]:
        """Yield the steps that begin in ``epoch``, each ``size`` rows, over all processes and accumulated batches.

        Epochs are cut into steps together: no step is ever short, and one may run over an epoch's end.
        """
        first, end = self.steps_before(epoch, size), self.steps_before(epoch + 1, size)
        if self.llava_batch:
            yield from islice(chunked(self._llava_rows(epoch, size), size), end - first)
            return
        rows = islice(self.rows(first * size), (end - first) * size)
        if not self.group_by_length:
            yield from chunked(rows, size)
            return
        for number, window in enumerate(chunked(rows, size * GROUP_WINDOW)):
            steps = list(chunked(sorted(window, key=self._kind_and_length), size))
            random.Random(f"{self.seed}/grouped/{epoch}/{number}").shuffle(steps)
            yield from steps

    def rows(self, start: int) -> Iterator[Keys]:
        """Return rows without end, ungrouped, from row number ``start`` on."""
        if self.pack_to is None:
            return ((key,) for key in self._keys(start))
        epoch = next(epoch for epoch in count() if self.rows_before(epoch + 1) > start)
        skipped = start - self.rows_before(epoch)
        return chain(self._plan(epoch)[skipped:], chain.from_iterable(map(self._plan, count(epoch + 1))))

    def _llava_rows(self, epoch: int, size: int) -> Iterator[Keys]:
        """Rows in LLaVA's order without end, from the first step of ``size`` on that begins in ``epoch``.

        The reference's last step of an epoch is short. Here records of the next epoch, drawn at random, fill it up, so
        that the steps of every epoch are whole groups; those of the first are the reference's.
        """
        for number in count(epoch):
            begun = min(-number * self.total % size, self.total)  # places of a step that began in the epoch before
            generator = torch.Generator().manual_seed(self.seed + number)
            keys = [(number, index) for index in range(self.total)]
            if self.weights is not None:
                keys = list(islice(self._keys(number * self.total), self.total))
            if begun:
                keys = [keys[place] for place in torch.randperm(self.total, generator=generator).tolist()]
            if number > epoch:
                yield from ((key,) for key in keys[:begun])
            rest = sorted(keys[begun:])
            lengths = [self._signed_words(index) for _, index in rest]
            order = modality_order(lengths, self.llava_batch or 1, size // (self.llava_batch or 1), generator)
            yield from ((rest[place],) for place in order)

    def _signed_words(self, index: int) -> int:
        length = self.lengths[index]
        return length.words if length.images else -length.words

    def _keys(self, start: int) -> Iterator[Key]:
        if self.weights is None:
            return record_order(self.total, self.seed, start)
        return mixed_order(self.sizes, self.weights, self.seed, start)

    def _kind_and_length(self, row: Keys) -> tuple[bool, RowLength]:
        length = self.lengths[row[0][1]]
        return length.images > 0, length

    def _plan(self, epoch: int) -> list[Keys]:
        """The packed rows of an epoch; of two epochs they are kept."""
        assert self.pack_to is not None
        if epoch not in self._plans:
            rows: list[Keys] = []
            for number, window in enumerate(chunked(islice(self._keys(epoch * self.total), self.total), PACK_WINDOW)):
                packed = pack(window, self.lengths, self.pack_to)
                random.Random(f"{self.seed}/packed/{epoch}/{number}").shuffle(packed)
                rows += packed
            self._plans = {known: plan for known, plan in self._plans.items() if known == epoch - 1} | {epoch: rows}
        return self._plans[epoch]


def record_order(total: int, seed: int, start: int = 0) -> Iterator[Key]:
    """Yield the keys of ``total`` records epoch after epoch without end, shuffled in each, from place ``start`` on."""
    for epoch in count(start // total):
        order = list(range(total))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        skipped = start - epoch * total if epoch == start // total else 0
        yield from ((epoch, index) for index in order[skipped:])


def mixed_order(sizes: Sequence[int], weights: Sequence[float], seed: int, start: int = 0) -> Iterator[Key]:
    """Yield keys without end, from draw ``start`` on: each draw picks a source by its weight, and its next record.

    Every source goes through shuffled epochs of its own, so that it repeats no record before all of it was drawn; the
    keys have its own epoch's number. All draws are independent: those of an epoch (as many as there are records) are
    made as their number per source, multinomial, in random order, so that the draws before ``start`` need no walk.
    """
    total, shares = sum(sizes), mixture_shares(weights)
    offsets = [0, *accumulate(sizes)]
    taken = sum((_draws(seed, epoch, total, shares)[0] for epoch in range(start // total)), np.zeros(len(sizes), int))
    shuffled: dict[int, tuple[int, list[int]]] = {}
    for epoch in count(start // total):
        counts, rng = _draws(seed, epoch, total, shares)
        drawn = rng.permutation(np.repeat(np.arange(len(sizes)), counts))
        skipped = start - epoch * total if epoch == start // total else 0
        taken = taken + np.bincount(drawn[:skipped], minlength=len(sizes))
        for source in drawn[skipped:].tolist():
            own_epoch, place = divmod(int(taken[source]), sizes[source])
            if source not in shuffled or shuffled[source][0] != own_epoch:
                order = list(range(offsets[source], offsets[source + 1]))
                random.Random(f"{seed}/source {source}/{own_epoch}").shuffle(order)
                shuffled[source] = own_epoch, order
            taken[source] += 1
            yield own_epoch, shuffled[source][1][place]


def _draws(seed: int, epoch: int, total: int, shares: Sequence[float]) -> tuple[np.ndarray, np.random.Generator]:
    """How often each source is drawn in an epoch, and the generator that goes on to order the draws."""
    rng = np.random.default_rng([seed, epoch])
    return rng.multinomial(total, shares), rng


def mixture_shares(weights: Sequence[float]) -> list[float]:
    """Share of the draws that each source is expected to get."""
    return [weight / sum(weights) for weight in weights]


def pack(keys: Sequence[Key], lengths: Sequence[RowLength], room: RowRoom) -> list[Keys]:
    """Pack records into rows: the longest first, each into the row that it fills best.

    Best-fit decreasing (Johnson, 1974) needs at most 11/9 of the fewest possible rows.
    """
    rows: list[list[Key]] = []
    decoder_room: list[int] = []
    left: list[tuple[int, int]] = []  # positions left in each row, and the row's number, sorted
    for key in sorted(keys, key=lambda key: lengths[key[1]], reverse=True):
        length = lengths[key[1]]
        first = bisect_left(left, (length.tokens, -1))
        fitting = (i for i in range(first, len(left)) if decoder_room[left[i][1]] >= length.decoder_tokens)
        place = next(fitting, None)
        if place is None:
            space, row = room.tokens, len(rows)
            rows.append([])
            decoder_room.append(room.decoder_tokens)
        else:
            space, row = left.pop(place)
        rows[row].append(key)
        decoder_room[row] -= length.decoder_tokens
        insort(left, (space - length.tokens, row))
    return [tuple(row) for row in rows]


def chunked(items: Iterator[T] | Sequence[T], size: int) -> Iterator[list[T]]:
    """Cut ``items`` into lists of ``size``; the last one may be shorter."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
