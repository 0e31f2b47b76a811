"""What OpenAI's own client gets from a server in front of a real engine."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from api_server import Live, data_url, error_of, image, live, png, served, text, user
from engine_requests import model_of, processor_of

from sightbridge.config.generation import GenerationSettings
from sightbridge.data.record import Record
from sightbridge.generation.answer import answer, stream_batch
from sightbridge.serving.api.body import RegionBody
from sightbridge.serving.api.messages import read_marks
from sightbridge.text.turns import Turn


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(served(), served(family="t5", name="t5")) as running:
        yield running


def expected(question: str, *pictures: bytes, family: str = "llama", **settings: object) -> str:
    """What ``sightbridge.ask`` answers."""
    chosen = GenerationSettings(**{"max_new_tokens": 12, **settings})
    return answer(model_of(family), processor_of(family), list(pictures), question, chosen)


def test_an_answer_is_that_of_ask(server: Live) -> None:
    found = server.chat(user(image(3), text("What is it?")), max_tokens=12)
    assert found.choices[0].message.content == expected("What is it?", png(3)) != ""
    assert (found.object, found.model, found.choices[0].message.role) == ("chat.completion", "small", "assistant")
    assert found.choices[0].finish_reason == "length" and found.choices[0].logprobs is None
    assert found.usage.completion_tokens == 12 and found.usage.prompt_tokens > 4
    assert found.usage.total_tokens == found.usage.prompt_tokens + 12


def test_an_encoder_decoder_answers_too(server: Live) -> None:
    found = server.openai.chat.completions.create(
        model="t5", messages=[user(image(3), text("What is it?"))], max_completion_tokens=12
    )
    assert found.choices[0].message.content == expected("What is it?", png(3), family="t5")


def test_a_streamed_answer_is_the_same(server: Live) -> None:
    question = user(image(3), text("What is it?"))
    whole = server.chat(question, max_tokens=12)
    chunks = list(server.chat(question, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert len(chunks) > 4 and chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_ends_with_done_and_tells_no_usage_unasked(server: Live) -> None:
    response = server.ask(user("Hello"), model="small", max_tokens=3, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n") and "usage" not in response.text


def test_pictures_anywhere_in_a_conversation(server: Live) -> None:
    """A picture of the first question, two between the words of the second."""
    found = server.chat(
        user(image(1), text("What is it?")),
        {"role": "assistant", "content": "A tree."},
        user(text("Is"), image(2), text("like"), image(3), text("?")),
        max_tokens=12,
    )
    turns = (
        Turn("user", "<image>\nWhat is it?"),
        Turn("assistant", "A tree."),
        Turn("user", "Is\n<image>\nlike\n<image>\n?"),
        Turn("assistant", None),
    )
    processor = processor_of("llama")
    batch = processor([Record("it", (png(1), png(2), png(3)), turns)], for_generation=True)
    wanted = "".join(stream_batch(model_of("llama"), processor, batch, GenerationSettings(max_new_tokens=12)))
    assert found.choices[0].message.content == wanted
    other = server.chat(user(image(2), text("Is like ?")), max_tokens=12)
    assert other.choices[0].message.content != wanted


def test_pictures_behind_the_words_are_seen_first(server: Live) -> None:
    found = server.chat(user(text("What is it?"), image(3)), max_tokens=12)
    assert found.choices[0].message.content == expected("What is it?", png(3))


def test_an_uploaded_picture(server: Live) -> None:
    file = server.openai.files.create(file=("noise.png", png(3)), purpose="vision")
    assert (file.bytes, file.filename, file.purpose) == (len(png(3)), "noise.png", "vision")
    assert server.openai.files.retrieve(file.id).id == file.id
    by_url = server.chat(user(image(file.id), text("What is it?")), max_tokens=12)
    by_part = server.chat(user({"type": "file", "file": {"file_id": file.id}}, text("What is it?")), max_tokens=12)
    wanted = expected("What is it?", png(3))
    assert by_url.choices[0].message.content == by_part.choices[0].message.content == wanted
    assert server.openai.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        server.chat(user(image(file.id), text("What is it?")))


def test_a_marked_region_is_drawn_and_spoken_of(server: Live) -> None:
    """The model sees the mark (another answer than without), and the words for it."""
    region = {"bbox": [2, 2, 15, 20], "shape": "arrow", "color": "blue", "width": 6}
    asked = server.ask(user(image(3, regions=[region]), text("What is <bbox>?")), model="small", max_tokens=12)
    assert asked.status_code == 200
    spelled = "What is pointed to by the blue arrow?"
    same = server.ask(user(image(3, regions=[region]), text(spelled)), model="small", max_tokens=12)
    bare = server.ask(user(image(3), text(spelled)), model="small", max_tokens=12)
    contents = [response.json()["choices"][0]["message"]["content"] for response in (asked, same, bare)]
    assert contents[0] == contents[1] != contents[2]


def test_strokes_are_drawn_and_spoken_of(server: Live) -> None:
    """Lines drawn by hand are a scribble, half transparent as in training; a line can be an arrow too."""
    scribble = {"strokes": [[2, 2, 15, 20, 4, 18], [10, 10]], "color": "blue", "width": 60}
    asked = server.ask(user(image(3, regions=[scribble]), text("What is <bbox>?")), model="small", max_tokens=12)
    spelled = user(image(3), text("What is with the blue scribble?"))
    bare = server.ask(spelled, model="small", max_tokens=12)
    assert asked.json()["usage"] | {"completion_tokens": 0, "total_tokens": 0} == bare.json()["usage"] | {
        "completion_tokens": 0,
        "total_tokens": 0,
    }
    (mark,) = read_marks([RegionBody(**scribble)], image=0)
    assert (mark.shape, mark.alpha, mark.region.box) == ("scribble", 128, (2, 2, 15, 20))
    (mark,) = read_marks([RegionBody(strokes=[[1, 2, 3, 4]], shape="arrow")], image=0)
    assert mark.phrase == "pointed to by the red arrow"
    for wrong in ([[1, 2, 3]], [], [[]], [[0, 0]] * 2049, [["1", 2]]):
        error = error_of(server.ask(user(image(3, regions=[{"strokes": wrong}]), text("What?")), model="small"))
        assert error["status"] == 422
        assert "strokes" in error["param"] or "stroke" in error["message"]
    both = {"strokes": [[1, 2, 3, 4]], "polygon": [1, 1, 5, 1, 5, 5]}
    assert error_of(server.ask(user(image(3, regions=[both]), text("What?")), model="small"))["status"] == 422


def test_several_answers_differ_and_come_again(server: Live) -> None:
    question = user(image(3), text("What is it?"))
    options = {"n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 12}
    first, second = server.chat(question, **options), server.chat(question, **options)
    answers = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2] and len(set(answers)) == 3
    assert answers == [choice.message.content for choice in second.choices]
    alone = server.chat(question, temperature=1.5, seed=6, max_tokens=12)
    assert alone.choices[0].message.content == answers[1]
    assert first.usage.completion_tokens == 36 and first.usage.prompt_tokens == alone.usage.prompt_tokens
    streamed = ["", "", ""]
    for chunk in server.chat(question, **options, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == answers


def test_zero_temperature_is_greedy_whatever_top_p(server: Live) -> None:
    question = user(image(3), text("What is it?"))
    greedy = server.chat(question, max_tokens=12).choices[0].message.content
    assert server.chat(question, temperature=0, top_p=0.5, max_tokens=12).choices[0].message.content == greedy
    assert server.chat(question, top_p=0.99, seed=1, max_tokens=12).choices[0].message.content != greedy


def test_log_probabilities(server: Live) -> None:
    question = user(image(3), text("What is it?"))
    found = server.chat(question, max_tokens=6, logprobs=True, top_logprobs=3)
    tokens = found.choices[0].logprobs.content
    assert len(tokens) == 6
    for token in tokens:
        assert token.logprob == max(other.logprob for other in token.top_logprobs) <= 0
        assert len(token.top_logprobs) == 3 and bytes(token.bytes).decode() == token.token
    bare = server.chat(question, max_tokens=6, logprobs=True)
    assert [token.logprob for token in bare.choices[0].logprobs.content] == pytest.approx(
        [token.logprob for token in tokens], abs=1e-5
    )
    assert bare.choices[0].logprobs.content[0].top_logprobs == []
    streamed = [
        token
        for chunk in server.chat(question, max_tokens=6, logprobs=True, stream=True)
        for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]


def test_a_stop_text_ends_an_answer(server: Live) -> None:
    question = user(image(3), text("What is it?"))
    whole = server.chat(question, max_tokens=24).choices[0].message.content
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    found = server.chat(question, max_tokens=24, stop=[stop, "never said"]).choices[0]
    assert found.message.content == whole.split(stop)[0].strip() and found.finish_reason == "stop"
    assert server.chat(question, max_tokens=24, stop=stop).choices[0].message.content == found.message.content


def test_what_the_client_sends_back_of_an_answer_is_taken(server: Live) -> None:
    first = server.chat(user(image(3), text("What is it?")), max_tokens=5)
    again = server.chat(
        {"role": "system", "content": "Be brief."},
        user(image(3), text("What is it?")),
        first.choices[0].message,
        user("And?"),
        max_tokens=5,
        tools=[],
        presence_penalty=0,
        user="somebody",
        response_format={"type": "text"},
    )
    assert again.choices[0].message.content


def test_models_are_listed(server: Live) -> None:
    models = server.openai.models.list().data
    assert [model.id for model in models] == ["small", "t5"]
    told = server.openai.models.retrieve("small").model_dump()
    assert told["answers"] and told["remembers"] and not told["features"] and told["scores"][0] == "vqascore"


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"model": "smal"}, 404, "model", "Did you mean 'small'?"),
        ({"model": None}, 400, "model", "small, t5"),
        ({"messages": []}, 422, "messages", "at least 1"),
        ({"messages": [user("a"), user("b")]}, 400, "messages.1.role", "take turns"),
        ({"messages": [user("a"), {"role": "assistant", "content": "b"}]}, 400, "messages", "The last message"),
        ({"messages": [{"role": "assistant", "content": [image()]}, user("b")]}, 400, "messages.0.role", "beginning"),
        ({"messages": [user({"type": "video", "video": "x"})]}, 422, "messages.0.content.0", "video"),
        ({"temperature": 3}, 422, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, 422, "temperature", "valid number"),
        ({"n": 99}, 422, "n", "at most 8"),
        ({"n": 0}, 422, "n", "greater than"),
        ({"max_tokens": 100_000}, 422, "max_tokens", "at most 1024"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, 422, None, "give one"),
        ({"stop": [""]}, 422, None, "empty"),
        ({"top_logprobs": 2}, 422, None, "logprobs: true"),
        ({"frequency_penalty": 1.5}, 422, "frequency_penalty", "Extra inputs"),
        ({"tools": [{"type": "function"}]}, 422, "tools", "Extra inputs"),
        ({"messages": [user("word " * 3000)]}, 400, None, "positions"),
        ({"messages": [user(text("<bbox>?"), image())]}, 400, None, "nothing is marked on a picture"),
        ({"messages": [user("\ud800")]}, 400, None, "half a character"),
        ({"model": "\ud800"}, 404, "model", "There is no model '?'"),
        ({"messages": [user(image(b"no picture"))]}, 400, None, "not a picture"),
        ({"messages": [user(image(png()[:100]))]}, 400, None, "truncated"),
        ({"messages": [user(image("data:image/png;base64,%%%"))]}, 400, None, "not valid base64"),
        ({"messages": [user(image("/etc/passwd"))]}, 400, None, "not fetched"),
        ({"messages": [user(image("file:///etc/passwd"))]}, 400, None, "not fetched"),
        ({"messages": [user(image("file-0"))]}, 404, None, "Upload it again"),
        ({"messages": [user(image(0, regions=[{"bbox": [900, 1, 990, 2]}]))]}, 400, None, "picture 1: the box"),
        ({"messages": [user(image(0, regions=[{"bbox": [1, 1, 9, 9], "shape": "arow"}]))]}, 400, None, "'arrow'"),
        ({"messages": [user(image(0, regions=[{"bbox": [1, 1, 9, 9], "color": "rde"}]))]}, 400, None, "'red'"),
        (
            {"messages": [user(image(0, regions=[{}]))]},
            422,
            "messages.0.content.0.image_url.regions.0",
            "bbox, a polygon or strokes",
        ),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    server: Live, fields: dict, status: int, param: str | None, says: str
) -> None:
    asked = {"model": "small", "messages": [user("Hello")], "max_tokens": 3, **fields}
    error = error_of(server.http.post("/v1/chat/completions", content=_json(asked), headers=JSON))
    assert error["status"] == status, error
    assert says in error["message"], error
    assert (error["param"] or "").startswith(param or "")


def test_the_client_raises_its_own_errors(server: Live) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no model 'none'"):
        server.openai.chat.completions.create(model="none", messages=[user("Hello")])
    with pytest.raises(openai.BadRequestError, match="truncated"):
        server.chat(user(image(png()[:100])))
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        server.chat(user("Hello"), temperature=9)


def test_an_image_marker_in_words_is_no_picture(server: Live) -> None:
    assert server.chat(user("Write <image> twice: <image>"), max_tokens=3).choices[0].message.content is not None


def test_data_urls_of_any_case(server: Live) -> None:
    found = server.chat(user(image("DATA" + data_url(3)[4:]), text("What is it?")), max_tokens=12)
    assert found.choices[0].message.content == expected("What is it?", png(3))


JSON = {"Content-Type": "application/json"}


def _json(content: object) -> bytes:
    import json

    return json.dumps(content).encode()
