"""Rows of the batches of all processes; with one process, and without a process group, every function is a no-op."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


def process() -> tuple[int, int]:
    """Return this process' number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def gather_numbers(numbers: list[int], device: torch.device) -> list[list[int]]:
    """Return every process' numbers; the length of the list must be the same everywhere."""
    _, processes = process()
    if processes == 1:
        return [numbers]
    mine = torch.tensor(numbers, device=device)
    everyone = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(everyone, mine)
    return torch.stack(everyone).tolist()


def gather_rows(rows: Tensor, counts: list[int], with_gradient: bool = False) -> Tensor:
    """Return the rows of all processes, in the order of the processes.

    Args:
        rows: (counts[of this process], ...), of the same further shape everywhere.
        counts: rows of each process.
        with_gradient: send gradients back to the process that a row came from. Otherwise they end here, and neither
            do this process' own rows carry any (as in LAVIS' ``concat_all_gather``).
    """
    if len(counts) == 1:
        return rows
    padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
    everyone = _AllGather.apply(padded if with_gradient else padded.detach())
    return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])


def fetch_rows(rows: Tensor, counts: list[int], chosen: list[list[int]]) -> tuple[Tensor, list[int]]:
    """Bring rows of other processes here, and no more of them than are asked for. Gradients find their way back.

    Args:
        rows: (counts[of this process], ...).
        counts: rows of each process.
        chosen: per process, which rows it asks for, counted through all processes; known to all of them.

    Returns:
        The rows that came, (M, ...), and for each row this process asked for its place: below ``len(rows)`` a row of
        its own, above it, the M that came.
    """
    rank, processes = process()
    starts = [0, *accumulate(counts)]
    own = range(starts[rank], starts[rank + 1])
    wanted = [sorted(set(asked) - set(range(starts[r], starts[r + 1]))) for r, asked in enumerate(chosen)]
    if processes == 1:
        return rows[:0], chosen[0]
    sent = [[row - own.start for row in wanted[r] if row in own] for r in range(processes)]
    owners = [bisect_right(starts, row) - 1 for row in wanted[rank]]
    received = [owners.count(r) for r in range(processes)]
    to_send = rows[torch.tensor([row for part in sent for row in part], dtype=torch.long, device=rows.device)]
    came = _AllToAll.apply(to_send, [len(part) for part in sent], received)
    places = {row: row - own.start for row in own} | {row: len(rows) + place for place, row in enumerate(wanted[rank])}
    return came, [places[row] for row in chosen[rank]]


class _AllGather(Function):
    """Everybody's tensor; backward, everybody's gradients for ours, summed (as LAVIS' ``GatherLayer``)."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, tensor.contiguous())
        return tuple(everyone)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        total = torch.stack(gradients)
        dist.all_reduce(total)
        return total[dist.get_rank()]


class _AllToAll(Function):
    """Send ``sent[r]`` of our rows to process r and get ``received[r]`` of its; backward, the other way round."""

    @staticmethod
    def forward(ctx, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:  # type: ignore[override]
        ctx.sent, ctx.received = sent, received
        return _exchange(rows, sent, received)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _exchange(gradient, ctx.received, ctx.sent), None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    result = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(result, rows.contiguous(), received, sent)
    return result
