"""What a file holds around its tensors: wrappers are taken off, plain values kept, the rest only named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightbridge.checkpoints.sources.base import LEFT_OUT, Stored
from sightbridge.checkpoints.sources.stored import FileTensor, SlicedTensor
from sightbridge.checkpoints.sources.unpickler import Inert
from sightbridge.errors import CheckpointError

WRAPPERS = ("model", "state_dict", "module")
"""Keys under which LAVIS (and many others), Lightning and DeepSpeed put the tensors."""
PREFIXES = ("module.", "_orig_mod.")
"""In front of every name: ``DistributedDataParallel``'s and ``torch.compile``'s."""
UNREAD_TENSORS = ("torch._utils.", "torch._tensor.", "torch.Tensor", "torch.nn.parameter.")
"""Beginnings of what makes tensors of other kinds: sparse, quantised, without numbers."""
MAX_TENSORS = 200_000
MAX_NAME = 500
MAX_VALUES = 2000
"""Of plain values kept from one file."""
MAX_TEXT = 2000


def named_tensors(content: Any, path: Path, may_be_empty: bool = False) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Tensors by name, and what ``Weights.extra`` keeps of the rest.

    Args:
        content: what a file held, with tensors that can be read in it.
        path: for messages.
        may_be_empty: a file without tensors is right, too.

    Raises:
        CheckpointError: there are none, or some are of a kind that is not read, empty, or without a proper name.
    """
    if not isinstance(content, dict):
        if isinstance(content, Inert):
            raise CheckpointError(
                f"{path}: holds no tensors by name, but a whole object of {content.what}, which cannot be read without "
                "running its code. Load it where it was made, and save its state_dict()."
            )
        raise CheckpointError(f"{path}: holds no tensors by name, but a {type(content).__name__}.")
    inner, beside = _unwrap(content)
    tensors: dict[str, Stored] = {}
    for name, value in inner.items():
        if isinstance(value, FileTensor | SlicedTensor):
            tensors[_checked(name, value, path)] = value
        elif isinstance(value, Inert) and value.what.startswith(UNREAD_TENSORS):
            raise CheckpointError(
                f"{path}: '{str(name)[:100]}' is no plain tensor ({value.what}: sparse, quantised or without numbers), "
                "and would be lost. Save dense ones."
            )
        elif isinstance(name, str):
            beside[name] = value
    if not tensors and not may_be_empty:
        raise CheckpointError(f"{path}: holds no tensors by name{_where_else(content)}.")
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{path}: holds {len(tensors):,} tensors; no model has that many.")
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors, plain_values(beside)


def plain_values(values: dict[Any, Any]) -> dict[str, Any]:
    """Texts, numbers, lists and tables of these; the names of all else under ``left_out``."""
    kept: dict[str, Any] = {}
    left_out = []
    budget = [MAX_VALUES]
    for name, value in values.items():
        if not isinstance(name, str) or not (name.isprintable() and len(name) <= MAX_NAME):
            continue
        if _is_plain(value, budget, 8):
            kept[name] = value
        else:
            left_out.append(name)
    return kept | ({LEFT_OUT: left_out[:MAX_VALUES]} if left_out else {})


def _unwrap(content: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The table of tensors, and what lies beside it."""
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, dict) and any(isinstance(value, FileTensor | SlicedTensor) for value in inner.values()):
            return inner, {name: value for name, value in content.items() if name != wrapper}
    return content, {}


def _checked(name: Any, tensor: FileTensor | SlicedTensor, path: Path) -> str:
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise CheckpointError(f"{path}: a tensor's name is {str(name)[:100]!r}, not one that weights have.")
    if tensor.shape == (0,) and name.endswith(("weight", "bias")):
        raise CheckpointError(
            f"{path}: '{name}' is empty. Weights saved under DeepSpeed's ZeRO-3 without being gathered look like that; "
            "they are not in this file. DeepSpeed's zero_to_fp32.py makes a file that holds them."
        )
    return name


def _where_else(content: dict[Any, Any]) -> str:
    """Where tensors are, if not where weights are looked for."""
    for name, value in content.items():
        if isinstance(value, dict) and any(isinstance(inner, FileTensor | SlicedTensor) for inner in value.values()):
            return f" at the top or under {', '.join(WRAPPERS)}; there are some under {str(name)[:100]!r}"
    return ""


def _is_plain(value: Any, budget: list[int], depth: int) -> bool:
    """Whether a value is made of texts and numbers alone, not too many of them."""
    budget[0] -= 1
    if budget[0] < 0 or depth == 0:
        return False
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, list | tuple):
        return all(_is_plain(inner, budget, depth - 1) for inner in value)
    if isinstance(value, dict):
        return all(
            isinstance(key, str | int) and _is_plain(inner, budget, depth - 1) for key, inner in list(value.items())
        )
    if isinstance(value, int):
        return value.bit_length() <= 64
    return value is None or isinstance(value, float)
