"""A language model of which there is nothing but the table that it looks tokens up in: its layers run elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sightbridge.models.language_model import LanguageModel


class InputEmbeddings(LanguageModel):
    """Makes prompts for a decoder-only language model that runs in another process; it cannot answer by itself.

    ``embed`` is that of the whole model; nothing else of ``LanguageModel`` works.
    """

    def __init__(self, table: Tensor, config: Any) -> None:
        """``table`` (V, D); ``config`` is that of the whole language model."""
        nn.Module.__init__(self)
        self.model = Table(table)
        self.config = config
        self.is_encoder_decoder = self.has_own_head = False
        self.width = table.shape[1]
        self.embedding_scale = float(getattr(config, "embedding_multiplier", 1.0))


class Table(nn.Module):
    """An embedding table in the place of a Hugging Face model."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table, freeze=True)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.table.weight.device

    def get_input_embeddings(self) -> nn.Embedding:
        """The table."""
        return self.table
