"""How much captions resemble references: CIDEr-D, BLEU and ROUGE-L, equal to the COCO caption toolkit's.

All take texts that are tokenised already, tokens parted by spaces (``tokenize.caption_tokens``): for every picture one
candidate and any number of references.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from sightbridge.evaluation.bootstrap import Floats
from sightbridge.evaluation.ngrams import Ints, Ngrams, count_ngrams

MAX_N = 4
CIDER_SIGMA = 6.0
"""Width of CIDEr-D's penalty on differing lengths (Vedantam et al., CIDEr, 2015)."""
ROUGE_BETA = 1.2
"""Weight of recall in ROUGE-L's F-measure, as the COCO toolkit sets it."""


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D over a set of pictures (0 to 10), the mean of ``cider_of_each``."""
    scores = cider_of_each(candidates, references)
    return sum(scores) / len(scores)


def cider_of_each(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of every picture (0 to 10): n-grams weighed by how few of the pictures' references have them.

    A single picture scores 0: every n-gram is then in all references, so none says anything.
    """
    _check(candidates, references)
    pictures, owners = len(candidates), _owners(references)
    total = np.zeros(len(owners))
    for said, written in _ngrams(candidates, references):
        document_frequency = np.bincount(written.of_groups(owners).ngrams, minlength=said.kinds)
        weights = math.log(pictures) - np.log(np.maximum(1, document_frequency))
        ours, theirs = said.counts * weights[said.ngrams], written.counts * weights[written.ngrams]
        common = np.minimum(said.look_up(ours, owners[written.texts], written.ngrams), theirs)
        dots = np.bincount(written.texts, common * theirs, len(owners))
        norms = np.sqrt(np.bincount(said.texts, ours**2, pictures)[owners])
        norms = norms * np.sqrt(np.bincount(written.texts, theirs**2, len(owners)))
        total += np.divide(dots, norms, out=dots.astype(np.float64), where=norms > 0)
    differences = _bigrams(candidates)[owners] - _bigrams([*chain.from_iterable(references)])
    similarities = total / MAX_N * np.exp(-(differences**2) / (2 * CIDER_SIGMA**2))
    return (10 * np.bincount(owners, similarities) / np.bincount(owners)).tolist()


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], n: int = MAX_N) -> float:
    """BLEU-n over all pictures together (0 to 1), with the reference closest in length for the brevity penalty."""
    return float(bleu_of_counts(bleu_counts(candidates, references).sum(axis=0), n))


def bleu_counts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """What BLEU sums over pictures, (pictures, 10): n-grams of each length that are in a reference, n-grams of each
    length, words, and words of the reference that is closest in length."""
    _check(candidates, references)
    pictures, owners = len(candidates), _owners(references)
    counts = np.zeros((pictures, 2 * MAX_N + 2))
    for n, (said, written) in enumerate(_ngrams(candidates, references)):
        highest = written.of_groups(owners)
        allowed = highest.look_up(highest.counts.astype(np.float64), said.texts, said.ngrams)
        counts[:, n] = np.bincount(said.texts, np.minimum(said.counts, allowed), pictures)
        counts[:, MAX_N + n] = np.bincount(said.texts, said.counts, pictures)
    for row, candidate, texts in zip(counts, candidates, references, strict=True):
        words = len(candidate.split())
        row[-2:] = words, min((abs(length - words), length) for length in (len(text.split()) for text in texts))[1]
    return counts


def bleu_of_counts(sums: Floats, n: int = MAX_N) -> Floats:
    """BLEU-n of sums (..., 10) of ``bleu_counts``; 0 where n-grams of some length are in no reference."""
    matched, guessed = sums[..., :n], sums[..., MAX_N : MAX_N + n]
    words, reference_words = sums[..., -2], sums[..., -1]
    found = np.all(matched > 0, axis=-1)
    shares = np.divide(matched, guessed, out=np.ones(matched.shape), where=np.expand_dims(found, -1))
    ratio = np.divide(reference_words, words, out=np.ones(words.shape), where=found)
    return found * np.exp(np.log(shares).mean(axis=-1)) * np.minimum(1.0, np.exp(1 - ratio))


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L (0 to 1), the mean of ``rouge_l_of_each``."""
    scores = rouge_l_of_each(candidates, references)
    return sum(scores) / len(scores)


def rouge_l_of_each(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of every picture (0 to 1): by the longest words in common order, best precision and best recall.

    Best over references each for itself, as in the COCO toolkit.
    """
    _check(candidates, references)
    return list(map(_rouge_l, candidates, references))


def _rouge_l(candidate: str, references: Sequence[str]) -> float:
    words = candidate.split()
    if not words:
        return 0.0
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    common = [(_common_length(text.split(), places, len(words)), len(text.split())) for text in references]
    precision = max(length for length, _ in common) / len(words)
    recall = max(length / total for length, total in common)
    if not precision:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common_length(text: list[str], places: dict[str, int], words: int) -> int:
    """Length of the longest common subsequence of a text and of so many words, whose ``places`` are given as bits.

    The usual table row by row, each as one number whose bits are 0 where the row rises (Hyyrö, "Bit-parallel
    LCS-length computation revisited", 2004).
    """
    row = every = (1 << words) - 1
    for word in text:
        here = row & places.get(word, 0)
        row = (row + here | row - here) & every
    return words - row.bit_count()


def _ngrams(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Iterator[tuple[Ngrams, Ngrams]]:
    """Those of candidates, and those of all references, for each n."""
    for ngrams in count_ngrams([*candidates, *chain.from_iterable(references)], MAX_N):
        yield ngrams.split(len(candidates))


def _owners(references: Sequence[Sequence[str]]) -> Ints:
    """Which picture each of all references is of."""
    return np.repeat(np.arange(len(references)), [len(texts) for texts in references])


def _bigrams(texts: Sequence[str]) -> Ints:
    """How long texts are for the toolkit's CIDEr: their numbers of bigrams."""
    return np.array([max(0, len(text.split()) - 1) for text in texts])


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    assert candidates and len(candidates) == len(references) and all(references), "one candidate, some references each"
