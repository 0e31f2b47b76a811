"""Rows with no picture, one and two, together: each is answered as it is alone, whatever the model is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import QFORMER
from lively import ROWS, batch_of, lively_model, run

from sightbridge.config.generation import GenerationSettings
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.generation.answer import answer, answer_batch
from small_models import make_processor, picture, record, small_model

CONNECTORS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp"},
    "qformer": {"kind": "qformer", **QFORMER, "initializer_range": 0.5},
}
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "beam": {"num_beams": 3, "length_penalty": -1.0}}
EVERY_NUMBER = [(5, 0, 5), *ROWS, (6, 2, 3)]
"""Seed, pictures and text tokens of rows: text alone in front and in the middle, pairs of pictures at the end."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("family", ["llama", "bloom", "t5", "mt5"])
def test_rows_of_every_number_of_pictures_are_answered_as_alone(family: str, connector: str, way: str) -> None:
    model = lively_model(family, connector=CONNECTORS[connector])
    options = {"max_new_tokens": 6, **WAYS[way]}
    alone = [run(model, batch_of(model, [row]), **options)[0] for row in EVERY_NUMBER]
    for side in ("left", "right"):
        assert run(model, batch_of(model, EVERY_NUMBER, side), **options) == alone, side
    reordered = run(model, batch_of(model, EVERY_NUMBER[::-1]), **options)
    assert reordered == alone[::-1]
    assert len({tuple(row) for row in alone}) >= 5, "rows that all say the same would show nothing"


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_left_and_right_picture_are_told_apart(family: str, connector: str) -> None:
    model = lively_model(family, connector=CONNECTORS[connector])
    pair = batch_of(model, [(2, 2, 9)])
    assert pair.pixel_values is not None
    swapped_pair = replace(pair, pixel_values=pair.pixel_values.flip(0))
    with torch.no_grad():
        first, second = model.embed(pair), model.embed(swapped_pair)
    swapped = torch.cat(list(second[pair.image_slots].chunk(2))[::-1])
    torch.testing.assert_close(first[pair.image_slots], swapped)
    assert not torch.allclose(first[pair.image_slots], second[pair.image_slots])


TEMPLATES = {"t5": ("mblip", "t5"), "llama": ("mblip_bloomz", "llama")}
RECORDS = [
    record("none", "Is the sky blue?", "yes"),
    record("pair", "<image>\n<image>\nBased on the two images, is it correct to say so? Yes or no?", "no", images=2),
    record("one", "<image>\nCaption in German: ", "ein Hund", images=1),
    record("around", "<image> left, <image> right: which is redder?", None, images=2),
]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_records_of_every_number_of_pictures_are_answered_as_alone(kind: str, beams: int) -> None:
    model, (template, tokenizer) = small_model(kind), TEMPLATES[kind]
    processor = make_processor(template, tokenizer, encoder_decoder=kind == "t5")
    settings = GenerationSettings(max_new_tokens=8, num_beams=beams)
    together = answer_batch(model, processor, RECORDS, settings, batch_size=4)
    assert together == [answer_batch(model, processor, [one], settings)[0] for one in RECORDS]
    question = "Based on the two images, is it correct to say so? Yes or no?"
    assert together[1] == answer(model, processor, [picture(0), picture(1)], question, settings)
    swapped = replace(RECORDS[1], images=RECORDS[1].images[::-1])
    batches = [processor([one], for_generation=True) for one in (RECORDS[1], swapped)]
    assert torch.equal(batches[0].input_ids, batches[1].input_ids)
    with torch.no_grad():
        assert not torch.allclose(model.embed(batches[0]), model.embed(batches[1]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (record("a-7", "<image>\nWhich?", None, images=2), r"record 'a-7': it has 2 picture\(s\).* hold 1 '<image>'"),
        (record("a-8", "<image>\n<image>\nWhich?", None, images=1), r"record 'a-8': it has 1 picture.* hold 2"),
        (record("a-9", "Which?", None, images=1), r"record 'a-9': it has 1 picture.* hold 0"),
        (
            record("a-10", "<image>?", None, where="pairs.jsonl, line 10"),
            r"pairs\.jsonl, line 10: record 'a-10': it has 0",
        ),
    ],
)
def test_a_wrong_number_of_pictures_names_the_record(wrong: Record, message: str) -> None:
    model, processor = small_model(), make_processor("mblip_bloomz")
    with pytest.raises(DataError, match=message):
        answer_batch(model, processor, [*RECORDS, wrong])
