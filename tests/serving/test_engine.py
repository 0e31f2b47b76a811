"""Many at once and each as if alone: texts, tokens, seeds, probabilities, beams."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
import torch
from engine_requests import Gate, alone, ask, engine_of, model_of, processor_of, random_request, wait_until

from sightbridge.errors import SettingsError
from sightbridge.generation.answer import answer, generate_ids
from sightbridge.models.language_model import T5_FAMILY
from sightbridge.scoring.prefix import FAMILIES
from sightbridge.serving.engines.request import Finished, Piece, Request
from sightbridge.serving.engines.slots import can_join

JOINED = [*FAMILIES, *T5_FAMILY]


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


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bloom", "t5"])
def test_parity_tokens_of_rows_that_join_at_every_step(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = model_of(family), processor_of(family)
    requests = [ask("on a tree " * (7 * n % 5), n % 3, n, max_new_tokens=8 + 5 * n % 7, stop=["~"]) for n in range(6)]
    gate = Gate(monkeypatch)
    with engine_of(family) as engine:
        tickets = []
        for request in requests:
            tickets.append(engine.submit(request))
            gate.let(1)
        gate.open()
        for request, ticket in zip(requests, tickets, strict=True):
            batch = processor([request.record], for_generation=True)
            ids = generate_ids(model, processor, batch, request.settings)[0].tolist()
            events = list(ticket.events(20))
            written = [token for piece in events if isinstance(piece, Piece) for token in piece.token_ids]
            finished = events[-1]
            assert isinstance(finished, Finished)
            assert written == ids[: len(written)] and finished.completion_tokens == len(ids)
            assert finished.prompt_tokens == batch.input_ids.shape[1]
            assert finished.reason == ("length" if len(ids) == request.settings.max_new_tokens else "stop")
            assert 0 <= finished.waited <= (finished.first_token or 0) <= finished.seconds


def test_answers_are_those_of_ask() -> None:
    request = ask("What is it?", 1, 3, max_new_tokens=12)
    with engine_of("llama") as engine:
        text, finished = engine.submit(request).result(20)
    wanted = answer(model_of("llama"), processor_of("llama"), request.images, "<image> What is it?", request.settings)
    assert text == wanted and finished.reason == "length" and finished.completion_tokens == 12


def test_without_a_seed_answers_differ() -> None:
    with engine_of("llama") as engine:
        tickets = [engine.submit(ask(sample=True, temperature=5.0, max_new_tokens=9)) for _ in range(4)]
        assert len({ticket.result(20)[0] for ticket in tickets}) == 4


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_log_probabilities_are_those_of_the_whole_model(family: str) -> None:
    model, processor = model_of(family), processor_of(family)
    options = {"max_new_tokens": 7, "sample": True, "seed": 4, "temperature": 2.0}
    with engine_of(family) as engine:
        engine.submit(ask("and another", 2, max_new_tokens=20))
        tickets = [engine.submit(ask(logprobs=count, **options)) for count in (3, 0, None)]
        told = [[piece for piece in ticket.events(20) if isinstance(piece, Piece)] for ticket in tickets]
    ids = [token for piece in told[0] for token in piece.token_ids]
    logprobs = [one for piece in told[0] for one in piece.logprobs]
    with torch.no_grad():
        batch = processor([ask().record], for_generation=True)
        lm, embeddings = model.language_model, model.embed(batch)
        if family == "t5":
            shifted = torch.tensor([[lm.config.decoder_start_token_id, *ids[:-1]]])
            hidden = lm(embeddings, batch.attention_mask, shifted)[0]
        else:
            whole = torch.cat([embeddings, lm.embed(torch.tensor([ids[:-1]]))], dim=1)
            hidden = lm(whole, torch.ones(whole.shape[:2], dtype=torch.long))[0, -len(ids) :]
        expected = lm.head(hidden).log_softmax(-1)
    assert [one.token_id for one in logprobs] == ids and len(ids) >= 6
    for step, (one, token) in enumerate(zip(logprobs, ids, strict=True)):
        assert one.logprob == pytest.approx(expected[step, token].item(), abs=1e-3)
        assert [other.token_id for other in one.alternatives] == expected[step].topk(3).indices.tolist()
        assert one.text == processor.tokenizer.decode([token])
    assert [one.logprob for piece in told[1] for one in piece.logprobs] == [one.logprob for one in logprobs]
    assert not any(one.alternatives for piece in told[1] for one in piece.logprobs)
    assert not any(piece.logprobs for piece in told[2])


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_beam_search_runs_beside_the_others(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    beams, other = ask(num_beams=3, max_new_tokens=8), ask("who?", 0, max_new_tokens=30)
    late = ask("late", 1, max_new_tokens=3)
    gate = Gate(monkeypatch)
    with engine_of(family) as engine:
        running = engine.submit(other)
        gate.let(2)
        search = engine.submit(beams)
        gate.let(4)
        assert not search.is_over and not running.is_over, "the batch and the search take turns"
        newcomer = engine.submit(late)
        gate.let(3)
        assert newcomer.result(20)[0] == alone(family, late), "others may join while it searches"
        gate.open()
        wanted = answer(model_of(family), processor_of(family), beams.images, "<image> What is it?", beams.settings)
        assert search.result(20)[0] == wanted
        assert running.result(20)[0] == alone(family, other)
        given_up = engine.submit(beams)
        given_up.cancel()
        assert given_up.result(20)[1].reason == "cancelled"


def test_several_answers_are_several_requests() -> None:
    with engine_of("llama") as engine:
        with pytest.raises(SettingsError, match="num_answers is 2, but a request is for one answer"):
            engine.submit(ask(num_answers=2, sample=True))
        with pytest.raises(SettingsError, match="logprobs are not told of a beam search"):
            engine.submit(ask(num_beams=2, logprobs=1))


def test_an_event_loop_reads_many_at_once() -> None:
    requests = [ask(max_new_tokens=4 + n, first=n) for n in range(5)]

    async def read(engine: object, request: Request) -> list[object]:
        ticket = await asyncio.to_thread(engine.submit, request)  # type: ignore[attr-defined]
        return [event async for event in ticket.aevents()], list(ticket.events())  # type: ignore[return-value]

    async def read_all(engine: object) -> list[list[object]]:
        return await asyncio.gather(*(read(engine, request) for request in requests))

    with engine_of("llama") as engine:
        read_by_both = asyncio.run(read_all(engine))
    for request, (asynchronously, again) in zip(requests, read_by_both, strict=True):
        assert asynchronously == again
        assert "".join(event.text for event in again[:-1]) == alone("llama", request)  # type: ignore[index]


def test_reading_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with engine_of("llama") as engine:
        ticket = engine.submit(ask(stop=["~" * 9], min_new_tokens=3))
        wait_until(lambda: gate.size == 1)
        with pytest.raises(TimeoutError):
            ticket.result(0.05)
        gate.open()
