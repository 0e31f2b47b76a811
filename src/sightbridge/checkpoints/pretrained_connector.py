"""A second stage's connector from a first stage's Q-Former: what BLIP-2 goes on with, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sightbridge.errors import CheckpointError
from sightbridge.models.connectors.qformer import QFormerConnector


def load_part_from_pretraining(connector: QFormerConnector, path: Path, num_heads: int) -> tuple[list[str], list[str]]:
    """Fill a connector from the ``qformer.safetensors`` of a first-stage folder, in place.

    Input norm, queries and Q-Former are taken, of a connector that reads questions the text branch, too. The linear
    layer to the language model stays as it is, fresh; the heads of the first stage are left behind (LAVIS loads its
    first stage with ``strict=False`` to the same effect).

    Args:
        connector: with a Q-Former of the same sizes.
        path: the file.
        num_heads: of the first stage's Q-Former; the sizes of weights do not show it.

    Returns:
        Lines for a report: what was taken, and what stays fresh here or is left there.

    Raises:
        CheckpointError: the file is damaged, or the connector is not built like that Q-Former.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
    return take_from_pretraining(connector, weights, path, num_heads)


@torch.no_grad()
def take_from_pretraining(
    connector: QFormerConnector, weights: Mapping[str, Tensor], path: Path, num_heads: int | None
) -> tuple[list[str], list[str]]:
    """The same with the ``weights`` of a file that is of any format; ``num_heads`` may not be known then."""
    wanted = {name: weight for name, weight in connector.state_dict().items() if not name.startswith("output.")}
    missing = sorted(wanted.keys() - weights.keys())
    taken = wanted.keys() & weights.keys()
    wrong = sorted(name for name in taken if wanted[name].shape != weights[name].shape)
    needed = (".attention.", "_query.", "input_norm.")  # what a second stage cannot do without
    beyond = sorted(name for name in weights.keys() - wanted.keys() if any(part in name for part in needed))
    if num_heads not in (None, connector.qformer.config.num_attention_heads):
        wrong.append("attention heads")
    problems = [
        f"it {what} {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
        for what, names in (("has not", missing), ("has in another size or number", wrong), ("also has", beyond))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path}: the first stage's Q-Former is not built as the connector here: {'; '.join(problems)}. Give "
            "model.connector the options that the first stage's recipe has under model.qformer."
        )
    for name in taken:
        wanted[name].copy_(weights[name])
    fresh = sorted(connector.state_dict().keys() - wanted.keys())
    unused = sorted(weights.keys() - wanted.keys())
    count = sum(weight.numel() for weight in wanted.values())
    return (
        [f"connector: {count:,} weights of {_groups(taken)}"],
        [f"connector: {_groups(fresh)} stays fresh", f"qformer: {_groups(unused)} is of no use here"],
    )


def _groups(names: Iterable[str]) -> str:
    """The outermost modules of some weights."""
    return ", ".join(sorted({name.split(".")[0] for name in names}))
