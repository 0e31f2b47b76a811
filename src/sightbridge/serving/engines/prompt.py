"""From a request to what the decoding thread needs: checked, encoded, pictures opened; all without the model."""

from __future__ import annotations

import time
from copy import copy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sightbridge.batch import Batch
from sightbridge.data.feature_store import Views
from sightbridge.data.processor import Processor, Row
from sightbridge.data.record import Record
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.generation.generate import check_room
from sightbridge.models.context import position_limit
from sightbridge.models.vlm import FrozenPrefix, VisionLanguageModel, can_read
from sightbridge.serving.engines.feature_cache import FeatureCache, content_key
from sightbridge.serving.engines.request import Request
from sightbridge.serving.engines.ticket import Ticket
from sightbridge.text.encode import Encoded

LONGEST = 8192
"""Positions of prompt and answer where the language model's configuration sets no limit (T5, BLOOM)."""


class Picture(NamedTuple):
    """A picture of a prompt: its key in the cache and either its features (S, C) or its pixels (3, H, W)."""

    key: str
    features: Tensor | None
    pixels: Tensor | None


@dataclass(eq=False)
class Prompt:
    """A request made ready, until it is answered. ``submitted`` and ``began`` are times of the monotonic clock."""

    ticket: Ticket
    encoded: Encoded
    asked: tuple[list[int], ...]
    pictures: list[Picture]
    submitted: float = field(default_factory=time.monotonic)
    began: float | None = None

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.ticket.request

    @property
    def length(self) -> int:
        """Positions, those of pictures included."""
        return len(self.encoded.input_ids)

    @property
    def is_alone(self) -> bool:
        """Whether it is answered beside the running batch: a beam search."""
        return self.request.settings.num_beams > 1


class PromptMaker:
    """Makes requests ready, in the threads of those who submit them, and batches of them in the decoding thread.

    Args:
        model: its configuration tells how long a prompt may be.
        processor: of the model. Its greatest length is not applied: nothing is cut off unnoticed.
        cache: of features.
        max_tokens: bound on prompt and answer together, an encoder-decoder's each; ``None``: what the model takes.

    Attributes:
        hits, misses: pictures whose features were there, and whose were not.
    """

    def __init__(
        self, model: VisionLanguageModel, processor: Processor, cache: FeatureCache, max_tokens: int | None = None
    ) -> None:
        self._model = model
        self.processor = copy(processor)
        self.processor.prompt_settings = processor.prompt_settings.model_copy(
            update={"max_length": None, "max_answer_length": None}
        )
        self.cache = cache
        self.hits = self.misses = 0
        self.prefix: FrozenPrefix = "connector.read" if can_read(model.connector) else "tower"
        self._views = Views(processor.image_settings.model_copy(update={"augment": "none"}))
        self.max_tokens = max_tokens or position_limit(model.language_model.config) or LONGEST

    def make(self, request: Request) -> Prompt:
        """Check a request, encode its text, open pictures whose features are not kept.

        Raises:
            SettingsError: several answers, or a beam search with log-probabilities.
            DataError: markers and pictures disagree, or prompt and answer are too long.
            ImageError: a picture cannot be opened.
        """
        _check_settings(request)
        record = request.record
        if request.is_written:
            encoded = self.processor.encode_written(request.turns[0].text or "", len(request.images))
            request = self._shortened(request, len(encoded.input_ids))
        else:
            encoded = self.processor.encode(record, for_generation=True)
        self._check_length(len(encoded.input_ids), request.settings.max_new_tokens)
        pictures = [self._open(record, position) for position in range(encoded.images)]
        text = self.processor.connector_text
        asked = tuple(text.ids(record.turns)[: len(pictures)]) if text and pictures else ()
        return Prompt(Ticket(request), encoded, asked, pictures)

    def batch(self, prompt: Prompt) -> Batch:
        """A batch of one, its pictures through the tower and what of the connector reads the picture alone."""
        features = torch.stack(self._features(prompt.pictures)) if prompt.pictures else None
        row = Row("request", prompt.encoded, features=features, asked=prompt.asked)
        batch = replace(self.processor.collate([row]), features_from=self.prefix)
        return batch.to(self._model.language_model.model.device)

    def _shortened(self, request: Request, prompt: int) -> Request:
        """The request for an answer that there is room for, if there is any; ``_check_length`` tells if not."""
        room = self.max_tokens - (0 if self.processor.encoder_decoder else prompt)
        longest = max(1, min(request.settings.max_new_tokens, room))
        return replace(request, settings=request.settings.model_copy(update={"max_new_tokens": longest}))

    def _check_length(self, prompt: int, answer: int) -> None:
        is_apart = self.processor.encoder_decoder
        if (max(prompt, answer) if is_apart else prompt + answer) > self.max_tokens:
            room = "each of them" if is_apart else "both together"
            raise DataError(
                f"the prompt takes {prompt:,} positions (pictures included) and max_tokens is {answer:,}, but "
                f"{self.max_tokens:,} is the most for {room}: shorten the text, show fewer pictures, or lower "
                "max_tokens"
            )
        check_room(self._model.language_model.config, prompt, answer)

    def _open(self, record: Record, position: int) -> Picture:
        view = self._views.seen(record, position)
        try:
            key = content_key(view)
            features = self.cache.get(key)
            return Picture(key, features, self._views.open(view) if features is None else None)
        except ImageError as error:
            raise ImageError(f"picture {position + 1}: {error}") from error

    def _features(self, pictures: list[Picture]) -> list[Tensor]:
        """Features of each picture, one by one: the same whatever other pictures there are."""
        device = self._model.language_model.model.device
        found = []
        for key, features, pixels in pictures:
            kept = self.cache.get(key) if features is None else features
            self.hits += kept is not None
            if kept is None:
                assert pixels is not None, "opened where there were no features"
                self.misses += 1
                kept = self._model.run_prefix(pixels[None].to(device), self.prefix)[0]
                self.cache.put(key, kept)
            found.append(kept)
        return found


def _check_settings(request: Request) -> None:
    settings = request.settings
    if settings.num_answers > 1:
        raise SettingsError(
            f"num_answers is {settings.num_answers}, but a request is for one answer: send several", key="num_answers"
        )
    if settings.num_beams > 1 and request.logprobs is not None:
        raise SettingsError("logprobs are not told of a beam search: set num_beams to 1", key="logprobs")
