"""LLaVA's ``group_by_modality_length``: batches of like length, and steps of pictures or of text alone.

The order is the reference's to the last record (haotian-liu/LLaVA, ``llava/train/llava_trainer.py``), given the state
of the generator that it draws from. ``data.order`` asks for it epoch by epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def modality_order(lengths: Sequence[int], batch_size: int, batches: int, generator: torch.Generator) -> list[int]:
    """Order records so that only the last step can hold both kinds of them.

    Records with pictures and records without are grouped by length on their own and cut into steps; of both the last
    one, which may be short, is held back. The others are shuffled, and what was held back comes last, in the order of
    the file.

    Args:
        lengths: of every record, negative if it has no picture; never 0.
        batch_size: records of a batch.
        batches: of a step, over all processes and accumulated ones.
        generator: that everything is drawn from.

    Returns:
        Every index once.
    """
    with_pictures = [index for index, length in enumerate(lengths) if length > 0]
    text_only = [index for index, length in enumerate(lengths) if length <= 0]
    if not with_pictures or not text_only:  # lengths of text keep their sign here: the shortest come first
        return length_order(lengths, batch_size, batches, generator)
    steps: list[list[int]] = []
    held_back: list[int] = []
    for indices in (with_pictures, text_only):
        order = length_order([abs(lengths[index]) for index in indices], batch_size, batches, generator)
        *whole, last = _cut([indices[place] for place in order], batch_size * batches)
        steps += whole
        held_back += last
    shuffled = torch.randperm(len(steps), generator=generator).tolist()
    return [index for number in shuffled for index in steps[number]] + sorted(held_back)


def length_order(lengths: Sequence[int], batch_size: int, batches: int, generator: torch.Generator) -> list[int]:
    """Shuffle records, cut them into steps, sort each by length, and deal it out to its batches."""
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    for step in _cut(shuffled, batch_size * batches):
        longest_first = sorted(step, key=lambda index: lengths[index], reverse=True)
        order += deal(longest_first, lengths, batches)
    return order


def deal(indices: Sequence[int], lengths: Sequence[int], batches: int) -> list[int]:
    """Deal records out to batches of one size whose lengths add up to about the same, and join these.

    Each goes to the batch with the smallest sum that is not full. A number that does not divide evenly is dealt one by
    one in turn.
    """
    if len(indices) % batches:
        return [index for start in range(batches) for index in indices[start::batches]]
    dealt: list[list[int]] = [[] for _ in range(batches)]
    sums = [0.0] * batches
    for index in indices:
        smallest = sums.index(min(sums))
        dealt[smallest].append(index)
        full = len(dealt[smallest]) == len(indices) // batches
        sums[smallest] = float("inf") if full else sums[smallest] + lengths[index]
    return [index for batch in dealt for index in batch]


def _cut(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
