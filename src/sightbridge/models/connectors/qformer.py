"""The Q-Former of BLIP-2: a few learned queries read a picture through cross-attention.

Li et al., BLIP-2 (arXiv 2301.12597). The heads that only its first training stage needs are not here. With
``text_input`` it keeps its text branch and reads the question beside the picture, as in BLIP-2's VQA fine-tuning
(section 4.3 there) and InstructBLIP (Dai et al., arXiv 2305.06500).
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

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
    text_input: bool = Field(False, description="read the question about a picture beside it (BLIP-2's VQA)")
    text_tokenizer: str | None = Field(None, description="folder or hub name of the tokenizer of that question")
    max_text_length: int = Field(32, ge=3, description="longest question in tokens, [CLS] and [SEP] included")
    text_vocabulary: int = Field(30523, ge=1, description="rows of the word embeddings (BERT's 30522 and [DEC])")
    text_positions: int = Field(512, ge=1, description="rows of the position embeddings")

    @model_validator(mode="after")
    def _whole_heads(self) -> QFormerOptions:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")
        return self

    @model_validator(mode="after")
    def _tokenizer_for_text(self) -> QFormerOptions:
        if self.text_input and self.text_tokenizer is None:
            raise ValueError("text_input needs a 'text_tokenizer', such as bert-base-uncased")
        if self.max_text_length > self.text_positions:
            raise ValueError(f"max_text_length {self.max_text_length} is above text_positions {self.text_positions}")
        return self


class QFormerConnector(nn.Module):
    """Features (N, S, C) to (N, num_queries, D): [LayerNorm,] Q-Former, linear layer.

    ``input_norm`` is LAVIS' ``ln_vision``: it sits behind the frozen vision tower but trains with the Q-Former, so
    it lives here; give the tower ``layers: [-1]``, which takes the features before any final norm.

    Attributes:
        takes_text: whether what is read of a picture depends on the question about it.
    """

    def __init__(self, options: QFormerOptions, in_channels: int, in_positions: int, out_width: int) -> None:
        super().__init__()
        self.tokens_per_image = options.num_queries
        self.takes_text = options.text_input
        self.input_norm = nn.LayerNorm(in_channels, eps=options.input_norm_eps) if options.input_norm else nn.Identity()
        # BERT draws its weights from a normal distribution, and LAVIS the queries too.
        queries = torch.randn(1, options.num_queries, options.hidden_size)
        self.queries = nn.Parameter(queries * options.initializer_range)
        config = qformer_config(options, in_channels)
        self.qformer = Blip2QFormerModel(config)
        self.output = nn.Linear(options.hidden_size, out_width)
        if options.text_input:  # drawn last, so that the other random weights do not depend on it
            self.embeddings = Blip2TextEmbeddings(config)
            for table in (self.embeddings.word_embeddings, self.embeddings.position_embeddings):
                nn.init.normal_(table.weight, std=options.initializer_range)

    def forward(self, features: Tensor, text_ids: Tensor | None = None, text_mask: Tensor | None = None) -> Tensor:
        """Map features (N, S, C), and what is asked about each picture, to image tokens (N, num_queries, D)."""
        return self.output(self.read(features, text_ids, text_mask))

    def read(self, features: Tensor, text_ids: Tensor | None = None, text_mask: Tensor | None = None) -> Tensor:
        """Let the queries read pictures: (N, num_queries, hidden_size), everything but the linear layer.

        Args:
            features: (N, S, C).
            text_ids: (N, Lq) ids of the ``text_tokenizer``; only with ``text_input``. Queries and text see each other,
                only queries see the picture.
            text_mask: (N, Lq), 0 on padding; a row of zeros is a picture that nothing is asked about.
        """
        queries = self.queries.expand(len(features), -1, -1)
        seen = self.input_norm(features)
        if not self.takes_text:
            return self.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        if text_ids is None or text_mask is None:
            # One masked position changes nothing, but keeps the text branch in the graph: data-parallel training
            # would otherwise wait for its gradients for ever.
            text_ids = text_mask = torch.zeros(len(features), 1, dtype=torch.long, device=features.device)
        together = self.qformer(
            query_embeds=self.embeddings(input_ids=text_ids, query_embeds=queries),
            query_length=self.tokens_per_image,
            attention_mask=torch.cat([text_mask.new_ones(queries.shape[:2]), text_mask], dim=1),
            encoder_hidden_states=seen,
        ).last_hidden_state
        return together[:, : self.tokens_per_image]


def qformer_config(options: QFormerOptions, in_channels: int) -> Blip2QFormerConfig:
    """Say the options in the words of transformers."""
    return Blip2QFormerConfig(
        vocab_size=options.text_vocabulary,
        max_position_embeddings=options.text_positions,
        pad_token_id=None,  # padding is masked; a padding row that never trains would only matter as a real word's
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
        use_qformer_text_input=options.text_input,
    )
