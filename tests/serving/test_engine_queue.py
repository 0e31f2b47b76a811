"""Who waits, how long, and what one request's end or failure means to the others."""

from __future__ import annotations

import threading

import pytest
import torch
from engine_requests import Gate, alone, ask, engine_of, wait_until

from sightbridge.errors import DataError, ImageError
from sightbridge.serving.engines import engine as room
from sightbridge.serving.engines.engine import EngineClosedError, QueueFull, StepError
from sightbridge.serving.engines.request import Request
from sightbridge.text.turns import Turn
from small_models import picture

LONG = {"max_new_tokens": 60, "stop": ["~~"]}


def test_a_newcomer_joins_before_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with engine_of("llama", max_batch=4) as engine:
        for number in range(2):
            engine.submit(ask(first=number, **LONG))
        gate.let(5)
        for size in (3, 4):
            newcomer = engine.submit(ask("and now?", 1, size, max_new_tokens=5))
            gate.let(1)  # the one that ran when it came
            wait_until(lambda size=size: gate.size == size)
        gate.let(4)
        assert newcomer.result(20)[1].completion_tokens == 5, "four steps after its first token"
        gate.open()


def test_prompts_do_not_hold_up_running_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PREFILL_POSITIONS", 60)
    gate = Gate(monkeypatch)
    with engine_of("llama", max_batch=8) as engine:
        first = engine.submit(ask(**LONG))
        wait_until(lambda: gate.size == 1)
        length = engine._running[0].prompt.length
        assert 60 // 2 < length < 60, "two prompts are more than one step takes"
        for number in range(5):
            engine.submit(ask(first=number, **LONG))
        sizes = []
        for _ in range(3):
            written = len(engine._running[0].ids)
            gate.let(1)
            wait_until(lambda: gate.is_shut)
            assert len(engine._running[0].ids) == written + 1
            sizes.append(gate.size)
        assert sizes == [3, 5, 6] and not first.is_over
        gate.open()


def test_whoever_is_given_up_makes_room_before_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    requests = [ask(first=number, **LONG) for number in range(4)]
    with engine_of("llama", max_batch=2) as engine:
        tickets = [engine.submit(request) for request in requests]
        gate.let(6)
        tickets[0].cancel()
        tickets[2].cancel()  # waits
        gate.let(1)
        texts = {}
        for number in (0, 2):
            texts[number], finished = tickets[number].result(20)
            assert finished.reason == "cancelled"
        wait_until(lambda: engine.stats()["waiting"] == 0 and gate.size == 2)
        gate.open()
        for number in (1, 3):
            assert tickets[number].result(20)[0] == alone("llama", requests[number])
        assert texts[0] and alone("llama", requests[0]).startswith(texts[0]) and texts[2] == ""
        wait_until(lambda: engine.stats()["running"] == 0)
        assert engine.stats()["cancelled"] == 2 and engine.stats()["finished"] == 2


def test_the_queue_is_bounded_and_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    requests = [ask(first=number, max_new_tokens=6) for number in range(3)]
    with engine_of("llama", max_batch=1, max_queue=2) as engine:
        tickets = [engine.submit(requests[0])]
        wait_until(lambda: gate.size == 1)
        tickets += [engine.submit(request) for request in requests[1:]]
        with pytest.raises(QueueFull, match="2 requests to 'llama' wait already; try again in 1 s") as refused:
            engine.submit(ask())
        assert 1 <= refused.value.retry_after <= 60
        gate.open()
        assert [ticket.result(20)[0] for ticket in tickets] == [alone("llama", request) for request in requests]
        assert engine.submit(ask()).result(20)[1].reason == "length"
        assert engine.stats()["refused"] == 1


def test_closing_answers_what_was_accepted() -> None:
    requests = [ask(first=number, max_new_tokens=15) for number in range(6)]
    with engine_of("llama", max_batch=2) as engine:
        tickets = [engine.submit(request) for request in requests]
        engine.close()
        assert [ticket.result(0)[0] for ticket in tickets] == [alone("llama", request) for request in requests]
        with pytest.raises(EngineClosedError, match="'llama' is shutting down"):
            engine.submit(ask())


@pytest.mark.parametrize("options", [{"drain": False}, {"timeout": 0.1}])
def test_closing_in_a_hurry_cancels(options: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with engine_of("llama", max_batch=2) as engine:
        tickets = [engine.submit(ask(first=number, **LONG)) for number in range(4)]
        wait_until(lambda: gate.is_shut)
        closing = threading.Thread(target=engine.close, kwargs=options)
        closing.start()
        wait_until(lambda: engine._abandoned)
        gate.open()
        closing.join(20)
        assert [ticket.result(0)[1].reason for ticket in tickets] == ["cancelled"] * 4


def test_a_request_that_cannot_be_answered_fails_alone() -> None:
    good = ask(max_new_tokens=30)
    with engine_of("opt", max_batch=2) as engine:
        running = engine.submit(good)
        with pytest.raises(ImageError, match="picture 2: picture of 6 bytes"):
            engine.submit(Request((Turn("user", "<image><image>"), Turn("assistant", None)), (picture(0), b"GIF89a")))
        with pytest.raises(DataError, match=r"the prompt takes .* but 256 is the most for both together"):
            engine.submit(ask("long " * 300))
        with pytest.raises(DataError, match="image"):
            engine.submit(Request((Turn("user", "<image>"), Turn("assistant", None))))
        assert running.result(20)[0] == alone("opt", good)
    with engine_of("t5", max_tokens=50) as engine, pytest.raises(DataError, match="but 50 is the most for each"):
        engine.submit(ask(max_new_tokens=51))


def test_a_prompt_that_the_model_fails_on_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = room.prefill

    def prefill(language_model: object, embeddings: torch.Tensor) -> object:
        if embeddings.shape[1] > 100:
            raise RuntimeError("out of memory")
        return usual(language_model, embeddings)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "prefill", prefill)
    good = ask(max_new_tokens=30)
    with engine_of("llama") as engine:
        running, failing = engine.submit(good), engine.submit(ask("tree " * 100))
        with pytest.raises(StepError, match=r"the model failed on this request \(RuntimeError: out of memory\)"):
            failing.result(20)
        assert running.result(20)[0] == alone("llama", good)
        assert engine.stats()["failed"] == 1


def test_scores_that_are_not_numbers_end_their_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    requests = [ask(first=number, **LONG) for number in range(3)]
    with engine_of("llama") as engine:
        tickets = [engine.submit(request) for request in requests]
        gate.let(2)
        wait_until(lambda: gate.size == 3)
        gate.spoil = lambda logits: logits[1].fill_(torch.nan)  # type: ignore[assignment]
        gate.let(1)
        gate.spoil = None
        gate.open()
        with pytest.raises(DataError, match="scores are not numbers"):
            tickets[1].result(20)
        for number in (0, 2):
            assert tickets[number].result(20)[0] == alone("llama", requests[number])


def test_a_failing_step_ends_running_answers_and_the_engine_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    def fail(logits: torch.Tensor) -> None:
        gate.spoil = None
        raise RuntimeError("device lost")

    request = ask(**LONG)
    with engine_of("llama", max_batch=2) as engine:
        tickets = [engine.submit(request) for _ in range(3)]
        gate.let(2)
        wait_until(lambda: gate.size == 2)
        gate.spoil = fail
        gate.open()
        for ticket in tickets[:2]:
            with pytest.raises(StepError, match=r"the model failed \(RuntimeError: device lost\), which ended 2"):
                ticket.result(20)
        assert tickets[2].result(20)[0] == alone("llama", request), "who waited then is answered"
