"""What every kind of score offers to the scorer, and the plain types that pass between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from PIL import Image
from torch import Tensor

from sightbridge.config.model import ImageSettings
from sightbridge.scoring.settings import Kind


class Ask(NamedTuple):
    """A question about a picture, and the answer whose likelihood is wanted."""

    question: str
    answer: str


Item: TypeAlias = str | Ask
"""What a text becomes: an ``Ask`` for a kind that asks a language model, the text itself for all others."""
Row: TypeAlias = tuple[int, Item]
"""One pair to score: the number of a picture, and an item."""


class TokenScore(NamedTuple):
    """A token of an answer, and the logarithm of its probability given all before it."""

    text: str
    logprob: float


class Scored(NamedTuple):
    """The score of one pair, and what it was made of, if it was made of tokens."""

    score: float
    tokens: tuple[TokenScore, ...] = ()


class Chunk(NamedTuple):
    """Scores of some of the rows: their places among the rows, the scores (B,), and the tokens of each."""

    places: list[int]
    scores: Tensor
    tokens: list[tuple[TokenScore, ...]]


class Backend(Protocol):
    """One kind of score from one model. It keeps no state between calls, so calls may come in any order."""

    kind: Kind
    image_settings: ImageSettings
    transform: Callable[[Image.Image], Tensor]
    """From an RGB picture to pixels (3, H, W)."""

    def changed(self, **settings: Any) -> Backend:
        """Return the same kind and model with other settings; raises ``SettingsError`` for unknown ones."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return all that the scores depend on besides the weights, as plain JSON."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the weights."""
        ...

    def items(self, texts: Sequence[str]) -> list[Item]:
        """Turn texts into items."""
        ...

    def read(self, items: Sequence[Item], batch_size: int) -> dict[Item, Any]:
        """Tokenise or encode every item once; raises ``DataError`` for one that cannot be scored."""
        ...

    def encode(self, batches: Iterable[Tensor]) -> Any:
        """Encode batches of pixels (n, 3, H, W), whose pictures are numbered on through all of them."""
        ...

    def score(self, encoded: Any, rows: Sequence[Row], read: dict[Item, Any], batch_size: int) -> Iterator[Chunk]:
        """Score rows of encoded pictures, ``batch_size`` at a time, each once and in any order."""
        ...


def batches_by_length(lengths: Sequence[int], batch_size: int, positions: int | None = None) -> Iterator[list[int]]:
    """Yield the places of ``lengths`` in batches, the longest first: padding is least, and memory is tried out first.

    With ``positions``, a batch of more than one row has no more of them, padding included.

    >>> list(batches_by_length([3, 9, 4], 2))
    [[1, 2], [0]]
    >>> list(batches_by_length([3, 9, 4], 2, positions=10))
    [[1], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while order:
        size = batch_size if positions is None else min(batch_size, max(1, positions // max(lengths[order[0]], 1)))
        yield order[:size]
        order = order[size:]
