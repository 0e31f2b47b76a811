"""What happens to tensors between a foreign layout and ours: a pair of small functions for each operation.

Both take and return lists, as several names of one side may stand for one of the other. They are called with tensors on
the ``meta`` device, too, to learn the shapes beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sightbridge.errors import CheckpointError

Tensors = list[Tensor]


@dataclass(frozen=True)
class Op:
    """``to_ours`` and ``to_theirs`` undo each other.

    Attributes:
        theirs: how many names stand on their side.
        ours: how many names stand on our side.
        back: whether the rule takes part on the way back to them.
        optional: whether only the first of their names must be there.
    """

    to_ours: Callable[[Tensors], Tensors]
    to_theirs: Callable[[Tensors], Tensors]
    theirs: int = 1
    ours: int = 1
    back: bool = True
    optional: bool = False


def _same(tensors: Tensors) -> Tensors:
    return tensors


def _transpose(tensors: Tensors) -> Tensors:
    """Paddle keeps the matrix of a linear layer as (in, out), torch as (out, in)."""
    return [tensor.t().contiguous() for tensor in tensors]


def _join_qkv_bias(tensors: Tensors) -> Tensors:
    """EVA's attention has no bias for its keys (baaivision/EVA): one bias for all three has zeros in the middle."""
    q_bias, v_bias = tensors
    return [torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])]


def _part_qkv_bias(tensors: Tensors) -> Tensors:
    q_bias, k_bias, v_bias = _thirds(tensors[0])
    if not k_bias.is_meta and k_bias.any():
        raise CheckpointError("the bias of its keys is not zero, and the layout to be written has no place for it.")
    return [q_bias.clone(), v_bias.clone()]


def _thirds(tensor: Tensor) -> tuple[Tensor, ...]:
    if not tensor.ndim or len(tensor) % 3:
        raise CheckpointError(f"its shape {tuple(tensor.shape)} cannot be split into three.")
    return tensor.chunk(3)


def _split3(tensors: Tensors) -> Tensors:
    return [part.clone() for part in _thirds(tensors[0])]


def _join(tensors: Tensors) -> Tensors:
    return [torch.cat(tensors)]


def _one_of_tied(tensors: Tensors) -> Tensors:
    """A table that a model uses twice and some files hold twice, BERT's words in its head for one."""
    if not tensors[0].is_meta and not all(torch.equal(tensors[0], other) for other in tensors[1:]):
        raise CheckpointError("the model uses this weight twice, and its two copies in the file differ.")
    return tensors[:1]


def _tie(tensors: Tensors) -> Tensors:
    return [tensors[0], tensors[0]]


def _unwrap_number(tensors: Tensors) -> Tensors:
    return [tensors[0].reshape(())]


def _wrap_number(tensors: Tensors) -> Tensors:
    return [tensors[0].reshape(1)]


OPS: dict[str, Op] = {
    "same": Op(_same, _same),
    "transpose": Op(_transpose, _transpose),
    # an old spelling of a name that is written otherwise today
    "read": Op(_same, _same, back=False),
    "qkv_bias": Op(_join_qkv_bias, _part_qkv_bias, theirs=2),
    "split3": Op(_split3, _join, ours=3),
    "tied": Op(_one_of_tied, _tie, theirs=2, optional=True),
    # Paddle has no tensors without dimensions
    "number": Op(_unwrap_number, _wrap_number),
}
"""Operations by the name they have in a table; ``drop`` is none: what has no counterpart is only named."""
