"""What LLaVA's web pages and scripts ask of a controller and a worker, and the answers they get."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from api_server import Live, SteeredEngine, error_of, image, live, png, served, text, user, wait_until
from engine_requests import WORDS, model_of, processor_of

from sightbridge.config.generation import GenerationSettings
from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.generation.answer import stream_batch
from sightbridge.serving.engines.engine import QueueFull, UpstreamError
from sightbridge.serving.engines.ticket import Ticket
from sightbridge.text.render import render
from sightbridge.text.turns import Turn
from small_models import make_processor

QUESTION = "A chat between a curious user and an assistant. USER: <image>\nWhat is it? ASSISTANT:"


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(served(), served(family="t5", name="t5"), llava=True) as running:
        yield running


def encoded(seed: int = 3) -> str:
    return base64.b64encode(png(seed)).decode()


def generate(server: Live, **fields: Any) -> list[dict[str, Any]]:
    """The lines of an answer, read as LLaVA's page reads them."""
    asked = {"model": "small", "prompt": QUESTION, "images": [encoded()], "temperature": 0, "max_new_tokens": 12}
    response = server.http.post("/worker_generate_stream", json={**asked, **fields})
    assert response.status_code == 200 and response.content.endswith(b"\0")
    return [json.loads(line) for line in response.content.split(b"\0")[:-1]]


def failure(server: Live, **fields: Any) -> tuple[int, str]:
    (line,) = generate(server, **fields)
    return line["error_code"], line["text"]


def turns(question: str) -> tuple[Turn, ...]:
    return (Turn("user", question), Turn("assistant", None))


@pytest.mark.parametrize(
    ("template", "vocabulary"), [("vicuna_v1", "llama"), ("llava_v1", "llama"), ("plain", "llama"), ("t5_v1", "t5")]
)
def test_parity_of_a_written_prompt_with_its_turns(template: str, vocabulary: str) -> None:
    """Conversations with up to three pictures, as the template writes them: not a token differs."""
    is_t5 = vocabulary == "t5"
    processor = make_processor(template, vocabulary, encoder_decoder=is_t5)
    rng = random.Random(4)
    for _ in range(30):
        said: list[Turn] = []
        for _ in range(0 if template == "plain" else rng.randint(0, 2)):
            said += [Turn("user", _words(rng)), Turn("assistant", " ".join(rng.choices(WORDS, k=3)))]
        said += [Turn("user", "<image>" if template == "plain" else _words(rng)), Turn("assistant", None)]
        pictures = sum((turn.text or "").count("<image>") for turn in said)
        record = Record("it", (b"",) * pictures, tuple(said))
        wanted = processor.encode(record, for_generation=True)
        settings = processor.prompt_settings
        written = render(processor.template, said, switches=settings.switches, system=settings.system).text
        found = processor.encode_written(written, pictures)
        assert (found.input_ids, found.image_slots) == (wanted.input_ids, wanted.image_slots), written
    with pytest.raises(DataError, match=r"1 <image> marker\(s\), and there are 2"):
        processor.encode_written("<image>", 2)


def _words(rng: random.Random) -> str:
    words = [*WORDS, "<image>"] if rng.random() < 0.2 else WORDS
    return "<image>\n" * rng.randint(0, 1) + " ".join(rng.choices(words, k=5))


def test_an_answer_is_that_of_the_turns(server: Live) -> None:
    processor = processor_of("llama")
    written = render(processor.template, turns("<image>\nWhat is it?"), system=processor.prompt_settings.system).text
    batch = processor([Record("it", (png(3),), turns("<image>\nWhat is it?"))], for_generation=True)
    wanted = "".join(stream_batch(model_of("llama"), processor, batch, GenerationSettings(max_new_tokens=12)))
    lines = generate(server, prompt=written, stop="</s>")
    assert all(line["text"].startswith(written) and line["error_code"] == 0 for line in lines)
    assert lines[-1]["text"] == written + wanted and wanted
    assert [line["text"] for line in lines] == sorted((line["text"] for line in lines), key=len)
    chat = server.chat(user(image(3), text("What is it?")), max_tokens=12)
    assert chat.choices[0].message.content == wanted


def test_pages_find_models_and_their_worker(server: Live) -> None:
    """As gradio_web_server.py does: without a body, without a content type."""
    assert server.http.post("/refresh_all_workers").status_code == 200
    assert server.http.post("/list_models").json() == {"models": ["small", "t5"]}
    assert server.http.post("/get_worker_address", json={"model": "small"}).json() == {"address": server.url}
    assert server.http.post("/get_worker_address", json={"model": "other"}).json() == {"address": ""}
    status = server.http.post("/worker_get_status").json()
    assert status == {"model_names": ["small", "t5"], "speed": 1, "queue_length": 0}


def test_settings_are_passed_on() -> None:
    with live(served(SteeredEngine()), llava=True, max_tokens=900) as server:
        engine: Any = server.state.models.by_name["small"].engine
        generate(server, temperature="0.2", top_p=0.7, max_new_tokens="1500", stop="###", user="x", images=None)
        generate(server, temperature=0.0005, stop=" ", prompt="no picture", images=[], repetition_penalty=1.2)
        first, second = (ticket.request.settings for ticket in engine.tickets)
        assert first.sample and (first.temperature, first.top_p, first.top_k) == (0.2, 0.7, 50)
        assert first.max_new_tokens == 900 and first.stop == ["###"]
        assert not second.sample and second.stop == [] and second.repetition_penalty == 1.2


def test_an_answer_is_as_long_as_there_is_room(server: Live) -> None:
    """LLaVA's worker does so too; a chat request would be refused."""
    prompt = QUESTION.replace("What is it?", "What is it? " * 95)
    assert 1 <= len(generate(server, prompt=prompt, max_new_tokens=1000)[-1]["text"]) - len(prompt) < 4000
    code, said = failure(server, prompt=QUESTION + " word" * 3000)
    assert code == 1 and "positions" in said


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"model": "smal"}, 2, "Did you mean 'small'?"),
        ({"images": []}, 1, r"1 <image> marker(s), and there are 0"),
        ({"images": [encoded(), encoded()]}, 1, "there are 2 picture(s)"),
        ({"images": ["%%%"]}, 1, "not valid base64"),
        ({"images": [base64.b64encode(b"nothing").decode()]}, 1, "not a picture"),
        ({"images": [encoded()] * 17}, 1, "17 pictures"),
        ({"images": ["file:///etc/passwd"]}, 1, "base64"),
        ({"images": [5]}, 1, "images.0"),
        ({"prompt": None}, 1, "prompt"),
        ({"prompt": "x" * 100_001}, 1, "100,001 characters"),
        ({"prompt": "\ud800 <image>"}, 1, "no JSON"),
        ({"temperature": -1}, 1, "temperature"),
        ({"top_p": 0}, 1, "top_p"),
        ({"max_new_tokens": "many"}, 1, "max_new_tokens"),
        ({"stop": "x" * 300}, 1, "stop"),
    ],
)
def test_failures_say_what_failed(server: Live, fields: dict, code: int, says: str) -> None:
    asked = {"model": "small", "prompt": QUESTION, "images": [encoded()], "max_new_tokens": 3, **fields}
    response = server.http.post(
        "/worker_generate_stream", content=json.dumps(asked).encode(), headers={"Content-Type": "application/json"}
    )
    line = json.loads(response.content.rstrip(b"\0"))
    assert line["error_code"] == code and says in line["text"], line


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (QueueFull("9 requests wait already.", 3), 1, "9 requests wait"),
        (UpstreamError("The vLLM server is gone.", 503), 3, "is gone"),
        (RuntimeError("secret detail"), 1, "Something failed here"),
    ],
)
def test_failures_of_the_engine(error: Exception, code: int, says: str) -> None:
    with live(served(SteeredEngine(lambda ticket: ticket.tell(error))), llava=True) as server:
        found = failure(server)
        assert found[0] == code and says in found[1] and "secret" not in found[1]


def test_time_is_bounded_and_who_leaves_frees_the_place() -> None:
    tickets: list[Ticket] = []
    with live(served(SteeredEngine(tickets.append)), llava=True, request_seconds=0.3) as server:
        assert failure(server) == (1, "No answer within 0.3 s.")
        wait_until(lambda: tickets[0].is_cancelled)


def test_what_is_no_json_and_workers_that_register(server: Live) -> None:
    headers = {"Content-Type": "application/json"}
    line = json.loads(server.http.post("/worker_generate_stream", content=b"{", headers=headers).content[:-1])
    assert line["error_code"] == 1 and "JSON" in line["text"]
    for body in (b"{", b"[]", b"5", b"[" * 100_000, b'{"model": [1]}'):
        response = server.http.post("/get_worker_address", content=body, headers=headers)
        assert response.status_code == 400 or response.json() == {"address": ""}
    error = error_of(server.http.post("/register_worker", json={"worker_name": "http://10.0.0.1"}))
    assert error["status"] == 400 and "No workers register" in error["message"]
    plain = server.http.post("/worker_generate_stream", content=b"{}", headers={"Content-Type": "text/plain"})
    assert error_of(plain)["status"] == 415


def test_off_by_default_and_behind_the_key() -> None:
    with live() as server:
        assert server.http.post("/list_models").status_code == 404
        assert server.http.post("/worker_generate_stream", json={}).status_code == 404
    with live(llava=True, api_key="secret") as server:
        assert server.http.post("/list_models").status_code == 401
