"""Weights of one part of a model: to a safetensors file, from it, and a fingerprint to know them by."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sightbridge.errors import CheckpointError
from sightbridge.models.lora import base_name, is_adapter


def unique_tensors(part: nn.Module) -> dict[str, Tensor]:
    """Return the state of ``part`` with every tensor once, under its first name: T5 has one table under three.

    Adapters are no part of it, and what they stand beside has the name it would have without them.
    """
    tensors: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in part.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if is_adapter(name) or (tensor.numel() and place in seen):
            continue
        seen.add(place)
        tensors[base_name(name)] = tensor
    return tensors


def part_dtype(part: nn.Module) -> str:
    """Name of the type that most weights of ``part`` are held in; norms may be in another.

    Of a quantised part it is the type it had before.
    """
    if (before := getattr(part, "unquantized", None)) is not None:
        return before.dtype
    sizes: Counter[torch.dtype] = Counter()
    for name, parameter in part.named_parameters():
        if not is_adapter(name):
            sizes[parameter.dtype] += parameter.numel()
    return str(sizes.most_common(1)[0][0]).removeprefix("torch.")


def parameter_count(part: nn.Module) -> int:
    """How many weights ``part`` has without adapters; of a quantised part, how many it had before."""
    if (before := getattr(part, "unquantized", None)) is not None:
        return before.parameters
    return sum(parameter.numel() for name, parameter in part.named_parameters() if not is_adapter(name))


def is_inside(name: str, submodules: Collection[str]) -> bool:
    """Whether the weight ``name`` is in one of ``submodules``."""
    return any(name == inner or name.startswith(f"{inner}.") for inner in submodules)


def save_part(part: nn.Module, path: Path, only: Collection[str] = ()) -> None:
    """Write every tensor of ``part``, or of the submodules ``only``, once.

    Raises ``CheckpointError`` for a quantised part.
    """
    if hasattr(part, "unquantized"):
        raise CheckpointError(
            f"{path}: a quantised language model cannot be stored, its weights are rounded; load it in full "
            "(quantize='none'), or save the folder without self_contained."
        )
    chosen = {name: t for name, t in unique_tensors(part).items() if not only or is_inside(name, only)}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in chosen.items()}, path)


def load_part(part: nn.Module, path: Path, only: Collection[str] = ()) -> None:
    """Fill ``part`` with what ``save_part`` wrote, in place; ``only`` as there.

    Raises ``CheckpointError`` if the file is damaged, or its keys or shapes are not exactly those of ``part``.
    """
    weights = _read(path)
    wanted = {name: t for name, t in unique_tensors(part).items() if not only or is_inside(name, only)}
    _fill(part, weights, wanted, path)


def load_some(part: nn.Module, path: Path, names: Collection[str]) -> None:
    """Fill the tensors ``names`` of ``part`` from a file that may hold others too; errors as ``load_part``."""
    weights = {name: tensor for name, tensor in _read(path).items() if name in names}
    _fill(part, weights, {name: t for name, t in unique_tensors(part).items() if name in names}, path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error


def _fill(part: nn.Module, weights: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    """Put ``weights`` in place of the tensors ``wanted`` of ``part``, whose names and shapes must be theirs."""
    problems = [
        _list_problem("missing", sorted(wanted.keys() - weights.keys())),
        _list_problem("unexpected", sorted(weights.keys() - wanted.keys())),
        _list_problem(
            "differently shaped",
            [
                f"{name} (expected {tuple(wanted[name].shape)}, got {tuple(weights[name].shape)})"
                for name in sorted(wanted.keys() & weights.keys())
                if wanted[name].shape != weights[name].shape
            ],
        ),
    ]
    if any(problems):
        raise CheckpointError(
            f"{path}: the weights do not fit the model that the manifest describes: "
            f"{'; '.join(filter(None, problems))}. Was the manifest or the file exchanged?"
        )
    # Each tensor takes on the file's type; casting the whole part instead would also cast what no file holds, such as
    # the float32 frequencies of rotary embeddings.
    named = dict(part.named_parameters(remove_duplicate=False)) | dict(part.named_buffers(remove_duplicate=False))
    places = {base_name(name): tensor for name, tensor in named.items()}
    for name, tensor in weights.items():
        places[name].data = tensor.clone()


def fingerprint(part: nn.Module) -> str:
    """Return a hash of samples of all weights, the same wherever and under whatever names they are loaded.

    It tells a language model from its fine-tuned cousin without reading gigabytes twice. Position tables are left out:
    resampling them for another picture size may differ in the last bit between machines. A quantised part has that of
    the full one it came from.
    """
    if (before := getattr(part, "unquantized", None)) is not None:
        return before.fingerprint
    return hash_samples(sample(t) for name, t in unique_tensors(part).items() if "position" not in name)


def sample(tensor: Tensor, dtype: torch.dtype | None = None) -> bytes:
    """What a fingerprint takes of one tensor, held in ``dtype``: its shape, its type and some 64 of its values."""
    values = tensor.detach().flatten()
    values = values[:: max(1, len(values) // 64)][:64].to(dtype or tensor.dtype).contiguous().cpu()
    return f"{tuple(tensor.shape)}{values.dtype}".encode() + values.view(torch.uint8).numpy().tobytes()


def hash_samples(samples: Iterable[bytes]) -> str:
    """The fingerprint of a part whose tensors, but for position tables, gave these samples."""
    return hashlib.sha256(b"".join(sorted(samples))).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _list_problem(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} {kind}: {', '.join(names[:5])}{more}"
