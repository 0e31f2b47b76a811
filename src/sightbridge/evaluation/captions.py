"""How much captions resemble references: CIDEr-D, BLEU and ROUGE-L, equal to the COCO caption toolkit's.

All take texts that are tokenised already, tokens parted by spaces (``tokenize.caption_tokens``): for every picture one
candidate and any number of references.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sightbridge.evaluation.bootstrap import Floats

Ngrams = Counter[tuple[str, ...]]

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
    counted = [[_ngrams(text) for text in texts] for texts in references]
    document_frequency = Counter(ngram for texts in counted for ngram in set().union(*texts))
    log_pictures = math.log(len(candidates))

    def weigh(ngrams: Ngrams) -> dict[tuple[str, ...], float]:
        return {
            ngram: count * (log_pictures - math.log(max(1, document_frequency[ngram])))
            for ngram, count in ngrams.items()
        }

    scores = []
    for candidate, texts in zip(candidates, counted, strict=True):
        ngrams = _ngrams(candidate)
        weights = weigh(ngrams)
        similarities = [_similarity(weights, weigh(text), _length(ngrams) - _length(text)) for text in texts]
        scores.append(10 * sum(similarities) / len(similarities))
    return scores


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], n: int = MAX_N) -> float:
    """BLEU-n over all pictures together (0 to 1), with the reference closest in length for the brevity penalty."""
    return float(bleu_of_counts(bleu_counts(candidates, references).sum(axis=0), n))


def bleu_counts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """What BLEU sums over pictures, (pictures, 10): n-grams of each length that are in a reference, n-grams of each
    length, words, and words of the reference that is closest in length."""
    _check(candidates, references)
    counts = np.zeros((len(candidates), 2 * MAX_N + 2))
    for row, candidate, texts in zip(counts, candidates, references, strict=True):
        highest = Counter[tuple[str, ...]]()
        for text in texts:
            highest |= _ngrams(text)
        for ngram, count in _ngrams(candidate).items():
            row[len(ngram) - 1] += min(count, highest[ngram])
            row[MAX_N + len(ngram) - 1] += count
        words = len(candidate.split())
        row[-2:] = words, min((abs(len(text.split()) - words), len(text.split())) for text in texts)[1]
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
    common = [(_common_length(text.split(), words), len(text.split())) for text in references]
    precision = max(length for length, _ in common) / len(words)
    recall = max(length / total for length, total in common)
    if not precision:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common_length(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        previous = 0
        for i, candidate in enumerate(other, start=1):
            previous, row[i] = row[i], previous + 1 if word == candidate else max(row[i], row[i - 1])
    return row[-1]


def _similarity(one: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float], difference: int) -> float:
    """CIDEr-D's cosine of two weighed texts, clipped, for each length of n-gram; then their mean."""
    total = 0.0
    for n in range(1, MAX_N + 1):
        dot = sum(min(w, other[g]) * other[g] for g, w in one.items() if len(g) == n and g in other)
        norms = [math.sqrt(sum(w * w for g, w in text.items() if len(g) == n)) for text in (one, other)]
        total += dot / (norms[0] * norms[1]) if all(norms) else dot
    return total / MAX_N * math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))


def _ngrams(text: str) -> Ngrams:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))


def _length(ngrams: Ngrams) -> int:
    """Length as the toolkit's CIDEr takes it: the number of bigrams."""
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    assert candidates and len(candidates) == len(references) and all(references), "one candidate, some references each"
