"""Pairwise accuracy with calibrated ties, and measures of captions, of many items: seconds and memory. Prints Markdown.

python benchmarks/metrics.py [--items 1000 3000 10000] [--plain 1000] [--captions 10000]

Grades are whole numbers from 1 to 5, scores are these and as much noise. ``--plain`` says up to how many items the same
is also done pair by pair with Python's objects and one sort, as t2v_metrics does. Memory is what NumPy and Python
hold at most beyond the lists themselves (tracemalloc), in a run of its own.

Captions are of ten to fifteen words, one in five of them with an apostrophe or a hyphen; every picture has five
references. Their measures are timed as an evaluation takes them, with intervals; the first one tokenises all texts.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from itertools import combinations

import numpy as np

from sightbridge.evaluation.agreement import kendall_tau_b, pairwise_accuracy
from sightbridge.evaluation.metrics import Row
from sightbridge.evaluation.metrics import measure as measure_rows

REFERENCES = 5


def plain_accuracy(people: list[int], scores: list[float]) -> tuple[float, float]:
    """The same by a list of all pairs, sorted by their gap."""
    pairs = []
    for a, b in combinations(range(len(people)), 2):
        order, gap = people[a] - people[b], scores[a] - scores[b]
        pairs.append((abs(gap), order == 0, order * gap > 0))
    pairs.sort()
    right = sum(tied if gap == 0 else agrees for gap, tied, agrees in pairs)
    best, epsilon = right, 0.0
    for place, (gap, tied, agrees) in enumerate(pairs):
        if gap:
            right += tied - agrees
        if right > best and (place + 1 == len(pairs) or pairs[place + 1][0] > gap):
            best, epsilon = right, gap
    return best / len(pairs), epsilon


def measure(run: Callable[[], object]) -> tuple[float, float, object]:
    """Seconds, megabytes, and what came out."""
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    run()
    megabytes = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return seconds, megabytes, result


def draw_captions(items: int) -> list[Row]:
    """Captions of so many pictures; frequent words are as frequent as in English (Zipf's law)."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 9))) for _ in range(5000)]
    special = ["man's", "t-shirt", "isn't", "long-haired"]
    shares = 1 / np.arange(1, len(words) + 1)

    def draw() -> str:
        chosen = [words[place] for place in rng.choice(len(words), rng.integers(10, 16), p=shares / shares.sum())]
        if rng.random() < 0.2:
            chosen[rng.integers(1, len(chosen))] = str(rng.choice(special))
        return " ".join(chosen).capitalize() + "."

    return [Row(str(item), draw(), tuple(draw() for _ in range(REFERENCES))) for item in range(items)]


def measure_captions(items: int) -> None:
    """Print the CPU seconds of every measure of captions: other work on the machine does not count."""
    rows = draw_captions(items)
    print("\n| captions | references | measure | CPU seconds |\n| --- | --- | --- | --- |")
    for name in ("cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"):
        start = time.process_time()
        measure_rows(name, rows)
        print(f"| {items:,} | {REFERENCES} | {name} | {time.process_time() - start:.2f} |", flush=True)


def main() -> None:
    """Measure every number of items."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--plain", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=10000)
    options = parser.parse_args()
    print("| items | pairs | measure | seconds | MB |\n| --- | --- | --- | --- | --- |")
    for items in options.items:
        rng = np.random.default_rng(0)
        people = rng.integers(1, 6, items)
        scores = people + rng.normal(scale=2, size=items)
        lists = people.tolist(), scores.tolist()
        runs: dict[str, Callable[[], object]] = {
            "pairwise accuracy": lambda data=(people, scores): pairwise_accuracy(*data),
            "tau-b": lambda data=(people, scores): kendall_tau_b(*data),
        }
        if items <= options.plain:
            runs["pairwise accuracy, pair by pair"] = lambda data=lists: plain_accuracy(*data)
        found = {}
        for name, run in runs.items():
            seconds, megabytes, found[name] = measure(run)
            print(
                f"| {items:,} | {items * (items - 1) // 2:,} | {name} | {seconds:.2f} | {megabytes:.0f} |", flush=True
            )
        if len(found) == 3:
            ours, plain = found["pairwise accuracy"], found["pairwise accuracy, pair by pair"]
            assert np.allclose(ours, plain), (ours, plain)  # type: ignore[arg-type]
    measure_captions(options.captions)


if __name__ == "__main__":
    main()
