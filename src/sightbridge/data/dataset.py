"""From records to a stream of batches: order, workers, and what happens to records that cannot be used."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Literal, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from sightbridge.batch import Batch
from sightbridge.data.bad_samples import BadSample, BadSamples
from sightbridge.data.feature_store import FeatureStore
from sightbridge.data.processor import PaddingSide, Processor, Row
from sightbridge.data.record import Record
from sightbridge.errors import DataError, ImageError, SightbridgeError
from sightbridge.text.encode import NoTargetError

T = TypeVar("T")
Key = tuple[int, int]
"""Epoch, and index of a record."""


@dataclass
class Fetched:
    """What one look-up brings back from a worker: a batch or an error, and the records left out on the way."""

    batch: Batch | None = None
    error: SightbridgeError | None = None
    bad: list[BadSample] = field(default_factory=list)


class RecordDataset(Dataset[Fetched]):
    """Records made into batches; indexed by a list of keys ``(epoch, index)``, one per row.

    A record whose picture cannot be opened is left out; so is one with nothing to learn, if ``no_target`` is "skip".
    With ``replace_bad`` the next usable record of the data takes its place, so batches keep their size and every
    worker and process comes to the same choice. Any other mistake in the data comes back as the error.
    """

    def __init__(
        self,
        records: Sequence[Record],
        processor: Processor,
        *,
        training: bool = False,
        replace_bad: bool = False,
        padding_side: PaddingSide = "right",
        no_target: Literal["error", "skip"] = "error",
        features: FeatureStore | None = None,
    ) -> None:
        self.records = records
        self.processor = processor
        self.training = training
        self.replace_bad = replace_bad
        self.padding_side: PaddingSide = padding_side
        self.no_target = no_target
        self.features = features

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, keys: Sequence[Key]) -> Fetched:
        fetched = Fetched()
        try:
            rows = [row for key in keys if (row := self._prepare(key, fetched.bad)) is not None]
            fetched.batch = self.processor.collate(rows, self.padding_side) if rows else None
        except SightbridgeError as error:  # not raised in a worker, where torch would wrap it in a traceback
            fetched.error = error
        return fetched

    def _prepare(self, key: Key, bad: list[BadSample]) -> Row | None:
        """Make the record of ``key`` ready, or the next usable one, adding those left out to ``bad``."""
        epoch, first = key
        for step in range(len(self.records) if self.replace_bad else 1):
            record = self.records[(first + step) % len(self.records)]
            try:
                return self.processor.prepare(record, training=self.training, epoch=epoch, features=self.features)
            except NoTargetError as error:
                if self.no_target == "error":
                    raise
                bad.append(BadSample(record.id, record.where, str(error), counts=False))
            except ImageError as error:
                bad.append(BadSample(record.id, record.where, str(error)))
        if self.replace_bad:
            raise DataError(f"none of the {len(self.records)} records can be used; the last reason: {bad[-1].reason}")
        return None


class TrainingBatches:
    """Endless shuffled batches for training, this process's share of them.

    The records are shuffled anew every epoch, by ``seed`` and the epoch's number alone, and all epochs together are cut
    into steps of ``batch_size`` records for each of ``processes``. So no batch is ever short, no record is dropped, a
    batch may run over an epoch's end, and n processes with one batch each see the records of one with n batches.

    Args:
        dataset: what to draw from, made with ``training=True, replace_bad=True``.
        batch_size: records per batch and process.
        bad_samples: told of every record left out; it stops the run when there are too many.
        workers: processes that prepare batches; 0 = this one.
        process, processes: number of this process, and how many train together.
    """

    def __init__(
        self,
        dataset: RecordDataset,
        batch_size: int,
        *,
        bad_samples: BadSamples,
        seed: int = 0,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.bad_samples = bad_samples
        self.seed = seed
        self.workers = workers
        self.process = process
        self.processes = processes

    def __len__(self) -> int:
        """Batches per epoch and process, rounded up."""
        return -(-len(self.dataset) // (self.batch_size * self.processes))

    @property
    def batches_per_epoch(self) -> float:
        """Batches per epoch and process, on average: those of all epochs together are whole ones."""
        return len(self.dataset) / (self.batch_size * self.processes)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches that begin in epoch ``number``, but for the first ``skip``, whose pictures stay closed."""
        loader = _load(self.dataset, list(islice(self._keys(number), skip, None)), self.workers)
        for fetched in loader:
            self.bad_samples.add(fetched.bad)
            if fetched.error is not None:
                raise fetched.error
            assert fetched.batch is not None, "bad records are replaced while training"
            yield fetched.batch

    def _keys(self, number: int) -> Iterator[list[Key]]:
        """This process's keys, batch by batch."""
        total, step = len(self.dataset), self.batch_size * self.processes
        first, end = (-(-epoch * total // step) for epoch in (number, number + 1))
        keys = record_order(total, self.seed, start=first * step)
        for _ in range(first, end):
            everyone = list(islice(keys, step))
            yield everyone[self.process * self.batch_size :][: self.batch_size]


def evaluation_batches(
    dataset: RecordDataset,
    batch_size: int,
    *,
    bad_samples: BadSamples,
    workers: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Yield every record once, in order, this process's share of them; the last batch may be short.

    Records that cannot be used are left out, not replaced, and told to ``bad_samples``.
    """
    keys = [(0, index) for index in range(process, len(dataset), processes)]
    for fetched in _load(dataset, list(chunks(keys, batch_size)), workers):
        bad_samples.add(fetched.bad)
        if fetched.error is not None:
            raise fetched.error
        if fetched.batch is not None:
            yield fetched.batch


def record_order(total: int, seed: int, start: int = 0) -> Iterator[Key]:
    """Yield the keys of ``total`` records epoch after epoch without end, shuffled in each, from place ``start`` on."""
    for epoch in count(start // total):
        order = list(range(total))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        skipped = start - epoch * total if epoch == start // total else 0
        yield from ((epoch, index) for index in order[skipped:])


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut ``items`` into pieces of ``size``; the last one may be shorter."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _load(dataset: RecordDataset, keys: Sequence[Sequence[Key]], workers: int) -> Iterator[Fetched]:
    """Look up one list of keys after the other, in ``workers`` processes if there are any; the order stays."""
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=keys,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            generator=torch.Generator(),  # of the workers' seeds: the run's own random state is left alone
        )
    )


def _as_it_is(fetched: Fetched) -> Fetched:
    return fetched
