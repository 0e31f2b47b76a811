"""Engines on models in 8 and 4 bits and in bfloat16: the answers of ``generation`` on the same model."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from engine_requests import model_of, processor_of, random_request

from sightbridge.checkpoints.quantized import quantize_language_model
from sightbridge.generation.answer import stream_batch
from sightbridge.serving.engines.engine import Engine


@pytest.mark.parametrize(
    ("family", "kind", "max_batch"),
    [("llama", "nf4", 8), ("t5", "nf4", 8), ("llama", "8bit", 1), ("llama", "bfloat16", 1)],
)
def test_parity_in_fewer_bits(family: str, kind: str, max_batch: int) -> None:
    """In 8 bits the columns held in full are found in all rows of a step, in bfloat16 sums round by its shape."""
    model, processor = copy.deepcopy(model_of(family)), processor_of(family)
    if kind == "bfloat16":
        model.language_model.to(torch.bfloat16)
    else:
        pytest.importorskip("bitsandbytes")
        assert quantize_language_model(model.language_model, kind, "cpu")  # pyright: ignore[reportArgumentType]
    rng = random.Random(7)
    requests = [random_request(rng) for _ in range(6)]
    engine = Engine(model, processor, name=kind, max_batch=max_batch)
    try:
        tickets = [engine.submit(request) for request in requests]
        answers = [ticket.result(60)[0] for ticket in tickets]
    finally:
        engine.close(drain=False)
    for request, answer in zip(requests, answers, strict=True):
        batch = processor([request.record], for_generation=True)
        assert answer == "".join(stream_batch(model, processor, batch, request.settings))
    assert len(set(answers)) > 3
