"""The Q-Former of BLIP-2: a few learned queries read a picture through cross-attention.

Li et al., BLIP-2 (arXiv 2301.12597). Without the text branch that only its first training stage needs.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from sightbridge.config.base import Settings


class QFormerOptions(Settings):
    """Defaults are BLIP-2's: a BERT-base with cross-attention in every second layer and 32 queries."""

    num_queries: int = Field(32, ge=1, description="learned queries, so image tokens per picture")
    hidden_size: int = Field(768, ge=1, description="width of the Q-Former")
    num_layers: int = Field(12, ge=1, description="layers of the Q-Former")
    num_heads: int = Field(12, ge=1, description="attention heads per layer")
    intermediate_size: int = Field(3072, ge=1, description="width of the feed-forward layers")
    cross_attention_every: int = Field(2, ge=1, description="layers 0, n, 2n, ... look at the picture")
    dropout: float = Field(0.1, ge=0, lt=1, description="of hidden states and attention weights")
    norm_eps: float = Field(1e-12, gt=0, description="epsilon of the Q-Former's LayerNorms")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of random weights (BERT's)")
    input_norm: bool = Field(True, description="LayerNorm over the features in front (LAVIS' ln_vision)")
    input_norm_eps: float = Field(1e-5, gt=0, description="epsilon of that LayerNorm")


class QFormerConnector(nn.Module):
    """Features (N, S, C) to (N, num_queries, D): [LayerNorm,] Q-Former, linear layer.

    ``input_norm`` is LAVIS' ``ln_vision``: it sits behind the frozen vision tower but trains with the Q-Former, so
    it lives here; give the tower ``layers: [-1]``, which takes the features before any final norm.
    """

    def __init__(self, options: QFormerOptions, in_channels: int, in_positions: int, out_width: int) -> None:
        super().__init__()
        self.tokens_per_image = options.num_queries
        self.input_norm = nn.LayerNorm(in_channels, eps=options.input_norm_eps) if options.input_norm else nn.Identity()
        # BERT draws its weights from a normal distribution, and LAVIS the queries too.
        queries = torch.randn(1, options.num_queries, options.hidden_size)
        self.queries = nn.Parameter(queries * options.initializer_range)
        self.qformer = Blip2QFormerModel(qformer_config(options, in_channels))
        self.output = nn.Linear(options.hidden_size, out_width)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, S, C) to image tokens (N, num_queries, D)."""
        queries = self.queries.expand(len(features), -1, -1)
        read = self.qformer(query_embeds=queries, encoder_hidden_states=self.input_norm(features)).last_hidden_state
        return self.output(read)


def qformer_config(options: QFormerOptions, in_channels: int) -> Blip2QFormerConfig:
    """Say the options in the words of transformers."""
    return Blip2QFormerConfig(
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_layers,
        initializer_range=options.initializer_range,
        num_attention_heads=options.num_heads,
        intermediate_size=options.intermediate_size,
        cross_attention_frequency=options.cross_attention_every,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        layer_norm_eps=options.norm_eps,
        encoder_hidden_size=in_channels,
        hidden_act="gelu",
        use_qformer_text_input=False,
    )
