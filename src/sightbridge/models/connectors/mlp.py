"""The multi-layer perceptron of LLaVA-1.5, ViP-LLaVA and CLIP-FlanT5."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from sightbridge.config.base import Settings


class MLPOptions(Settings):
    """LLaVA's ``mlp{N}x_gelu``; ViP-LLaVA puts a LayerNorm in front, because it joins layers of unequal scale."""

    layers: int = Field(2, ge=1, le=64, description="linear layers, with an exact (erf) GELU between them")
    input_norm: bool = Field(False, description="LayerNorm over the features in front (ViP-LLaVA)")
    input_norm_eps: float = Field(1e-5, gt=0, description="epsilon of that LayerNorm")


class MLPConnector(nn.Module):
    """Features (N, S, C) to (N, S, D), each position by itself: [LayerNorm,] Linear(C, D), [GELU, Linear(D, D)]*."""

    def __init__(self, options: MLPOptions, in_channels: int, in_positions: int, out_width: int) -> None:
        super().__init__()
        self.tokens_per_image = in_positions
        self.input_norm = nn.LayerNorm(in_channels, eps=options.input_norm_eps) if options.input_norm else nn.Identity()
        layers: list[nn.Module] = [nn.Linear(in_channels, out_width)]
        for _ in range(options.layers - 1):
            layers += [nn.GELU(), nn.Linear(out_width, out_width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, S, C) to image tokens (N, S, D)."""
        return self.layers(self.input_norm(features))
