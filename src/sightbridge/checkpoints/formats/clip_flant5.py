"""The original layout of CLIP-FlanT5: T5 with a tower and an MLP beside its two stacks.

Its table of embeddings is in the file under up to four names, and its output head is apart (linzhiqiu/CLIP-FlanT5,
``model/language_model/clip_t5.py``). The tokenizer is not in the folder: the original takes that of the FlanT5 it began
as (linzhiqiu/t2v_metrics, ``models/vqascore_models/clip_t5_model.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.llava import (
    config_of,
    image_settings,
    refuse_what_is_not_here,
    tokenizer_folder,
    vision_settings,
)
from sightbridge.checkpoints.formats.llava_parts import (
    LANGUAGE_MODEL,
    TRAINED_WITH,
    bridge_settings,
    bridge_words,
    count_layers,
    dropped_notes,
    dtype_of,
    language_model_config,
    map_exactly,
    shape_of,
)
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.errors import CheckpointError

TABLE = "shared.weight"
ALIASES = ("embed_tokens.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""Other names of the table of embeddings."""
FLAN_T5 = {2048: "google/flan-t5-xl", 4096: "google/flan-t5-xxl"}
"""Where the tokenizer comes from, by the width of the language model."""
TOKENIZER_WORDS, FLAN_T5_WORDS = 32_100, 32_128
"""Words of FlanT5's tokenizer, and rows of its table: 28 are spare."""
PICTURE_SLOTS = 576
WHY_DROPPED = {"position_ids": "they are counted", "embed_tokens": "another name of the table of embeddings"}


def is_clip_flant5(weights: Weights) -> bool:
    """Whether these are a T5 and a projector, in the original layout."""
    names = weights.infos
    is_t5 = "encoder.final_layer_norm.weight" in names and "decoder.final_layer_norm.weight" in names
    return is_t5 and any(name.startswith("mm_projector.") for name in names)


def read_clip_flant5(weights: Weights) -> Found:
    """Say what a CLIP-FlanT5 is."""
    config = config_of(weights)
    mapped = map_exactly(OneTable(weights), "clip_flant5")
    refuse_what_is_not_here(weights, config)
    tower, tower_words, notes = vision_settings(mapped, config)
    language_model, tokenizer = t5_config(mapped, config), tokenizer_folder(weights)
    width = shape_of(mapped, f"{LANGUAGE_MODEL}{TABLE}", 2)[1]
    source = {} if tokenizer or width not in FLAN_T5 else {"tokenizer": FLAN_T5[width]}
    max_length = config.get("tokenizer_model_max_length") or 2048
    settings = {
        "vision_tower": tower,
        "connector": bridge_settings(mapped),
        "language_model": {"config": language_model, "dtype": dtype_of(mapped, LANGUAGE_MODEL), **source},
        "prompt": {
            "template": "t5_v1",  # EOS before the picture, as the released weights saw it
            "switches": dict(TRAINED_WITH),
            "max_length": max_length + PICTURE_SLOTS,  # the original counts a picture as one token
            "max_answer_length": max_length,
        },
        "image": image_settings(config),
    }
    layers = count_layers(mapped, f"{LANGUAGE_MODEL}encoder.block.")
    words = f"{bridge_words(mapped)}; T5 of {layers} blocks a stack and width {width}; {tower_words}"
    return Found(
        format="clip-flant5",
        what=f"CLIP-FlanT5, original layout: {words}",
        weights=mapped,
        kind="generation",
        settings=settings,
        tokenizer=tokenizer,
        notes=(*dropped_notes(mapped, WHY_DROPPED), *notes, *t5_notes(language_model, source)),
    )


def t5_config(weights: Weights, options: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the T5 inside; its head is apart unless the file's configuration ties it.

    Raises ``CheckpointError`` if a head that is apart is missing: it would become the table of embeddings.
    """
    config = language_model_config(weights, "t5", options)
    tied = bool(options.get("tie_word_embeddings", True))  # T5's own default; FlanT5's configuration says false
    if not tied and f"{LANGUAGE_MODEL}lm_head.weight" not in weights.infos:
        raise CheckpointError(f"{weights.path}: 'lm_head.weight' is missing, FlanT5's own output head.")
    # transformers 5 shows true for every T5, and reads here whether the hidden state is scaled in front of the head.
    return config | {"tie_word_embeddings": tied}


def t5_notes(config: dict[str, Any], source: dict[str, str]) -> list[str]:
    """What a reader of the report should know of vocabulary, tokenizer and template."""
    notes = ["prompt template t5_v1, of the second stage; a first stage's: prompt.template=t5_plain_split_text"]
    if source:
        notes.append(f"the tokenizer is {source['tokenizer']}'s, as in the original; none is in the folder")
    if config["vocab_size"] == FLAN_T5_WORDS:
        notes.append(
            f"all {FLAN_T5_WORDS} rows of the vocabulary are kept; the original cuts them to the tokenizer's "
            f"{TOKENIZER_WORDS} when it loads a model, so its probabilities are shares among those alone"
        )
    return notes


class OneTable(Weights):
    """The file's weights with the table of embeddings once, under its first name, read only if all its names agree."""

    def __init__(self, source: Weights) -> None:
        super().__init__(source.path, source.kind, dict(source.infos), source.config, source.extra)
        self._source = source
        self._names = [name for name in (TABLE, *ALIASES) if name in source.infos]
        if not self._names:
            raise CheckpointError(f"{source.path}: '{TABLE}', T5's table of embeddings, is missing there.")
        self.infos[TABLE] = source.infos[self._names[0]]

    def read(self, name: str) -> Tensor:
        """Read a tensor; raises ``CheckpointError`` for a table whose names hold different values."""
        if name != TABLE:
            return self._source.read(name)
        table = self._source.read(self._names[0])
        for other in self._names[1:]:
            if not torch.equal(self._source.read(other), table):
                raise CheckpointError(
                    f"{self.path}: '{other}' and '{self._names[0]}' differ, but T5 has one table of embeddings for "
                    "both stacks. The file was put together from two models, or changed."
                )
        return table

    def close(self) -> None:
        """Close the file."""
        self._source.close()


CLIP_FLANT5 = Format("clip-flant5", "CLIP-FlanT5, a folder in the original layout", is_clip_flant5, read_clip_flant5)
