"""One linear layer: LLaVA's first connector, and the whole of MiniGPT-4's."""

from __future__ import annotations

from torch import Tensor, nn

from sightbridge.config.base import Settings


class LinearOptions(Settings):
    """A linear connector has no options."""


class LinearConnector(nn.Module):
    """Features (N, S, C) to (N, S, D), each position by itself."""

    def __init__(self, options: LinearOptions, in_channels: int, in_positions: int, out_width: int) -> None:
        super().__init__()
        self.tokens_per_image = in_positions
        self.output = nn.Linear(in_channels, out_width)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, S, C) to image tokens (N, S, D)."""
        return self.output(features)
