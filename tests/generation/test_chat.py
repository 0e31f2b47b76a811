"""A conversation: what the model is shown of it, its pictures, its end before time, and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightbridge.config.generation import GenerationSettings
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.generation import chat as room
from sightbridge.generation.answer import answer, answer_batch
from sightbridge.generation.chat import Chat
from sightbridge.generation.chat_file import load_chat, save_chat
from sightbridge.models.context import context_length
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.text.turns import Turn
from small_models import make_processor, picture, small_model

SHORT = GenerationSettings(max_new_tokens=6)


def parts(kind: str = "llama", template: str = "") -> tuple[VisionLanguageModel, Processor]:
    is_t5 = kind == "t5"
    template = template or ("t5_v1" if is_t5 else "vicuna_v1")
    return small_model(kind), make_processor(template, kind, encoder_decoder=is_t5)


def make_chat(kind: str = "llama", template: str = "", pictures: list[Any] | None = None, **options: Any) -> Chat:
    return Chat(*parts(kind, template), pictures or [], **{"settings": SHORT, **options})


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Every record that a model was shown, in order; the answers are made up."""
    seen: list[Record] = []
    prepare = Processor.prepare

    def watched(self: Processor, record: Record, **options: Any) -> Any:
        seen.append(record)
        return prepare(self, record, **options)

    monkeypatch.setattr(Processor, "prepare", watched)
    monkeypatch.setattr(room, "stream_batch", lambda *_: iter([f"answer {len(seen)}"]))
    return seen


def texts(record: Record) -> list[str | None]:
    return [turn.text for turn in record.turns]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_each_answer_is_the_one_to_the_whole_conversation(kind: str) -> None:
    model, processor = parts(kind)
    chat = make_chat(kind, pictures=[picture(1)])
    first = chat.ask("What is it?")
    assert first == answer(model, processor, picture(1), "What is it?", SHORT)
    chat.add_picture(picture(2))
    second = chat.ask("And <image> here?")
    turns = [Turn("user", "<image>\nWhat is it?"), Turn("assistant", first), Turn("user", "And <image> here?")]
    record = Record("1", (picture(1), picture(2)), tuple(turns))
    assert second == answer_batch(model, processor, [record], SHORT)[0]
    assert [(e.question, e.answer, len(e.pictures)) for e in chat.exchanges] == [
        ("<image>\nWhat is it?", first, 1),
        ("And <image> here?", second, 1),
    ]


def test_a_picture_goes_through_the_tower_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = make_chat(pictures=[picture(1)])
    seen: list[int] = []
    encode = type(chat.model).encode_images
    monkeypatch.setattr(
        type(chat.model), "encode_images", lambda self, pixels: seen.append(len(pixels)) or encode(self, pixels)
    )
    for _ in range(3):
        chat.ask("What is it?")
    assert seen == [1]
    chat.add_picture(picture(2))
    chat.ask("And this?")
    assert seen == [1, 1]
    chat.remove_picture(1)
    chat.ask("Well?")
    assert seen == [1, 1] and len(chat._features) == 1


def test_the_oldest_whole_exchanges_fall_out_and_their_pictures_move(prompts: list[Record]) -> None:
    chat = make_chat(pictures=[picture(1)])
    chat.ask("What is in the first picture?")
    chat.add_picture(picture(2))
    chat.ask("And in this one?")
    chat.ask("Are you certain?")
    assert chat.left_out == 0
    sizes = [chat._length(chat._exchange("Really?"), left_out) for left_out in range(4)]
    assert sizes == sorted(sizes, reverse=True)
    for left_out, size in enumerate(sizes):
        for context in (size + SHORT.max_new_tokens, size + SHORT.max_new_tokens - 1):
            chat.context = context
            if context < sizes[-1] + SHORT.max_new_tokens:
                continue
            kept, waiting = list(chat.exchanges), list(chat.waiting)
            chat.ask("Really?")
            record = prompts[-1]
            fits = context == size + SHORT.max_new_tokens
            assert chat.left_out == left_out + (not fits)
            assert len(record.images) == record.count_markers() == 2
            assert len(chat.processor.encode(record, for_generation=True).input_ids) <= chat.room
            asked = [text for text in texts(record)[::2] if text]
            assert asked[0].startswith("<image>\n")
            assert [text.replace("<image>\n", "") for text in asked] == [
                "What is in the first picture?",
                "And in this one?",
                "Are you certain?",
                "Really?",
            ][chat.left_out :]
            np.testing.assert_array_equal(record.images[0], picture(1))  # pictures keep their order
            chat.exchanges, chat.waiting = kept, waiting


def test_pictures_are_counted(prompts: list[Record]) -> None:
    """MiniGPT4Qwen's window forgets them, and the question."""
    chat = make_chat()
    chat.ask("What?")
    chat.context = len(chat.processor.encode(chat._record(chat._exchange("Now?"), 0), for_generation=True).input_ids)
    chat.context += SHORT.max_new_tokens
    chat.add_picture(picture(1))
    chat.ask("Now?")
    assert chat.left_out == 1


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_question_too_long_by_itself(kind: str) -> None:
    chat = make_chat(kind, pictures=[picture(1)], context=100)
    before = chat.ask("What is it?")
    with pytest.raises(DataError, match=r"the question and 1 picture\(s\) of 4 tokens each take \d+ tokens even"):
        chat.stream("What is it? " * 30)
    assert [exchange.answer for exchange in chat.exchanges] == [before]
    room_left = 100 if kind == "t5" else 100 - SHORT.max_new_tokens
    assert chat.room == room_left
    assert chat.ask("What?") is not None


def test_a_context_of_one_token_holds_no_question() -> None:
    chat = make_chat(context=1, settings=None)
    with pytest.raises(DataError, match=r"there is room for 0 \(context 1, answer 1\)"):
        chat.stream("What is it?")


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("said_before", [0, 2])
def test_a_stopped_answer_is_kept_as_far_as_it_was_said(beams: int, said_before: int) -> None:
    settings = GenerationSettings(max_new_tokens=60, num_beams=beams)
    chat = make_chat(pictures=[picture(1)], settings=settings)
    said: list[str] = []
    pieces = chat.stream("What is it?")
    if beams > 1 or not said_before:
        chat.stop()
    for piece in pieces:
        said.append(piece)
        if len(said) == said_before:
            chat.stop()
    whole = Chat(*parts(), [picture(1)], settings=settings).ask("What is it?")
    assert len("".join(said)) < len(whole)
    [exchange] = chat.exchanges
    assert exchange.stopped and exchange.answer == "".join(said)
    chat.configure(max_new_tokens=3, num_beams=1)
    chat.ask("And now?")  # a stop ends one answer only
    assert not chat.exchanges[-1].stopped


def test_an_iterator_that_is_left_early_stops_the_answer() -> None:
    chat = make_chat(settings=GenerationSettings(max_new_tokens=60))
    pieces = chat.stream("What is it?")
    first = next(pieces)
    pieces.close()
    assert [(e.answer, e.stopped) for e in chat.exchanges] == [(first, True)]


def test_a_question_stopped_before_a_word_was_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = make_chat(pictures=[picture(1)])

    def nothing(*_: Any) -> Any:
        chat.stop()
        yield from ()

    monkeypatch.setattr(room, "stream_batch", nothing)
    assert chat.ask("What is it?") == ""
    assert chat.exchanges == [] and len(chat.waiting) == 1


def test_pictures_come_and_go(prompts: list[Record], tmp_path: Path) -> None:
    chat = make_chat(pictures=[picture(1), picture(2)])
    chat.ask("First <image> and second <image>\nthere?")
    added = chat.add_picture(picture(3))
    chat.ask("Third?")
    assert added in chat.pictures and not chat.waiting
    chat.remove_picture(2)
    chat.add_picture(picture(4))
    assert [exchange.question for exchange in chat.exchanges] == ["First <image> and second there?", "<image>\nThird?"]
    chat.remove_picture(3)
    chat.ask("So?")
    assert len(prompts[-1].images) == 2
    for wrong in (0, 3, -1):
        with pytest.raises(DataError, match=f"no picture {wrong}; there are 2"):
            chat.remove_picture(wrong)
    with pytest.raises(ImageError, match="no such picture file"):
        chat.add_picture(tmp_path / "none.png")
    with pytest.raises(DataError, match="0 wait, but the question has 1"):
        chat.ask("What is <image>?")
    chat.clear()
    assert not chat.exchanges and len(chat.waiting) == 2
    chat.ask("Again?")
    assert texts(prompts[-1]) == ["<image>\n<image>\nAgain?", None]


def test_a_marker_that_the_model_writes_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = make_chat(pictures=[picture(1)])
    monkeypatch.setattr(room, "stream_batch", lambda *_: iter(["an <image>"]))
    chat.ask("What is it?")
    chat.ask("What?")
    assert chat.exchanges[0].answer == "an <image>"


@pytest.mark.parametrize(("kind", "template"), [("llama", "blip2_plain"), ("t5", "mblip")])
def test_a_template_without_turns_gets_every_question_alone(kind: str, template: str, prompts: list[Record]) -> None:
    chat = make_chat(kind, template, [picture(1)])
    assert not chat.remembers
    for question in ("What?", "Where?"):
        chat.ask(question)
        assert texts(prompts[-1]) == [f"<image>\n{question}", None]
    assert chat.left_out == 1
    with pytest.raises(SettingsError, match=f"'{template}' has no place for a system text"):
        make_chat(kind, template, system="Be brief.")


def test_which_templates_tell_turns_apart() -> None:
    from sightbridge.text.template import load_template, template_names

    without = {name for name in template_names() if not room.tells_turns_apart(load_template(name))}
    assert {"plain", "t5_plain", "mblip", "mblip_bloomz", "blip2_plain", "blip2_caption"} <= without
    assert not without & {"hf", "chatml", "llava_v0", "vicuna_v1", "llama_2", "llama_3", "blip2_question", "t5_v1"}


def test_system_text_and_greatest_length_of_training() -> None:
    model, processor = small_model(), make_processor("vicuna_v1", max_length=10)
    chat = Chat(model, processor, [picture(1)], settings=SHORT, system="Be brief.")
    assert chat.system == "Be brief." and "gives helpful" in Chat(model, processor).system
    record = chat._record(chat._exchange("What is in the picture, in how many words?"), 0)
    ids = chat.processor.encode(record, for_generation=True).input_ids
    assert "Be brief. USER:" in chat.processor.tokenizer.decode(ids)
    assert isinstance(chat.ask("What is in the picture, in how many words?"), str)  # longer than 10 tokens
    assert processor.prompt_settings.max_length == 10 and processor.prompt_settings.system is None


def test_settings_are_checked_and_reset() -> None:
    chat = make_chat()
    chat.configure(temperature=0.5)
    assert chat.settings.sample and chat.settings.temperature == 0.5 and chat.settings.max_new_tokens == 6
    chat.configure(temperature=0.7, sample=False)
    assert not chat.settings.sample
    for changes, message in [
        ({"temprature": 1.0}, "temprature: unknown setting. Did you mean 'temperature'"),
        ({"top_p": "high"}, 'top_p: expected a number, got "high"'),
        ({"num_beams": 2, "num_answers": 2}, "num_answers: a conversation goes on from one answer"),
    ]:
        with pytest.raises(SettingsError, match=message):
            chat.configure(**changes)
    assert chat.settings.temperature == 0.7
    default = make_chat(settings=None).settings
    assert default == GenerationSettings(max_new_tokens=512)
    assert make_chat(settings=None, context=100).settings.max_new_tokens == 50


def test_the_file_of_a_conversation(tmp_path: Path, workplace_picture: Path) -> None:
    chat = make_chat(pictures=[workplace_picture, picture(2)], system="Be brief.")
    chat.ask("Which is <image> and which <image>?")
    chat.add_picture(workplace_picture)
    chat.configure(temperature=0.5, seed=3)
    path = save_chat(chat, tmp_path / "chat.json")
    expected = chat.ask("And now?")
    other = make_chat()
    load_chat(other, path)
    assert other.system == "Be brief." and other.settings == chat.settings
    assert [(e.question, e.answer) for e in other.exchanges] == [(e.question, e.answer) for e in chat.exchanges[:1]]
    assert other.pictures[0].path == workplace_picture and len(other.waiting) == 1
    assert other.ask("And now?") == expected
    save_chat(other, path)  # over its own file
    assert json.loads(path.read_text(encoding="utf-8"))["exchanges"][1]["answer"] == expected


def test_files_that_are_no_conversation(tmp_path: Path, workplace_picture: Path) -> None:
    chat = make_chat(pictures=[workplace_picture])
    chat.ask("What?")
    good = json.loads(save_chat(chat, tmp_path / "good.json").read_text(encoding="utf-8"))
    wrong: dict[str, Any] = {
        "no format": {"a": 1},
        "a list": [],
        "marker": good | {"exchanges": [good["exchanges"][0] | {"pictures": []}]},
        "picture": good | {"waiting": ["gone.png"]},
        "address": good | {"waiting": ["http://example.com/a.png"]},
        "setting": good | {"settings": {"temperature": -1}},
    }
    messages = {
        "no format": "not a conversation",
        "a list": "not a conversation",
        "marker": "question 1 has 1 '<image>' marker(s), but 0 picture(s)",
        "picture": "gone.png: no such picture file",
        "address": "no such picture file",
        "setting": "settings.temperature",
    }
    for name, content in wrong.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises((DataError, ImageError)) as caught:
            load_chat(chat, path)
        assert messages[name] in str(caught.value)
        assert len(chat.exchanges) == 1 and chat.system  # as it was
    with pytest.raises(DataError, match="cannot read the conversation"):
        load_chat(chat, tmp_path / "none.json")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not a conversation saved"):
        save_chat(chat, tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.fixture
def workplace_picture(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "pictures" / "a b.png"
    path.parent.mkdir()
    Image.fromarray(picture(7)).save(path)
    return path


def test_how_much_a_model_takes_in() -> None:
    from transformers import BloomConfig, GPT2Config, LlamaConfig, MT5Config, OPTConfig, T5Config

    configs = [
        LlamaConfig(max_position_embeddings=4096),
        OPTConfig(),
        GPT2Config(),
        T5Config(),
        MT5Config(),
        BloomConfig(),
    ]
    assert [context_length(config) for config in configs] == [4096, 2048, 1024, 512, 1024, 2048]
