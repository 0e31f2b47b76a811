"""Scores of BLIP-2's first stage: ITM reads picture and text together, ITC compares what it read of each apart.

As LAVIS and t2v_metrics define them: ITM is the probability of "match" after the mean of the queries' logits, ITC the
cosine similarity of the text and the picture's most similar query, without temperature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sightbridge.data.qformer_processor import QFormerProcessor
from sightbridge.errors import DataError, SettingsError
from sightbridge.models.qformer import KeysValues
from sightbridge.models.qformer_pretraining import QFormerPretraining, normalize
from sightbridge.scoring.fingerprint import fingerprint_of
from sightbridge.scoring.kinds import Chunk, Item, Row, batches_by_length
from sightbridge.scoring.settings import SCORES_VERSION, Kind


class _FirstStage:
    """What ITM and ITC have in common."""

    kind: Kind

    def __init__(self, model: QFormerPretraining, processor: QFormerProcessor) -> None:
        self.model = model
        self.processor = processor
        self.image_settings, self.transform = processor.image_settings, processor.transform

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.qformer.queries.device

    def changed(self, **settings: Any) -> Any:
        """Return itself; raises ``SettingsError`` if there are any settings."""
        return without_settings(self, settings)

    def describe(self) -> dict[str, Any]:
        """Return what shapes texts and pictures."""
        return {
            "kind": self.kind,
            "text": self.processor.text_settings.model_dump(mode="json"),
            "image": self.image_settings.model_dump(mode="json"),
            "dtype": str(self.model.qformer.queries.dtype).removeprefix("torch."),
            "version": SCORES_VERSION,
        }

    def fingerprint(self) -> str:
        """Return a hash of the weights."""
        return fingerprint_of(self.model)

    def items(self, texts: Sequence[str]) -> list[Item]:
        """Take texts as they are."""
        return list(texts)

    def features(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Run the tower over batches of pixels."""
        for pixels in batches:
            yield self.model.vision_tower(pixels.to(self.device))

    def tokenise(self, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L) of texts, on the model's device; raises ``DataError`` for one without a word."""
        texts = [str(item) for item in items]
        ids, mask = self.processor.texts(texts)
        for text, length in zip(texts, mask.sum(dim=1).tolist(), strict=True):
            if length == 2:
                raise DataError(f"the text '{text}' has no word that this model's tokenizer knows")
        return ids.to(self.device), mask.to(self.device)


class ImageTextMatching(_FirstStage):
    """Kind itm: a picture's keys and values are made once; every pair then takes one pass of the Q-Former."""

    kind: Kind = "itm"

    def read(self, items: Sequence[Item], batch_size: int) -> dict[Item, Tensor]:
        """Tokenise texts: ids (L,)."""
        return {item: self.tokenise([item])[0][0] for item in items}

    def encode(self, batches: Iterable[Tensor]) -> list[KeysValues | None]:
        """Make the keys and values of pictures for every layer that looks at them."""
        looks = [self.model.qformer.look(features) for features in self.features(batches)]
        return [
            None
            if layer[0] is None
            else KeysValues(
                torch.cat([part.key for part in layer if part]), torch.cat([part.value for part in layer if part])
            )
            for layer in zip(*looks, strict=True)
        ]

    def score(
        self, encoded: list[KeysValues | None], rows: Sequence[Row], read: dict[Item, Tensor], batch_size: int
    ) -> Iterator[Chunk]:
        """Score pairs, texts of about one length together."""
        pad_id = self.processor.tokenizer.pad_token_id
        for places in batches_by_length([len(read[item]) for _, item in rows], batch_size):
            pictures = torch.tensor([rows[place][0] for place in places], device=self.device)
            texts = [read[rows[place][1]] for place in places]
            ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad_id)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
            look = [part and part.pick(pictures) for part in encoded]
            logits = self.model.qformer.match_logits(look, ids, mask)
            yield Chunk(places, at_least_float32(logits).softmax(dim=1)[:, 1], [()] * len(places))


class ImageTextContrast(_FirstStage):
    """Kind itc: M pictures and N texts take M + N passes."""

    kind: Kind = "itc"

    def read(self, items: Sequence[Item], batch_size: int) -> dict[Item, Tensor]:
        """Encode texts: (P,) of length one."""
        read: dict[Item, Tensor] = {}
        for places in batches_by_length([len(str(item)) for item in items], batch_size):
            chosen = [items[place] for place in places]
            hidden, _ = self.model.qformer.read_text(*self.tokenise(chosen))
            read.update(zip(chosen, normalize(self.model.qformer.text_projection, hidden[:, 0]), strict=True))
        return read

    def encode(self, batches: Iterable[Tensor]) -> Tensor:
        """Encode pictures: (N, Q, P), every query of length one."""
        qformer = self.model.qformer
        return torch.cat(
            [
                normalize(qformer.vision_projection, qformer.read_pictures(features).queries)
                for features in self.features(batches)
            ]
        )

    def score(self, encoded: Tensor, rows: Sequence[Row], read: dict[Item, Tensor], batch_size: int) -> Iterator[Chunk]:
        """Compare all pairs."""
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            texts = torch.stack([read[item] for _, item in chosen])
            similar = torch.einsum("bqp,bp->bq", encoded[[picture for picture, _ in chosen]], texts).amax(dim=1)
            yield Chunk(list(range(start, start + len(chosen))), similar, [()] * len(chosen))


def without_settings(backend: Any, settings: dict[str, Any]) -> Any:
    """Return ``backend`` as it is; raises ``SettingsError`` if there is anything to change."""
    if settings:
        raise SettingsError(
            f"a score of kind '{backend.kind}' has no setting '{next(iter(settings))}'; it asks nothing"
        )
    return backend


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision is too coarse for probabilities."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit(tensor: Tensor) -> Tensor:
    """Vectors of length one."""
    return F.normalize(at_least_float32(tensor), dim=-1)
