"""The model: pictures through a vision tower and a connector into the image slots of a language model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sightbridge.batch import Batch
from sightbridge.models.language_model import LanguageModel
from sightbridge.models.losses import Loss, target_loss
from sightbridge.models.parts import eval_frozen, trains
from sightbridge.models.splice import check_slots, splice
from sightbridge.models.vision_tower import VisionTower

FrozenPrefix = Literal["tower", "connector.read"]
PARTS = ("vision_tower", "connector", "language_model")


class VisionLanguageModel(nn.Module):
    """Vision tower, connector and language model; it holds no tokenizer.

    Attributes:
        tokens_per_image: T, image slots one picture fills.
        lockstep: whether a batch without pictures must run all that one with pictures does, also in evaluations: other
            processes may hold a slice of every weight.
        logits_at_once: whether the loss calls the head just once, however many targets there are; for the same reason.
    """

    def __init__(self, vision_tower: VisionTower, connector: nn.Module, language_model: LanguageModel) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.connector = connector
        self.language_model = language_model
        self.tokens_per_image: int = connector.tokens_per_image  # type: ignore[assignment]
        self.lockstep = self.logits_at_once = False

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Turn normalised pictures (N, 3, H, W) into features (N, S, C). A frozen tower leaves no graph behind."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(self.vision_tower)):
            return self.vision_tower(pixel_values)

    def frozen_prefix(self) -> FrozenPrefix | None:
        """What comes before the first trained weight, so that its output can be computed once for all steps.

        ``"tower"``: the vision tower; ``"connector.read"``: also all of the connector but its ``output``, where the
        connector can be left there and what it reads depends on the picture alone. ``None``: the tower trains.
        """
        if trains(self.vision_tower):
            return None
        if not can_read(self.connector):
            return "tower"
        trained = [name for name, parameter in self.connector.named_parameters() if parameter.requires_grad]
        return "connector.read" if all(name.startswith("output.") for name in trained) else "tower"

    def run_prefix(self, pixel_values: Tensor, prefix: FrozenPrefix) -> Tensor:
        """Features of pictures (N, 3, H, W): (N, S, C) of the tower, or (N, T, hidden size) of ``connector.read``."""
        features = self.encode_images(pixel_values)
        if prefix == "tower":
            return features
        return self.connector.read(features.to(next(self.connector.parameters()).dtype))  # type: ignore[operator]

    def connect(
        self,
        features: Tensor,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        features_from: FrozenPrefix = "tower",
    ) -> Tensor:
        """Turn features (N, S, C) into image tokens (N, T, D).

        Args:
            features: of the vision tower, or what ``run_prefix`` returned for ``features_from``.
            text_ids, text_mask: (N, Lq) what is asked about each picture, for a connector that reads it.
            features_from: what the features have behind them already.
        """
        features = features.to(next(self.connector.parameters()).dtype)
        if features_from == "connector.read":
            return self.connector.output(features)  # type: ignore[operator]
        text = () if text_ids is None else (text_ids, text_mask)
        return self.connector(features, *text)

    def embed(self, batch: Batch) -> Tensor:
        """Look up the text, put the image tokens in their slots: (B, L, D).

        Raises:
            DataError: a row's slots and pictures disagree.
        """
        embeddings = self.language_model.embed(batch.input_ids)
        features = batch.image_features
        if features is None and batch.pixel_values is not None:
            features = self.encode_images(batch.pixel_values)
        check_slots(batch, 0 if features is None else len(features), self.tokens_per_image)
        if features is None or len(features) == 0:
            return embeddings + self._idle_bridge() if self.training or self.lockstep else embeddings
        image_tokens = self.connect(features, batch.connector_ids, batch.connector_mask, batch.features_from)
        image_tokens = image_tokens / self.language_model.embedding_scale
        return splice(embeddings, batch.image_slots, image_tokens)

    def forward(self, batch: Batch) -> dict[str, Loss]:
        """Return ``lm``: the summed cross entropy over the batch's targets, and their number."""
        assert batch.labels is not None, "a batch without labels has no loss"
        hidden, labels = self._hidden(batch), batch.labels
        if not self.language_model.is_encoder_decoder:
            hidden, labels = hidden[:, :-1], labels[:, 1:]  # position i predicts token i + 1
        chunk = labels.numel() if self.logits_at_once else None
        vocabulary = self.language_model.config.vocab_size
        head, frozen = self.language_model.head, self.language_model.head_is_frozen and not self.lockstep
        return {"lm": target_loss(hidden, labels, head, vocabulary, chunk, frozen_head=frozen)}

    def logits(self, batch: Batch) -> Tensor:
        """Return all logits: (B, L, V) or, for an encoder-decoder fed with the batch's labels, (B, Ld, V)."""
        return self.language_model.head(self._hidden(batch))

    def _hidden(self, batch: Batch) -> Tensor:
        """Last hidden states of the language model, before its head."""
        decoder_input_ids = None
        if self.language_model.is_encoder_decoder:
            assert batch.labels is not None, "an encoder-decoder model needs labels to feed its decoder"
            decoder_input_ids = self.language_model.decoder_input_ids(batch.labels, batch.decoder_segments)
        return self.language_model(
            self.embed(batch), batch.attention_mask, decoder_input_ids, batch.segments, batch.decoder_segments
        )

    def _idle_bridge(self) -> Tensor:
        """Zero, computed from one blank picture through all that trains.

        A batch of text alone would leave these parameters out of the graph on this process, and data-parallel
        training would wait for their gradients for ever.
        """
        tower = self.vision_tower
        parameter = next(tower.parameters())
        if trains(tower):
            features = tower(parameter.new_zeros(1, 3, tower.image_size, tower.image_size))
        else:
            features = parameter.new_zeros(1, tower.positions, tower.channels)
        return 0.0 * self.connect(features).sum()

    def train(self, mode: bool = True) -> VisionLanguageModel:
        """Switch to training, but leave what is frozen in evaluation mode (no dropout)."""
        super().train(mode)
        eval_frozen(self, PARTS)
        return self


def can_read(connector: nn.Module) -> bool:
    """Whether a connector is a ``read`` of the picture alone and an ``output`` behind it."""
    return hasattr(connector, "read") and not getattr(connector, "takes_text", False)
