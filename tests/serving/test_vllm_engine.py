"""Prompts handed to a vLLM server, by a stand-in that continues the very embeddings that it is sent."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from api_server import Live, error_of, image, live, png, text, user
from engine_requests import alone, ask, model_of, processor_of, random_request, wait_until
from score_models import DECODERS
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_standin import NAME, Standin, standin

from sightbridge.checkpoints.export import export_model
from sightbridge.checkpoints.folder import load_model, save_model
from sightbridge.checkpoints.front import load_front
from sightbridge.cli.serve import _find_vllm
from sightbridge.config.model import ModelSettings
from sightbridge.config.serving import ServingSettings
from sightbridge.errors import CheckpointError, DataError, SettingsError
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.serving.api.one_at_a_time import OneAtATime
from sightbridge.serving.api.served import ServedModel
from sightbridge.serving.engines.engine import EngineClosedError, QueueFull, UpstreamError
from sightbridge.serving.engines.vllm_engine import VllmEngine
from sightbridge.serving.engines.vllm_server import VllmServer
from small_models import TOWER


@contextmanager
def handed_over(
    family: str = "llama", front: VisionLanguageModel | None = None, seconds: float = 300, **options: Any
) -> Iterator[tuple[VllmEngine, Standin]]:
    """An engine before a stand-in that has the language model of ``family``."""
    with standin(model_of(family).language_model) as (behind, url):
        server = VllmServer(url, seconds=seconds)
        engine = VllmEngine(front or model_of(family), processor_of(family), server, name=family, **options)
        behind.asked.clear()
        behind.shapes.clear()
        try:
            yield engine, behind
        finally:
            engine.close(drain=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama as a model folder."""
    settings = {
        "vision_tower": {"config": TOWER, "class_token": "drop"},
        "connector": {"kind": "linear"},
        "language_model": {"config": {"model_type": "llama", **DECODERS["llama"]}},
        "prompt": {"template": "vicuna_v1"},
        "image": processor_of("llama").image_settings.model_dump(),
    }
    path = tmp_path_factory.mktemp("vllm") / "model"
    return save_model(
        model_of("llama"),
        processor_of("llama"),
        ModelSettings.model_validate(settings),
        path,
        trained_parts=["connector", "language_model"],
        self_contained=True,
    )


@pytest.mark.parametrize("family", ["llama", "opt", "bloom", "qwen2"])
def test_parity_with_the_own_engine(family: str) -> None:
    """Mixed requests at once: texts are those of ``generation`` on the same model."""
    rng = random.Random(3)
    requests = [request for request in (random_request(rng) for _ in range(16)) if not request.settings.sample]
    with handed_over(family) as (engine, behind):
        behind.at_once = 3
        tickets = [engine.submit(request) for request in requests]
        answers = [ticket.result(30)[0] for ticket in tickets]
        wrong = [i for i, request in enumerate(requests) if answers[i] != alone(family, request)]
        print(f"{family}: {len(requests)} answers, {len(wrong)} differ, up to {behind.most_running} at once")
        assert not wrong and len(requests) > 8 and len(set(answers)) > 5
        assert engine.stats()["finished"] == len(requests) and engine.stats()["running"] == 0
        assert engine.stats()["feature_hits"] > 0


def test_parity_of_a_folders_front(folder: Path) -> None:
    """Without a layer of the language model, the same embeddings."""
    front, processor = load_front(folder)
    whole, _ = load_model(folder)
    assert sum(p.numel() for p in front.language_model.parameters()) == front.language_model.width * 900
    batch = processor([ask().record], for_generation=True)
    with torch.no_grad():
        difference = (front.embed(batch) - whole.embed(batch)).abs().max().item()
    print(f"embeddings differ by at most {difference}")
    assert difference == 0
    with handed_over(front=front) as (engine, behind):
        assert engine.submit(ask(max_new_tokens=12)).result(10)[0] == alone("llama", ask(max_new_tokens=12))
        assert behind.shapes == [(batch.input_ids.shape[1], front.language_model.width)]


def test_parity_of_the_exported_language_model(folder: Path, tmp_path: Path) -> None:
    """What a vLLM server is given to load, as transformers loads it."""
    export_model(folder, tmp_path / "lm", "language_model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    ids = torch.tensor([[5, 9, 300, 7]])
    with torch.no_grad():
        wanted = model_of("llama").language_model.model(input_ids=ids).logits
        difference = (loaded(input_ids=ids).logits - wanted).abs().max().item()
    print(f"logits differ by at most {difference}")
    assert difference < 1e-5
    assert AutoTokenizer.from_pretrained(tmp_path / "lm")("a tree")["input_ids"]


def test_only_what_can_be_handed_over(folder: Path, tmp_path: Path) -> None:
    settings = {
        "vision_tower": {"config": TOWER, "class_token": "drop"},
        "connector": {"kind": "linear"},
        "language_model": {"config": {"model_type": "t5", **model_of("t5").language_model.config.to_diff_dict()}},
        "prompt": {"template": "plain"},
    }
    settings["language_model"]["config"].pop("architectures", None)
    t5 = save_model(
        model_of("t5"),
        processor_of("t5"),
        ModelSettings.model_validate(settings),
        tmp_path / "t5",
        trained_parts=["connector"],
        self_contained=True,
    )
    with pytest.raises(CheckpointError, match="encoder-decoder"):
        load_front(t5)
    with standin(model_of("llama").language_model) as (_, url):
        server = VllmServer(url)
        with pytest.raises(SettingsError, match="'gemma2' are not handed to vLLM"):
            VllmEngine(model_of("gemma2"), processor_of("llama"), server, name="it")


def test_what_is_sent(folder: Path) -> None:
    with handed_over() as (engine, behind):
        engine.submit(ask(max_new_tokens=3, min_new_tokens=2)).result(10)
        engine.submit(ask(max_new_tokens=3, sample=True, temperature=0.5, top_p=0.9, top_k=7, seed=4)).result(10)
        greedy, sampled = behind.asked
        assert greedy["model"] == NAME and greedy["stream"] and greedy["return_token_ids"] and greedy["ignore_eos"]
        assert (greedy["max_tokens"], greedy["min_tokens"], greedy["temperature"]) == (3, 2, 0)
        assert processor_of("llama").eos_ids[0] in greedy["stop_token_ids"] and "seed" not in greedy
        assert [sampled[key] for key in ("temperature", "top_p", "top_k", "seed")] == [0.5, 0.9, 7, 4]


def test_log_probabilities_are_those_of_the_own_engine() -> None:
    from engine_requests import engine_of

    request = ask(max_new_tokens=6, logprobs=3)
    with engine_of("llama") as own:
        wanted = [one for event in list(own.submit(request).events(10))[:-1] for one in event.logprobs]  # pyright: ignore
    with handed_over() as (engine, _):
        found = [one for event in list(engine.submit(request).events(10))[:-1] for one in event.logprobs]  # pyright: ignore
    assert [one.text for one in found] == [one.text for one in wanted] and len(found) == 6
    for ours, theirs in zip(wanted, found, strict=True):
        assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-4)
        assert [one.token_id for one in theirs.alternatives] == [one.token_id for one in ours.alternatives]


def test_who_gives_up_ends_the_answer_there() -> None:
    with handed_over(max_batch=1) as (engine, behind):
        behind.pause = 0.05
        first, second = engine.submit(ask(max_new_tokens=100)), engine.submit(ask(max_new_tokens=2))
        next(first.events(10))
        assert (engine.stats()["running"], engine.stats()["waiting"]) == (1, 1)
        waiting = engine.submit(ask(max_new_tokens=2))
        waiting.cancel()
        assert waiting.result(10)[1].reason == "cancelled"
        first.cancel()
        assert first.result(10)[1].reason == "cancelled"
        assert second.result(10)[1].reason == "length"
        wait_until(lambda: behind.left == 1)
        assert engine.stats()["cancelled"] == 2 and len(behind.asked) == 2
        second.cancel()  # after its end, which changes nothing
        assert second.result()[1].reason == "length"


def test_a_full_queue_and_the_end() -> None:
    with handed_over(max_batch=1, max_queue=1) as (engine, behind):
        behind.pause = 0.02
        first = engine.submit(ask(max_new_tokens=10))
        wait_until(lambda: engine.stats()["running"] == 1)
        second = engine.submit(ask(max_new_tokens=10))
        with pytest.raises(QueueFull, match="wait already"):
            engine.submit(ask())
        engine.close()
        assert first.result(1)[1].reason == second.result(1)[1].reason == "length"
        with pytest.raises(EngineClosedError):
            engine.submit(ask())
    with handed_over() as (engine, behind):
        behind.pause = 0.2
        ticket = engine.submit(ask(max_new_tokens=100))
        next(ticket.events(10))
        start = time.monotonic()
        engine.close(timeout=0.1)
        assert ticket.result(1)[1].reason == "cancelled" and time.monotonic() - start < 2


def test_requests_that_cannot_be() -> None:
    with handed_over() as (engine, behind):
        with pytest.raises(SettingsError, match="no beam search"):
            engine.submit(ask(num_beams=3))
        with pytest.raises(DataError, match="400 is the most"):
            engine.submit(ask(max_new_tokens=399))
        with pytest.raises(SettingsError, match="no scores"):
            engine.run_beside(lambda: None)
        assert engine.max_tokens == 400 and not behind.asked


@pytest.mark.parametrize(
    ("status", "headers", "told", "after", "says"),
    [
        (429, {"Retry-After": "7"}, 429, 7, "said there"),
        (503, {}, 503, 5, "said there"),
        (500, {}, 502, None, "failed with status 500: said there"),
        (404, {}, 502, None, "status 404"),
        (401, {}, 502, None, "--vllm-key-env"),
        (400, {}, 400, None, "does not take the prompt: said there"),
    ],
)
def test_refusals_are_passed_on(status: int, headers: dict, told: int, after: float | None, says: str) -> None:
    with handed_over() as (engine, behind):
        behind.fail = (status, headers)
        with pytest.raises(UpstreamError, match=says) as caught:
            engine.submit(ask()).result(10)
        assert (caught.value.status, caught.value.retry_after) == (told, after)
        behind.fail = None
        assert engine.submit(ask(max_new_tokens=2)).result(10)[1].reason == "length"
        assert engine.stats()["failed"] == 1


def _with_logprobs(values: str, likeliest: str) -> bytes:
    told = f'{{"token_logprobs": {values}, "top_logprobs": {likeliest}}}'
    return f'data: {{"choices": [{{"token_ids": [1], "logprobs": {told}, "finish_reason": null}}]}}\n\n'.encode()


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([b""], "in the middle"),
        ([b"data: {"], "in the middle"),
        ([b"data: [DONE]\n\n"], "without a reason"),
        ([b"data: nonsense\n\n"], "no answer"),
        ([b"data: {}\n\n"], "no answer"),
        ([b'data: {"choices": 5}\n\n'], "no answer"),
        ([b'data: {"choices": [{"text": "Yes", "finish_reason": null}]}\n\n'], "no token ids"),
        ([b'data: {"choices": [{"token_ids": ["x"]}]}\n\n'], "no token ids"),
        ([b'data: {"choices": [{"token_ids": [], "finish_reason": "abort"}]}\n\n'], "abort"),
        ([b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'], "out of memory"),
        ([b"data: " + b"x" * 2**21], "more than"),
        ([b"data: " + b"[" * 2**19 + b"\n\n"], "no answer"),
        ([b'data: {"choices": [{"token_ids": [1], "finish_reason": 5}]}\n\n'], "no answer"),
        ([_with_logprobs("[NaN]", "[{}]")], "no answer"),
        ([_with_logprobs("[-1.0]", '[{"token_id:1": Infinity}]')], "no answer"),
        ([_with_logprobs("[-1.0, -1.0]", "[{}, {}]")], "no answer"),
        ([_with_logprobs("[-1.0]", '[{"token_id:99999999": -1.0}]')], "does not have"),
        ([b'data: {"choices": [{"token_ids": [99999999], "finish_reason": "length"}]}\n\n'], "does not have"),
        ([b'data: {"choices": [{"token_ids": [%d], "finish_reason": null}]}\n\n' % (2**90)], "does not have"),
    ],
)
def test_answers_that_are_none(events: list[bytes], says: str) -> None:
    with handed_over() as (engine, behind):
        behind.spoil = events
        with pytest.raises(UpstreamError, match=says):
            engine.submit(ask()).result(10)


def test_a_server_that_says_nothing_or_is_gone() -> None:
    with handed_over(seconds=0.2) as (engine, behind):
        behind.pause = 1
        with pytest.raises(UpstreamError, match=r"nothing for 0\.2 s") as caught:
            engine.submit(ask()).result(10)
        assert caught.value.status == 504
    with handed_over() as (engine, behind):
        engine.server.url = "http://127.0.0.1:9/v1"
        with pytest.raises(UpstreamError, match="cannot be reached") as caught:
            engine.submit(ask()).result(10)
        assert (caught.value.status, caught.value.retry_after) == (503, 5)


def test_the_start_finds_what_is_wrong() -> None:
    with standin(model_of("opt").language_model) as (behind, url):
        for wrong, says in [("host:8000", "expected something like"), ("http://u:p@host/v1", "expected"),
                            ("http://127.0.0.1:9/v1", "cannot be reached"), (url[:-3], "status 404"),
                            ("file:///etc/passwd", "expected"), ("http://host:99999/v1", "expected")]:  # fmt: skip
            with pytest.raises(SettingsError, match=says):
                VllmServer(wrong)
        with pytest.raises(SettingsError, match="Did you mean 'org/language-model'"):
            VllmServer(url, "org/language-modle")
        behind.names = ["a", "b"]
        with pytest.raises(SettingsError, match="say which with --vllm-model"):
            VllmServer(url)
        behind.names, behind.key = [NAME], "secret"
        with pytest.raises(SettingsError, match="refuses our key"):
            VllmServer(url)
        server = VllmServer(url, NAME, "secret")
        assert (server.model, server.max_tokens) == (NAME, 400)
        with pytest.raises(SettingsError, match=r"width 8: .*hidden_size 8 does not match.*--enable-prompt-embeds"):
            server.probe(8, torch.float32)


def test_through_the_api() -> None:
    """Streamed and whole, several answers, what is refused, and errors of the server's in the API's form."""
    with handed_over() as (engine, behind):
        model = ServedModel("small", model_of("llama"), processor_of("llama"), engine, OneAtATime("small", 4))
        with live(model) as server:
            _through_the_api(server, behind)


def _through_the_api(server: Live, behind: Standin) -> None:
    question = user(image(3), text("What is it?"))
    wanted = alone("llama", ask("What is it?", 0, max_new_tokens=12))
    assert server.chat(user("What is it?"), max_tokens=12).choices[0].message.content == wanted
    whole = server.chat(question, max_tokens=12)
    chunks = list(server.chat(question, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and len(chunks) > 4
    several = server.chat(question, n=3, temperature=2, seed=5, max_tokens=12)
    assert len({choice.message.content for choice in several.choices}) == 3
    error = error_of(server.ask(question, num_beams=2))
    assert error["status"] == 400 and error["param"] == "num_beams"
    behind.fail = (429, {"Retry-After": "7"})
    refused = server.ask(question)
    assert error_of(refused)["status"] == 429 and refused.headers["retry-after"] == "7"
    behind.fail = (500, {})
    error = error_of(server.ask(question))
    assert (error["status"], error["code"]) == (502, "upstream")
    raw: httpx.Response = server.ask(question, stream=True)
    assert "failed with status 500" in raw.text and "[DONE]" not in raw.text


def test_a_served_front_gives_no_scores(folder: Path) -> None:
    front, processor = load_front(folder)
    with handed_over(front=front) as (engine, _):
        model = ServedModel("small", front, processor, engine, OneAtATime("small", 4))
        assert model.description["scores"] == [] and model.description["answers"]
        with live(model) as server:
            body = {"images": [image(png())["image_url"]["url"]], "texts": ["a dog"]}
            error = error_of(server.http.post("/score", json=body))
            assert error["status"] == 400 and "no scores" in error["message"]


@pytest.mark.parametrize(
    ("engine", "options", "says"),
    [
        ("own", {"url": "http://a/v1"}, "--vllm-url is for --engine vllm"),
        ("own", {"key_variable": "KEY"}, "--vllm-key-env is for --engine vllm"),
        ("vllm", {}, "needs --vllm-url"),
        ("vllm", {"url": "http://a/v1", "models": 2}, "one MODEL"),
        ("vllm", {"url": "http://a/v1", "loading": {"load_in": "4bit", "device_map": None}}, "leave them out"),
        ("vllm", {"url": "http://a/v1", "key_variable": "NO_SUCH_VARIABLE"}, "not set, or empty"),
    ],
)
def test_options_of_the_command(engine: str, options: dict, says: str) -> None:
    given = {"url": None, "model": None, "key_variable": None, "models": 1}
    loading = {"load_in": None, "device_map": None}
    with pytest.raises(SettingsError, match=says):
        _find_vllm(engine, **{**given, "loading": loading, "settings": ServingSettings(), **options})
