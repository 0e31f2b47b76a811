"""Training batches that are drawn as they are needed, without end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

AnyBatch = TypeVar("AnyBatch")


class DrawnBatches(ABC, Generic[AnyBatch]):
    """Batches of which each is fixed by its number; an epoch is only a name for ``batches_per_epoch`` of them."""

    batches_per_epoch: int = 1000

    @abstractmethod
    def draw(self, number: int) -> AnyBatch:
        """Draw batch ``number``, which depends on nothing else."""

    def epoch(self, number: int, skip: int = 0) -> Iterator[AnyBatch]:
        """Yield the batches of an epoch, but for the first ``skip``, which are not drawn."""
        first = number * self.batches_per_epoch
        return map(self.draw, range(first + skip, first + self.batches_per_epoch))
