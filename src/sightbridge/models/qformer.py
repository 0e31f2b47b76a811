"""The Q-Former with both of its branches: learned queries that look at a picture, and text.

Li et al., BLIP-2 (arXiv 2301.12597), section 3.1. The layers are transformers' ``Blip2QFormer`` ones under their own
names, so weights move freely between this model, ``Blip2QFormerModel`` and released checkpoints; only the forward pass
is ours. It lets the passes of the first training stage share what they have in common: keys and values of a picture
(``look``), which any number of passes may pick from by row, and those of the queries, which the captions attend to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2PreTrainedModel, Blip2QFormerLayer


class KeysValues(NamedTuple):
    """Keys and values of one attention, each (rows, heads, positions, width of a head)."""

    key: Tensor
    value: Tensor

    def pick(self, rows: Tensor) -> KeysValues:
        """Take rows by number, (M,) int64, as often as they are named."""
        return KeysValues(self.key.index_select(0, rows), self.value.index_select(0, rows))


class QFormerLayer(Blip2QFormerLayer):
    """One layer: joint self-attention, then cross-attention of the queries alone, then a feed-forward per branch.

    Every argument is positional, and none has a name in which transformers sees a cache: under gradient checkpointing
    it would silently drop that one, and captions would no longer see the queries.
    """

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        num_queries: int,
        mask: Tensor | None,
        picture_key: Tensor | None,
        picture_value: Tensor | None,
        earlier_key: Tensor | None,
        earlier_value: Tensor | None,
        wanted: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new hidden states of the first ``wanted`` positions, and the keys and values of all."""
        keys, values = key, value = make_keys_values(self.attention.attention, hidden)
        if earlier_key is not None and earlier_value is not None:
            keys, values = torch.cat([earlier_key, key], dim=2), torch.cat([earlier_value, value], dim=2)
        hidden = hidden[:, :wanted]
        seen = attend(self.attention.attention, hidden, keys, values, None if mask is None else mask[:, :, :wanted])
        hidden = self.attention.output(seen, hidden)
        queries, text = hidden[:, :num_queries], hidden[:, num_queries:]
        if num_queries and self.has_cross_attention:
            assert picture_key is not None and picture_value is not None, "queries need a picture to look at"
            seen = attend(self.crossattention.attention, queries, picture_key, picture_value)
            queries = self.crossattention.output(seen, queries)
        branches = []
        if num_queries:
            branches.append(self.feed_forward_chunk_query(queries))
        if text.shape[1]:
            branches.append(self.feed_forward_chunk(text))
        return torch.cat(branches, dim=1), key, value


class QFormerModel(Blip2PreTrainedModel):
    """Any pass through the Q-Former; its weights have the names and shapes of ``Blip2QFormerModel``'s.

    Which pass it is, is told by what it is given (Q queries, L text positions):

    - query-only: embedded queries and the picture's keys and values;
    - text-only: ``num_queries=0`` and the text's ``key_mask``;
    - multimodal, queries and text seeing each other: both together, and the text's ``key_mask(.., Q)``;
    - causal multimodal (UniLM, arXiv 1905.03197): text alone, with the query-only pass' keys and values as ``earlier``
      and the ``causal_mask``. Queries do not see the text, so nothing of them needs to be computed again.
    """

    config: Blip2QFormerConfig
    _no_split_modules = ["QFormerLayer"]  # noqa: RUF012 - transformers' own way

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(QFormerLayer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()

    def look(self, features: Tensor) -> list[KeysValues | None]:
        """Make every layer's keys and values of pictures (N, S, C); None for layers without cross-attention."""
        return [
            make_keys_values(layer.crossattention.attention, features) if layer.has_cross_attention else None
            for layer in self.encoder.layer  # type: ignore[union-attr]
        ]

    def forward(
        self,
        embeddings: Tensor,
        num_queries: int,
        mask: Tensor | None = None,
        picture: list[KeysValues | None] | None = None,
        earlier: list[KeysValues] | None = None,
        wanted: int | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Run one pass.

        Args:
            embeddings: (B, Q + L, D): queries, then words with their positions added; not yet normalised.
            num_queries: Q; 0 in a pass over text alone.
            mask: what may be attended to, (B, 1, 1 or Q + L, positions of ``earlier`` + Q + L) bool; all if None.
            picture: what ``look`` gave, one row per row.
            earlier: per layer, keys and values of positions in front of these ones.
            wanted: how many of the first positions are needed of the last layer; it computes no others. Default: all.

        Returns:
            Hidden states (B, wanted, D), and per layer the keys and values of all these positions.
        """
        hidden = self.dropout(self.layernorm(embeddings))
        made = []
        layers = list(self.encoder.layer)  # type: ignore[arg-type]
        for index, layer in enumerate(layers):
            seen = (picture[index] if picture else None) or (None, None)
            before = earlier[index] if earlier else (None, None)
            is_last = index == len(layers) - 1
            hidden, key, value = layer(hidden, num_queries, mask, *seen, *before, wanted if is_last else None)
            made.append(KeysValues(key, value))
        return hidden, made


def make_keys_values(attention: Any, states: Tensor) -> KeysValues:
    """Project states (B, S, C) to an attention's keys and values."""
    return KeysValues(split_heads(attention, attention.key(states)), split_heads(attention, attention.value(states)))


def attend(attention: Any, states: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Let states (B, M, D) attend to keys and values; with BERT's dropout of attention weights while training."""
    dropout = attention.attention_dropout if attention.training else 0.0
    query = split_heads(attention, attention.query(states))
    seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return seen.transpose(1, 2).flatten(2)


def split_heads(attention: Any, states: Tensor) -> Tensor:
    """(B, S, D) to (B, heads, S, width of a head)."""
    return states.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)


def key_mask(text_mask: Tensor, num_queries: int = 0) -> Tensor:
    """Let every position see the queries and the real words of its row: (B, 1, 1, Q + L)."""
    return F.pad(text_mask.bool(), (num_queries, 0), value=True)[:, None, None]


def causal_mask(text_mask: Tensor, num_queries: int) -> Tensor:
    """Let every word see the queries and the words up to itself: (B, 1, L, Q + L)."""
    length = text_mask.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=text_mask.device).tril()
    return key_mask(text_mask, num_queries) & F.pad(past, (num_queries, 0), value=True)
