"""Drop path: residual branches of a vision transformer that are left out at random, picture by picture.

Huang et al., Stochastic Depth (arXiv 1603.09382), as in timm's and LAVIS' vision transformers: the rate grows linearly
from 0 in the first block to its full value in the last, and what is kept is scaled up so that the mean stays.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from sightbridge.errors import SettingsError

BRANCHES = (("self_attn", "attention"), ("mlp",))
"""Names that transformers' vision models give the modules whose output is added to the hidden states."""


def add_drop_path(blocks: nn.ModuleList, rate: float) -> None:
    """Let every block drop each of its two residual branches while it trains.

    Forward hooks do it, so the model's classes, and the names of its weights, stay what they are.

    Raises:
        SettingsError: the blocks have no modules that could be recognised as their branches.
    """
    for index, block in enumerate(blocks):
        share = rate * index / max(1, len(blocks) - 1)
        for names in BRANCHES:
            branch = next((module for name, module in block.named_children() if name in names), None)
            if branch is None:
                raise SettingsError(
                    f"'{type(block).__name__}' has no module {' or '.join(names)}, so drop path cannot be applied to "
                    "this vision model; set drop_path to 0.",
                    key="model.vision_tower.drop_path",
                )
            branch.register_forward_hook(partial(_drop, share))


def _drop(share: float, branch: nn.Module, inputs: Any, output: Any) -> Any:
    """Set the branch's output to zero for a ``share`` of the pictures, drawn anew each time."""
    if share == 0 or not branch.training:
        return None
    if isinstance(output, tuple):  # attention brings its weights along
        return (_drop_rows(output[0], share), *output[1:])
    return _drop_rows(output, share)


def _drop_rows(states: Tensor, share: float) -> Tensor:
    kept = states.new_empty(len(states), *[1] * (states.ndim - 1)).bernoulli_(1 - share)
    return states * kept / (1 - share)
