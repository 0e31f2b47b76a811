"""Every option of generation does something, on a batch as on its rows alone, for an encoder-decoder as for a decoder.

(CLIP-FlanT5's own generation takes none of them: it is greedy, of 20 tokens, one row at a time.)
"""

from __future__ import annotations

from typing import Any

import pytest
from lively import batch_of, find_eos, lively_model, run

from sightbridge.config.generation import GenerationSettings

EVERY_NUMBER = [(5, 0, 5), (1, 1, 6), (2, 2, 9), (3, 0, 12), (4, 1, 4)]
"""Seed, pictures and text tokens of rows."""
SAMPLED = {"sample": True, "seed": 5, "temperature": 2.0}
OPTIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "max_new_tokens": ({}, 3),
    "min_new_tokens": ({}, 8),
    "num_beams": ({}, 4),
    "length_penalty": ({"num_beams": 4, "length_penalty": 3.0}, -3.0),
    "num_answers": ({"num_beams": 4}, 3),
    "sample": ({"seed": 5, "temperature": 2.0}, True),
    "temperature": (SAMPLED, 0.5),
    "top_p": (SAMPLED, 0.3),
    "top_k": (SAMPLED, 2),
    "repetition_penalty": ({}, 5.0),
    "seed": (SAMPLED, 6),
}
"""Options with the settings around them, and the value that is to make a difference. ``stop``: see test_generate."""


def test_no_option_is_forgotten() -> None:
    assert {*OPTIONS, "stop"} == set(GenerationSettings.model_fields)


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_makes_a_difference_and_batches_none(option: str, family: str) -> None:
    around, value = OPTIONS[option]
    model = lively_model(family)
    eos = find_eos(model, batch_of(model))
    chosen = {**around, option: value}
    together = run(model, batch_of(model, EVERY_NUMBER), eos, **chosen)
    assert together != run(model, batch_of(model, EVERY_NUMBER), eos, **around)
    assert together == run(model, batch_of(model, EVERY_NUMBER, "right"), eos, **chosen)
    alone = [answer for row in EVERY_NUMBER for answer in run(model, batch_of(model, [row]), eos, **chosen)]
    assert together == alone
    lengths = [len(answer) for answer in together]
    if option == "max_new_tokens":
        assert max(lengths) == value
    if option == "min_new_tokens":
        assert min(lengths) >= value
    if option == "num_answers":
        assert len(together) == value * len(EVERY_NUMBER)
