"""Rows of different ages in one decoding step: the caches of running answers, which rows join and leave at any time.

All rows end at the last column and are padded on the left, so a step adds one column for all of them. What a family
reads from columns is then right as it is: T5 and umT5 read differences of columns, BLOOM's slopes come from the mask.
The others are told every row's own position. BART counts columns from the first one and can be told nothing else; it
and the families that no test covers decode each row by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from sightbridge.models.language_model import T5_FAMILY, LanguageModel
from sightbridge.scoring.prefix import FAMILIES

ROOM = 64
"""Columns that are made at once; after so many steps the caches are copied to larger ones."""


class Prefilled(NamedTuple):
    """A prompt that has been read: ``logits`` (V,) of the first new token, and what the steps after it need.

    ``length``: positions that the decoder has seen; ``source``: those of the encoder, 0 without one.
    """

    logits: Tensor
    cache: Any
    length: int
    source: int


class Rows(Protocol):
    """The caches of running answers; the engine keeps everything else about them, in the same order."""

    def add(self, row: Prefilled) -> None:
        """Let a row join, as the last one."""
        ...

    def drop(self, index: int) -> None:
        """Let a row leave; the last one takes its place."""
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of every row (B,); logits (B, V) of the next ones, float32."""
        ...


def make_rows(language_model: LanguageModel) -> Rows:
    """Rows that decode together, where that is exact."""
    return JoinedRows(language_model) if can_join(language_model) else SeparateRows(language_model)


def can_join(language_model: LanguageModel) -> bool:
    """Whether rows of different ages decode together exactly: the families of which tests show it."""
    return language_model.config.get_text_config().model_type in (*FAMILIES, *T5_FAMILY)


def prefill(language_model: LanguageModel, embeddings: Tensor) -> Prefilled:
    """Read one prompt of embeddings (1, L, D)."""
    length = embeddings.shape[1]
    inputs: dict[str, Any] = {"inputs_embeds": embeddings, "attention_mask": _ones(1, length, embeddings)}
    if not language_model.is_encoder_decoder:
        if can_join(language_model):  # told no configuration, a cache keeps all positions, also under a sliding window
            inputs["past_key_values"] = DynamicCache()
        output = _call(language_model, inputs, torch.arange(length, device=embeddings.device)[None])
        return Prefilled(output.logits[0, -1].float(), output.past_key_values, length, 0)
    start = language_model.config.decoder_start_token_id
    inputs["decoder_input_ids"] = torch.full((1, 1), start, device=embeddings.device)
    output = language_model.model(**inputs, use_cache=True)
    return Prefilled(output.logits[0, -1].float(), output.past_key_values, 1, length)


class JoinedRows:
    """Rows that share every step."""

    def __init__(self, language_model: LanguageModel) -> None:
        self._language_model = language_model
        self._cache: Any = None
        self._lengths: list[int] = []
        self._sources: list[int] = []

    def add(self, row: Prefilled) -> None:
        """Let a row join, as the last one."""
        if self._cache is None:
            self._cache = _joined_cache(row.cache)
        for ours, theirs in zip(_layers(self._cache), _layers(row.cache), strict=True):
            ours.add(theirs.keys, theirs.values)
        self._lengths.append(row.length)
        self._sources.append(row.source)

    def drop(self, index: int) -> None:
        """Let a row leave; the last one takes its place."""
        for numbers in (self._lengths, self._sources):
            numbers[index] = numbers[-1]
            numbers.pop()
        if not self._lengths:
            self._cache = None
            return
        own, cross = max(self._lengths), max(self._sources)
        for layer in _self_layers(self._cache):
            layer.drop(index, own)
        for layer in _cross_layers(self._cache):
            layer.drop(index, cross)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of every row (B,); logits (B, V) of the next ones, float32."""
        device = self._language_model.model.device
        positions = torch.tensor(self._lengths, device=device)
        self._lengths = [length + 1 for length in self._lengths]
        ids, mask = torch.tensor(tokens, device=device)[:, None], _mask(self._lengths, device)
        if self._language_model.is_encoder_decoder:
            output = self._step_decoder(ids, mask)
        else:
            inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": self._cache}
            output = _call(self._language_model, inputs, positions[:, None])
        return output.logits[:, -1].float()

    def _step_decoder(self, ids: Tensor, mask: Tensor) -> Any:
        model = self._language_model.model
        across = _mask(self._sources, ids.device)
        # Nothing is read of the encoder's output but its shape: its keys and values are in the cache.
        encoded = torch.zeros(1, 1, 1, device=ids.device, dtype=model.dtype).expand(*across.shape, 1)
        return model(
            encoder_outputs=(encoded,),
            attention_mask=across,
            decoder_input_ids=ids,
            decoder_attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        )


class SeparateRows:
    """Rows that take their steps one after another, each with the cache that its family makes for itself."""

    def __init__(self, language_model: LanguageModel) -> None:
        self._language_model = language_model
        self._rows: list[Prefilled] = []

    def add(self, row: Prefilled) -> None:
        """Let a row join, as the last one."""
        self._rows.append(row)

    def drop(self, index: int) -> None:
        """Let a row leave; the last one takes its place."""
        self._rows[index] = self._rows[-1]
        self._rows.pop()

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of every row (B,); logits (B, V) of the next ones, float32."""
        self._rows = [self._step_row(row, token) for row, token in zip(self._rows, tokens, strict=True)]
        return torch.stack([row.logits for row in self._rows])

    def _step_row(self, row: Prefilled, token: int) -> Prefilled:
        model = self._language_model.model
        ids = torch.tensor([[token]], device=model.device)
        if row.source:
            encoded = torch.zeros(1, 1, 1, device=ids.device, dtype=model.dtype).expand(1, row.source, 1)
            output = model(
                encoder_outputs=(encoded,),
                attention_mask=_ones(1, row.source, ids),
                decoder_input_ids=ids,
                past_key_values=row.cache,
                use_cache=True,
            )
        else:
            inputs = {"input_ids": ids, "attention_mask": _ones(1, row.length + 1, ids), "past_key_values": row.cache}
            output = _call(self._language_model, inputs, torch.tensor([[row.length]], device=ids.device))
        return Prefilled(output.logits[0, -1].float(), output.past_key_values, row.length + 1, row.source)


class RowLayer(DynamicLayer):
    """One layer's keys and values of all rows, (B, heads, width, channels), each row against the right edge.

    They are a window into larger tensors, so that a step writes one column and copies nothing.
    """

    _layer_type = None

    def __init__(self) -> None:
        super().__init__()
        self._rows = self._start = self._end = 0

    def add(self, keys: Tensor, values: Tensor) -> None:
        """Let a row of keys and values (1, heads, L, channels) join, as the last one."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            self._stores = [new.new_zeros(0, new.shape[1], 0, new.shape[3]) for new in (keys, values)]
        length = keys.shape[2]
        width = max(length, self._end - self._start)
        if self._rows == len(self._stores[0]) or width > self._end:
            self._move(max(2 * self._rows, 1) if self._rows == len(self._stores[0]) else len(self._stores[0]), width)
        self._rows += 1
        self._start = self._end - width
        for store, new in zip(self._stores, (keys, values), strict=True):
            store[self._rows - 1, :, self._end - length : self._end] = new[0]
        self._show()

    def drop(self, index: int, width: int) -> None:
        """Let a row leave; the last one takes its place. ``width``: of the longest row that stays."""
        self._rows -= 1
        if index < self._rows:
            for store in self._stores:
                store[index] = store[self._rows]
        self._start = self._end - width
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add one column (B, heads, 1, channels); return all keys and values."""
        assert key_states.shape[2] == 1, "a step reads one token of every row"
        if self._end == self._stores[0].shape[2]:
            self._move(len(self._stores[0]), self._end - self._start)
        for store, new in zip(self._stores, (key_states, value_states), strict=True):
            store[: self._rows, :, self._end] = new[:, :, 0]
        self._end += 1
        return self._show()

    def _move(self, rows: int, end: int) -> None:
        """Copy the window into larger tensors of so many rows, where it ends at ``end``. Padding must be finite."""
        width = self._end - self._start
        for number, old in enumerate(self._stores):
            new = old.new_zeros(rows, old.shape[1], end + ROOM, old.shape[3])
            new[: self._rows, :, end - width : end] = old[: self._rows, :, self._start : self._end]
            self._stores[number] = new
        self._start, self._end = end - width, end

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (store[: self._rows, :, self._start : self._end] for store in self._stores)
        return self.keys, self.values


def _call(language_model: LanguageModel, inputs: dict[str, Any], positions: Tensor) -> Any:
    """Run a decoder-only model; only the last position's logits are made where the family lets us say so."""
    model = language_model.model
    if "position_ids" in inspect.signature(model.base_model.forward).parameters:
        inputs["position_ids"] = positions
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = 1
    return model(**inputs, use_cache=True)


def _joined_cache(cache: Any) -> Any:
    """An empty cache with as many layers as that of the first row."""
    if not isinstance(cache, EncoderDecoderCache):
        return _cache_of(len(cache.layers))
    count = len(cache.self_attention_cache.layers)
    joined = EncoderDecoderCache(_cache_of(count), _cache_of(count))
    joined.is_updated = dict.fromkeys(range(count), True)
    return joined


def _cache_of(layers: int) -> DynamicCache:
    cache = DynamicCache()
    cache.layers.extend(RowLayer() for _ in range(layers))
    return cache


def _layers(cache: Any) -> list[Any]:
    return [*_self_layers(cache), *_cross_layers(cache)]


def _self_layers(cache: Any) -> list[Any]:
    return cache.self_attention_cache.layers if isinstance(cache, EncoderDecoderCache) else cache.layers


def _cross_layers(cache: Any) -> list[Any]:
    return cache.cross_attention_cache.layers if isinstance(cache, EncoderDecoderCache) else []


def _mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """1 on the last positions of every row: (B, the greatest length)."""
    width = max(lengths)
    starts = torch.tensor([width - length for length in lengths], device=device)
    return (torch.arange(width, device=device) >= starts[:, None]).long()


def _ones(rows: int, length: int, like: Tensor) -> Tensor:
    return torch.ones(rows, length, dtype=torch.long, device=like.device)
