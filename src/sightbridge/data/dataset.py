"""From records to a stream of batches: workers, and what happens to records that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from sightbridge.batch import Batch, QFormerBatch
from sightbridge.data.bad_samples import BadSample, BadSamples
from sightbridge.data.feature_store import FeatureStore
from sightbridge.data.order import Key, Keys, RecordOrder, chunked
from sightbridge.data.processor import PaddingSide, Row
from sightbridge.data.record import Record
from sightbridge.errors import DataError, ImageError, SightbridgeError
from sightbridge.text.encode import NoTargetError

AnyBatch = Batch | QFormerBatch


class RecordProcessor(Protocol):
    """What a dataset asks of a processor, whatever kind of rows it makes."""

    def prepare(self, record: Record, *, training: bool, epoch: int, features: FeatureStore | None) -> Any:
        """Make one record ready to be a row of a batch, or raise why it cannot be."""
        ...

    def collate(self, rows: Sequence[Any], padding_side: PaddingSide, /) -> AnyBatch:
        """Make a batch of rows."""
        ...


@dataclass
class Fetched:
    """What one look-up brings back from a worker: a batch or an error, and the records left out on the way."""

    batch: AnyBatch | None = None
    error: SightbridgeError | None = None
    bad: list[BadSample] = field(default_factory=list)


class RecordDataset(Dataset[Fetched]):
    """Records made into batches; indexed by a list of the keys of each row.

    A record whose picture cannot be opened is left out; so is one with nothing to learn, if ``no_target`` is "skip".
    With ``replace_bad`` the next usable record of the data takes its place, so batches keep their size and every
    worker and process comes to the same choice. Any other mistake in the data comes back as the error.
    ``pack`` joins the records that were planned for one row (see ``packing``); one that turns out too long for it (a
    replacement, or an answer cut elsewhere than planned) comes as a row of its own.
    """

    def __init__(
        self,
        records: Sequence[Record],
        processor: RecordProcessor,
        *,
        training: bool = False,
        replace_bad: bool = False,
        padding_side: PaddingSide = "right",
        no_target: Literal["error", "skip"] = "error",
        features: FeatureStore | None = None,
        pack: Callable[[Sequence[Row]], list[Row]] | None = None,
    ) -> None:
        self.records = records
        self.processor = processor
        self.training = training
        self.replace_bad = replace_bad
        self.padding_side: PaddingSide = padding_side
        self.no_target = no_target
        self.features = features
        self.pack = pack

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, rows_keys: Sequence[Keys]) -> Fetched:
        fetched = Fetched()
        try:
            rows = [row for keys in rows_keys for row in self._rows(keys, fetched.bad)]
            fetched.batch = self.processor.collate(rows, self.padding_side) if rows else None
            if isinstance(fetched.batch, Batch) and self.features is not None:
                fetched.batch = replace(fetched.batch, features_from=self.features.prefix)
        except SightbridgeError as error:  # not raised in a worker, where torch would wrap it in a traceback
            fetched.error = error
        return fetched

    def _rows(self, keys: Keys, bad: list[BadSample]) -> list[Any]:
        """Make the records of one row ready, and pack them if rows are packed."""
        rows = [row for key in keys if (row := self._prepare(key, bad)) is not None]
        return rows if self.pack is None else self.pack(rows)

    def _prepare(self, key: Key, bad: list[BadSample]) -> Any | None:
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
    """Endless batches for training, this process's share of them.

    The rows of ``order`` are cut into optimiser steps, a step into ``accumulation`` batches for all processes, and
    such a batch into ``batch_size`` rows for each process. So no batch is ever short, no record is dropped, a step may
    run over an epoch's end, and n processes see the records of one that accumulates n batches.

    Args:
        dataset: what to draw from, made with ``training=True, replace_bad=True``.
        batch_size: rows per batch and process: records, or packed rows.
        order: of the dataset's records.
        bad_samples: told of every record left out; it stops the run when there are too many.
        accumulation: batches per optimiser step and process.
        workers: processes that prepare batches; 0 = this one.
        process, processes: number of this process, and how many train together.
    """

    def __init__(
        self,
        dataset: RecordDataset,
        batch_size: int,
        *,
        order: RecordOrder,
        bad_samples: BadSamples,
        accumulation: int = 1,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        assert order.total == len(dataset), "the order is another dataset's"
        self.dataset = dataset
        self.batch_size = batch_size
        self.order = order
        self.bad_samples = bad_samples
        self.accumulation = accumulation
        self.workers = workers
        self.process = process
        self.processes = processes

    @property
    def batches_per_epoch(self) -> float:
        """Batches per epoch and process, on average; packed, those of the first epoch, found without any picture."""
        return self.order.rows_per_epoch / (self.batch_size * self.processes)

    def epoch(self, number: int, skip: int = 0) -> Iterator[AnyBatch]:
        """Yield the batches whose step begins in epoch ``number``, without preparing the first ``skip`` of them."""
        for fetched in _load(self.dataset, list(islice(self._rows(number), skip, None)), self.workers):
            self.bad_samples.add(fetched.bad)
            if fetched.error is not None:
                raise fetched.error
            assert fetched.batch is not None, "bad records are replaced while training"
            yield fetched.batch

    @property
    def _step_size(self) -> int:
        return self.batch_size * self.processes * self.accumulation

    def _rows(self, epoch: int) -> Iterator[list[Keys]]:
        """This process's rows, batch by batch."""
        for step in self.order.steps(epoch, self._step_size):
            for everyone in chunked(step, self.batch_size * self.processes):
                yield everyone[self.process * self.batch_size :][: self.batch_size]


def evaluation_batches(
    dataset: RecordDataset,
    batch_size: int,
    *,
    bad_samples: BadSamples,
    workers: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[AnyBatch]:
    """Yield every record once, in order, this process's share of them; the last batch may be short.

    Records that cannot be used are left out, not replaced, and told to ``bad_samples``.
    """
    rows = [((0, index),) for index in range(process, len(dataset), processes)]
    for fetched in _load(dataset, list(chunked(rows, batch_size)), workers):
        bad_samples.add(fetched.bad)
        if fetched.error is not None:
            raise fetched.error
        if fetched.batch is not None:
            yield fetched.batch


def _load(dataset: RecordDataset, batches: Sequence[Sequence[Keys]], workers: int) -> Iterator[Fetched]:
    """Look up one batch's keys after the other, in ``workers`` processes if there are any; the order stays."""
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=batches,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            generator=torch.Generator(),  # of the workers' seeds: the run's own random state is left alone
        )
    )


def _as_it_is(fetched: Fetched) -> Fetched:
    return fetched
