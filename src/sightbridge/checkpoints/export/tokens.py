"""The place of ``<image>`` in a vocabulary, which transformers' classes ask for and our models do without."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken

from sightbridge.checkpoints.sources.base import Stored
from sightbridge.checkpoints.sources.model_folder import FolderWeights
from sightbridge.checkpoints.sources.weights import TensorInfo
from sightbridge.errors import CheckpointError
from sightbridge.text.turns import IMAGE_MARKER

LANGUAGE_MODEL = "language_model."


@dataclass(frozen=True)
class Grown:
    """A table or bias with more rows, all of them the mean of the old ones.

    The logit of such a row is the mean of all other logits, so never the largest: greedy decoding cannot choose it.
    Rows drawn at random, as conversions on the hub have them, could win.
    """

    base: Stored
    rows: int

    @property
    def info(self) -> TensorInfo:
        """Of the larger table."""
        return replace(self.base.info, shape=(self.rows, *self.base.info.shape[1:]))

    def read(self) -> Tensor:
        """Read the table and put the new rows below."""
        table = self.base.read()
        mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
        return torch.cat([table, mean.expand(self.rows - len(table), *mean.shape[1:])])


@dataclass(frozen=True)
class ImageToken:
    """A tokenizer that knows ``<image>``, weights that have a row for it, and how that came about."""

    tokenizer: Any
    id: int
    weights: FolderWeights
    rows: int
    note: str


def place_image_token(weights: FolderWeights, tokenizer: Any) -> ImageToken:
    """Give ``<image>`` an id whose row of the embedding table nothing else uses.

    Tables of T5, FlanT5, mT5, OPT, BLOOM, Qwen and others have more rows than there are tokens. Where there is none
    left (Llama), a decoder-only model's table gets one: in the exported file, not in any model here. An
    encoder-decoder's table is never grown: transformers ties T5's head to it when it is asked to resize.

    Raises:
        CheckpointError: there is no free row and the table cannot grow.
    """
    model = weights.language_model
    tokenizer = copy.deepcopy(tokenizer)
    tables = output_tables(weights)
    rows = weights.infos[tables[0]].shape[0]
    known = IMAGE_MARKER in tokenizer.get_vocab()
    if not known:
        tokenizer.add_tokens([AddedToken(IMAGE_MARKER, normalized=False, special=True)], special_tokens=True)
    number = tokenizer.convert_tokens_to_ids(IMAGE_MARKER)
    if len(set(tokenizer.get_vocab().values())) != len(tokenizer.get_vocab()):
        raise CheckpointError(f"{weights.path}: the tokenizer gives '{IMAGE_MARKER}' an id that it uses for another.")
    if number < rows:
        note = f"`{IMAGE_MARKER}` is token {number}" + (
            ", as in the tokenizer of the model."
            if known
            else f", a row of the embedding table ({rows}) that was free."
        )
        return ImageToken(tokenizer, number, weights, rows, note)
    if model.config.is_encoder_decoder:
        raise CheckpointError(
            f"{weights.path}: the tokenizer uses all {rows} rows of the language model's embedding table, so that "
            f"'{IMAGE_MARKER}' has no place, and the tables of an encoder-decoder are not grown here."
        )
    stored: Mapping[str, Stored] = weights.stored
    grown = weights.but({name: Grown(stored[name], number + 1) for name in tables})
    note = (
        f"The vocabulary had no free row for `{IMAGE_MARKER}`: the exported tables have {number + 1} rows instead of "
        f"{rows}. New rows are the mean of the others, so no new token can have the largest logit; the logits of all "
        "other tokens are those of the model here."
    )
    return ImageToken(tokenizer, number, grown, number + 1, note)


def output_tables(weights: FolderWeights) -> list[str]:
    """Names of the embedding table and, if they are there, of the head's weight and bias."""
    model = weights.language_model
    wanted = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    wanted += [tensor for tensor in (head.weight, getattr(head, "bias", None)) if tensor is not None]
    known = model.state_dict(keep_vars=True)
    names = [next(name for name, tensor in known.items() if tensor is table) for table in wanted]
    return list(dict.fromkeys(LANGUAGE_MODEL + name for name in names if LANGUAGE_MODEL + name in weights.infos))


def end_ids(processor: Any) -> list[int]:
    """Ids that end an answer: EOS, special tokens, and texts of the template that are one token (OPT's newline)."""
    single = [_spelled(processor.tokenizer, text) for text in processor.stop_strings]
    return list(dict.fromkeys([*processor.eos_ids, *(ids[0] for ids in single if len(ids) == 1)]))


def unspelled_ends(processor: Any) -> list[str]:
    """Texts that end an answer here and are several tokens, so that ``stop_strings`` of ``generate`` has to look."""
    return [text for text in processor.stop_strings if len(_spelled(processor.tokenizer, text)) != 1]


def _spelled(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text behind a word: at the front, SentencePiece puts the start of a word before it."""
    before, both = (tokenizer(words, add_special_tokens=False)["input_ids"] for words in ("a", f"a{text}"))
    return both[len(before) :] if both[: len(before)] == before else both
