"""BLIP-2's first stage: a Q-Former learns to read pictures by matching and generating captions.

Li et al., BLIP-2 (arXiv 2301.12597), section 3.2; losses, heads and constants follow LAVIS' ``blip2_qformer``, which
this equals on one process. What is computed once here and several times there: the keys and values of a picture, which
the contrastive pass and all three pairs of the matching pass share.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from sightbridge.batch import IGNORE_INDEX, QFormerBatch
from sightbridge.errors import SettingsError
from sightbridge.models.connectors.qformer import QFormerOptions, qformer_config
from sightbridge.models.gather import fetch_rows, gather_numbers, gather_rows, process
from sightbridge.models.losses import Loss, target_loss
from sightbridge.models.parts import eval_frozen, trains
from sightbridge.models.qformer import KeysValues, QFormerModel, causal_mask, key_mask
from sightbridge.models.qformer_losses import best_query, contrastive_loss, draw_negatives, match_loss
from sightbridge.models.vision_tower import VisionTower
from sightbridge.models.vlm import FrozenPrefix


class QFormerPretrainingOptions(QFormerOptions):
    """The Q-Former of the first stage; defaults are LAVIS'."""

    projection_size: int = Field(256, ge=1, description="width in which pictures and texts are compared")
    temperature: float = Field(0.07, gt=0, description="similarities are divided by it; start of a trained value")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the contrastive and the captioning loss")
    itc_weight: float = Field(1.0, ge=0, description="weight of the image-text contrastive loss")
    itm_weight: float = Field(1.0, ge=0, description="weight of the image-text matching loss")
    itg_weight: float = Field(1.0, ge=0, description="weight of the captioning loss (image-grounded text generation)")
    captioning: bool = Field(
        True, description="with the captioning head; transformers' class has none, and a model of it writes no captions"
    )
    hard_negatives: Literal["sample", "hardest"] = Field(
        "sample", description="draw false pairs from the softmax of the similarities, or take the most similar one"
    )
    share_cross_attention: bool = Field(
        True, description="compute keys and values of a picture once for all passes (same result, less work)"
    )
    gather_gradients: bool = Field(
        False, description="several processes: also send the contrastive loss' gradients to other processes' rows"
    )


class Pictures(NamedTuple):
    """N pictures as the query-only pass saw them."""

    features: Tensor
    """(N, S, C), before the input norm."""
    look: list[KeysValues | None]
    """Keys and values of the features, for cross-attention."""
    queries: Tensor
    """(N, Q, D) what the queries read."""
    earlier: list[KeysValues]
    """Keys and values of the queries, for self-attention of captions."""


class LanguageHead(nn.Module):
    """BERT's masked-language-model head; its output table is the word embeddings, given in the call."""

    def __init__(self, config: object, vocabulary: int) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Map hidden states (M, D) to logits (M, V); ``words`` is the table of word embeddings (V, D)."""
        return F.linear(self.transform(hidden), words, self.bias)


class QFormerForPretraining(nn.Module):
    """The Q-Former with the text branch and the heads of the first stage.

    What the second stage goes on with has the names of ``QFormerConnector``: ``input_norm``, ``queries``, ``qformer``.
    Other names are those of transformers' ``Blip2ForImageTextRetrieval``; ``language_head`` and ``temperature`` have
    no place there. The last id of the vocabulary is [DEC], with which generated captions start.
    """

    def __init__(self, options: QFormerPretrainingOptions, in_channels: int) -> None:
        super().__init__()
        self.options = options
        config = qformer_config(options, in_channels)
        config.use_qformer_text_input = True
        width, std = options.hidden_size, options.initializer_range
        self.input_norm = nn.LayerNorm(in_channels, eps=options.input_norm_eps) if options.input_norm else nn.Identity()
        self.queries = nn.Parameter(torch.randn(1, options.num_queries, width) * std)
        self.qformer = QFormerModel(config)
        self.embeddings = Blip2TextEmbeddings(config)
        self.vision_projection = nn.Linear(width, options.projection_size)
        self.text_projection = nn.Linear(width, options.projection_size)
        self.itm_head = nn.Linear(width, 2)
        self.language_head = LanguageHead(config, options.text_vocabulary) if options.captioning else None
        self.temperature = nn.Parameter(torch.tensor(options.temperature))
        for drawn in (self.embeddings.word_embeddings, self.embeddings.position_embeddings):
            nn.init.normal_(drawn.weight, std=std)
        if self.language_head is not None:
            nn.init.normal_(self.language_head.transform.dense.weight, std=std)
            nn.init.zeros_(self.language_head.transform.dense.bias)

    @property
    def decoder_start_id(self) -> int:
        """Id of [DEC]."""
        return self.options.text_vocabulary - 1

    def forward(self, features: Tensor, batch: QFormerBatch) -> dict[str, Loss]:
        """Return the three losses ``itc``, ``itm`` and ``itg``, each as its weight times a sum, and a count.

        The counts are the batch's ``loss_counts``: B rows, 3B pairs, tokens of captions. A row for whose picture (or
        text) nobody has a false partner, as in a batch of one row, has no negative: these pairs add nothing to the sum
        of ``itm`` but still count.

        Args:
            features: (N, S, C) of the batch's pictures.
            batch: B captions. Other processes' batches may have other sizes.
        """
        pictures = self.read_pictures(features)
        text, _ = self.read_text(batch.text_ids, batch.text_mask, wanted=1)
        device_type = features.device.type
        with torch.autocast(device_type, enabled=False):  # similarities are divided by a small number
            image_vectors = normalize(self.vision_projection, pictures.queries)[batch.image_index]
            text_vectors = normalize(self.text_projection, text[:, 0])
        options = self.options
        everyone = Everyone.gather(batch, len(features), features.device)
        gather = options.gather_gradients
        with torch.autocast(device_type, enabled=False):
            temperature = self.temperature.float()
            all_texts = gather_rows(text_vectors, everyone.rows, with_gradient=gather)
            all_images = gather_rows(image_vectors, everyone.rows, with_gradient=gather)
            image_to_text = best_query(image_vectors, all_texts) / temperature
            text_to_image = best_query(all_images, text_vectors).T / temperature
            itc = contrastive_loss(image_to_text, text_to_image, everyone.same, options.label_smoothing)
        itm = self._match(pictures, batch, everyone, image_to_text, text_to_image)
        itg = self._generate(pictures, batch)
        rows = len(batch)
        return {
            "itc": Loss(options.itc_weight * itc, rows),
            "itm": Loss(options.itm_weight * itm, 3 * rows),
            "itg": Loss(options.itg_weight * itg.sum, itg.count),
        }

    def read_pictures(self, features: Tensor) -> Pictures:
        """Query-only pass over pictures (N, S, C)."""
        look = self.look(features)
        queries = self.queries.expand(len(features), -1, -1)
        read, earlier = self.qformer(queries, self.options.num_queries, picture=look)
        return Pictures(features, look, read, earlier)

    def look(self, features: Tensor) -> list[KeysValues | None]:
        """Keys and values for cross-attention to pictures (N, S, C)."""
        return self.qformer.look(self.input_norm(features.to(self.queries.dtype)))

    def read_text(self, ids: Tensor, mask: Tensor, wanted: int | None = None) -> tuple[Tensor, list[KeysValues]]:
        """Text-only pass: hidden states (B, wanted or L, D) of ids (B, L) and mask (B, L)."""
        return self.qformer(self.embeddings(ids), 0, key_mask(mask), wanted=wanted)

    def read_pairs(self, look: list[KeysValues | None], ids: Tensor, mask: Tensor) -> Tensor:
        """Multimodal pass: what the queries (B, Q, D) read of row b's picture and text together."""
        count = self.options.num_queries
        together = self.embeddings(ids, query_embeds=self.queries.expand(len(ids), -1, -1))
        return self.qformer(together, count, key_mask(mask, count), picture=look, wanted=count)[0]

    def match_logits(self, look: list[KeysValues | None], ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, 2) of "no" and "yes, this text belongs to this picture": the mean over the queries."""
        return self.itm_head(self.read_pairs(look, ids, mask)).mean(dim=1)

    def continue_text(
        self, ids: Tensor, earlier: list[KeysValues], mask: Tensor | None, first_position: int = 0
    ) -> tuple[Tensor, list[KeysValues]]:
        """Causal pass over ids (B, L) that see ``earlier`` keys and values: hidden states (B, L, D), own keys."""
        positions = torch.arange(first_position, first_position + ids.shape[1], device=ids.device)[None]
        return self.qformer(self.embeddings(ids, position_ids=positions), 0, mask, earlier=earlier)

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (M, D) to logits (M, V) of the word that follows; ``SettingsError`` without a head."""
        if self.language_head is None:
            raise SettingsError(
                "This model has no captioning head: it came from transformers' class, which has no place for one. It "
                "compares pictures and texts; for captions take LAVIS' own file of the first stage.",
                key="model.qformer.captioning",
            )
        return self.language_head(hidden, self.embeddings.word_embeddings.weight)

    def _match(
        self,
        pictures: Pictures,
        batch: QFormerBatch,
        everyone: Everyone,
        image_to_text: Tensor,
        text_to_image: Tensor,
    ) -> Tensor:
        """Sum of the matching loss over true pairs, false pictures for the texts, and false texts for the pictures."""
        hardest = self.options.hard_negatives == "hardest"
        false_image, has_image = draw_negatives(text_to_image, everyone.same, hardest)
        false_text, has_text = draw_negatives(image_to_text, everyone.same, hardest)
        features, false_picture = everyone.find_pictures(false_image, batch.image_index, pictures.features)
        chosen = torch.cat([batch.image_index, false_picture, batch.image_index])
        if self.options.share_cross_attention:
            look = pictures.look
            if len(everyone.rows) > 1:  # also without a row, or its sender would wait for the gradient of none
                look = [a and b and join(a, b) for a, b in zip(look, self.look(features), strict=True)]
            look = [part and part.pick(chosen) for part in look]
        else:
            look = self.look(torch.cat([pictures.features, features])[chosen])
        own, false = everyone.own_texts(batch), (everyone.ids[false_text], everyone.mask[false_text])
        ids, mask = (torch.cat([mine, mine, other]) for mine, other in zip(own, false, strict=True))
        true = torch.ones_like(has_image)
        return match_loss(
            self.match_logits(look, ids, mask),
            labels=torch.cat([true, ~true, ~true]).long(),
            counted=torch.cat([true, has_image, has_text]),
        )

    def _generate(self, pictures: Pictures, batch: QFormerBatch) -> Loss:
        """Cross entropy of every word but the first, given the picture (through the queries) and the words before.

        Without a captioning head there is nothing to be learnt: a sum of zero.
        """
        if self.language_head is None:
            return Loss(pictures.queries.sum() * 0.0, int(batch.text_mask[:, 1:].sum()))
        ids = batch.text_ids.clone()
        ids[:, 0] = self.decoder_start_id
        mask = causal_mask(batch.text_mask, self.options.num_queries)
        earlier = [part.pick(batch.image_index) for part in pictures.earlier]
        hidden, _ = self.continue_text(ids[:, :-1], earlier, mask[:, :, :-1, :-1])
        labels = batch.text_ids.masked_fill(batch.text_mask == 0, IGNORE_INDEX)[:, 1:]
        smoothing = self.options.label_smoothing
        return target_loss(hidden, labels, self.word_logits, self.options.text_vocabulary, label_smoothing=smoothing)


class Everyone(NamedTuple):
    """What a process needs to know of all processes' batches, which have G rows together."""

    rows: list[int]
    """Rows of each process."""
    pictures: list[int]
    """Pictures of each process."""
    ids: Tensor
    """(G, L) all texts; L is the length of the longest."""
    mask: Tensor
    """(G, L)."""
    picture_of_row: Tensor
    """(G,) counted through the pictures of all processes."""
    same: Tensor
    """(B, G) bool: rows of this process that have the same picture as a row of all."""

    @classmethod
    def gather(cls, batch: QFormerBatch, pictures: int, device: torch.device) -> Everyone:
        """Exchange texts and which picture each row has; pictures themselves stay where they are."""
        rank, _ = process()
        sizes = gather_numbers([len(batch), pictures, batch.text_ids.shape[1]], device)
        rows, counts, lengths = ([size[i] for size in sizes] for i in range(3))
        missing = max(lengths) - batch.text_ids.shape[1]
        picture_of_row = gather_rows(batch.image_index + sum(counts[:rank]), rows)
        own = batch.image_ids if batch.image_ids is not None else batch.image_index + sum(counts[:rank])
        same = own[:, None] == gather_rows(own, rows)[None]
        ids, mask = (gather_rows(F.pad(part, (0, missing)), rows) for part in (batch.text_ids, batch.text_mask))
        return cls(rows, counts, ids, mask, picture_of_row, same)

    def own_texts(self, batch: QFormerBatch) -> tuple[Tensor, Tensor]:
        """This process' ids and mask, as long as everyone's."""
        missing = self.ids.shape[1] - batch.text_ids.shape[1]
        return F.pad(batch.text_ids, (0, missing)), F.pad(batch.text_mask, (0, missing))

    def find_pictures(self, chosen: Tensor, image_index: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Bring the pictures of chosen rows here.

        Returns the features (M, S, C) of those that other processes have, and where each chosen one is (B,): below N
        among this process' N pictures, above among the M. LAVIS gathers every picture of every process.
        """
        picture = self.picture_of_row[chosen]
        if len(self.rows) == 1:
            return features[:0], picture
        asked = gather_rows(picture, self.rows).split(self.rows)
        came, places = fetch_rows(features, self.pictures, [part.tolist() for part in asked])
        return came, torch.tensor(places, device=chosen.device)


class QFormerPretraining(nn.Module):
    """Vision tower and Q-Former of the first stage, trained on pictures and captions alone."""

    def __init__(self, vision_tower: VisionTower, qformer: QFormerForPretraining) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.qformer = qformer

    def encode_images(self, batch: QFormerBatch) -> Tensor:
        """Return features (N, S, C) of the batch's pictures; a frozen tower leaves no graph behind."""
        if batch.image_features is not None:
            return batch.image_features
        assert batch.pixel_values is not None, "a batch has pictures or their features"
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(self.vision_tower)):
            return self.vision_tower(batch.pixel_values)

    def forward(self, batch: QFormerBatch) -> dict[str, Loss]:
        """Return the summed losses ``itc``, ``itm`` and ``itg`` and their counts."""
        return self.qformer(self.encode_images(batch), batch)

    def frozen_prefix(self) -> FrozenPrefix | None:
        """Say what stands before the first trained parameter: the tower, or nothing."""
        return None if trains(self.vision_tower) else "tower"

    def run_prefix(self, pixel_values: Tensor, prefix: FrozenPrefix) -> Tensor:
        """Features (N, S, C) of pictures (N, 3, H, W), as ``VisionLanguageModel.run_prefix``."""
        assert prefix == "tower", "in front of the Q-Former there is nothing else"
        return self.vision_tower(pixel_values)

    def train(self, mode: bool = True) -> QFormerPretraining:
        """Switch to training, but leave what is frozen in evaluation mode (no dropout)."""
        super().train(mode)
        eval_frozen(self, ("vision_tower", "qformer"))
        return self


def normalize(projection: nn.Linear, hidden: Tensor) -> Tensor:
    """Project hidden states (.., D) to vectors of length one (.., P)."""
    return F.normalize(projection(hidden.to(projection.weight.dtype)).float(), dim=-1)


def join(first: KeysValues, second: KeysValues) -> KeysValues:
    """Put the rows of one behind those of the other."""
    return KeysValues(torch.cat([first.key, second.key]), torch.cat([first.value, second.value]))
