"""N-grams of many texts as arrays: what CIDEr-D and BLEU count, without a Python object for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Ngrams:
    """How often each text has each n-gram of one length: ``texts``, ``ngrams`` and ``counts`` (K,), one of each for
    every n-gram that a text has, in the order of texts, then of n-grams; all of these are below ``kinds``."""

    texts: Ints
    ngrams: Ints
    counts: Ints
    kinds: int

    def split(self, first: int) -> tuple[Ngrams, Ngrams]:
        """Those of the first so many texts, and those of the others, who count from 0 again."""
        place = np.searchsorted(self.texts, first)
        head = Ngrams(self.texts[:place], self.ngrams[:place], self.counts[:place], self.kinds)
        return head, Ngrams(self.texts[place:] - first, self.ngrams[place:], self.counts[place:], self.kinds)

    def of_groups(self, groups: Ints) -> Ngrams:
        """For each group of texts, and ``groups`` has that of every text, the highest count in one of them."""
        keys, places = np.unique(groups[self.texts] * self.kinds + self.ngrams, return_inverse=True)
        highest = np.zeros(len(keys), dtype=np.int64)
        np.maximum.at(highest, places, self.counts)
        return Ngrams(keys // max(1, self.kinds), keys % max(1, self.kinds), highest, self.kinds)

    def look_up(self, values: Floats, texts: Ints, ngrams: Ints) -> Floats:
        """Of ``values`` (K,), those of ``ngrams`` in ``texts``, a pair for each; 0 for an n-gram that a text lacks."""
        if not len(values):
            return np.zeros(len(texts))
        known, wanted = self.texts * self.kinds + self.ngrams, texts * self.kinds + ngrams
        places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        return np.where(known[places] == wanted, values[places], 0.0)


def count_ngrams(texts: Sequence[str], longest: int) -> Iterator[Ngrams]:
    """Count n-grams of words, of one word first, then of two, up to ``longest``."""
    words = [text.split() for text in texts]
    numbers: dict[str, int] = {}
    flat = np.array([numbers.setdefault(word, len(numbers)) for text in words for word in text], dtype=np.int64)
    owners = np.repeat(np.arange(len(texts)), [len(text) for text in words])
    ngrams, kinds = flat, len(numbers)
    for n in range(1, longest + 1):
        last = flat[n - 1 :]
        if n > 1:  # an n-gram is a shorter one and the word behind it
            found, ngrams = np.unique(ngrams[: len(last)] * len(numbers) + last, return_inverse=True)
            kinds = len(found)
        inside = owners[: len(last)] == owners[n - 1 :]  # not one text's end and the next one's beginning
        keys, counts = np.unique(owners[: len(last)][inside] * kinds + ngrams[inside], return_counts=True)
        yield Ngrams(keys // max(1, kinds), keys % max(1, kinds), counts, kinds)
