"""Many at once and each as if alone: tokens, texts, seeds, company."""

from __future__ import annotations

import random
import time

import pytest
from engine_requests import alone, ask, engine_of, model_of, random_request

from sightbridge.serving.request import Finished, Piece
from sightbridge.serving.slots import can_join

JOINED = ["llama", "opt", "gpt2", "bloom", "t5", "mistral", "qwen3", "gemma", "umt5", "mt5"]


@pytest.mark.parametrize("family", [*JOINED, "bart", "gemma2"])
def test_parity_answers_are_those_given_alone_whatever_else_runs(family: str) -> None:
    rng = random.Random(family)
    requests = [random_request(rng) for _ in range(14)]
    expected = [alone(family, request) for request in requests]
    assert can_join(model_of(family).language_model) == (family in JOINED)
    with engine_of(family, max_batch=5) as engine:
        tickets = []
        for request in requests:
            tickets.append(engine.submit(request))
            time.sleep(rng.choice([0, 0, 0.005, 0.02]))  # they arrive between any two steps
        assert [ticket.result(60)[0] for ticket in tickets] == expected
        stats = engine.stats()
    assert stats["finished"] == 14 and stats["tokens"] > stats["steps"] + 14, "rows shared steps"
    assert len(set(expected)) > 8
