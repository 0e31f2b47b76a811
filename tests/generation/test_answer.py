"""Answers in words: one, many at once, and in pieces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_parity_golden import clip_flant5, vip_llava

import sightbridge
from sightbridge.config.generation import GenerationSettings
from sightbridge.config.model import ImageSettings, PromptSettings
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.generation import answer as room
from sightbridge.generation.answer import answer, answer_batch, answers, ask, stream
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.text.turns import Turn

GOLDEN = Path(__file__).parents[1] / "golden" / "llava"
TOKENIZERS = {"vip": ("llama", "llava_v1"), "t5": ("t5", "t5_v1"), "llama3": ("llama3", "llava_llama_3")}
SHORT = GenerationSettings(max_new_tokens=12)
BEAMS = GenerationSettings(max_new_tokens=6, num_beams=3)
SAMPLED = GenerationSettings(max_new_tokens=12, sample=True, seed=3, temperature=2.0)


def make_processor(name: str, template: str = "", size: int = 56, tokens: int = 16, **image: Any) -> Processor:
    tokenizer, usual = {"vip": ("llama", "llava_v1"), "t5": ("t5", "t5_v1"), "llama3": ("llama3", "llava_llama_3")}[
        name
    ]
    return Processor(
        load_tokenizer(GOLDEN / "tokenizers" / tokenizer),
        PromptSettings(template=template or usual),
        ImageSettings(size=size, fit="pad", **image),
        tokens_per_image=tokens,
        encoder_decoder=name == "t5",
    )


@pytest.fixture(scope="module")
def vip() -> tuple[VisionLanguageModel, Processor]:
    return vip_llava(), make_processor("vip")


@pytest.fixture(scope="module")
def t5() -> tuple[VisionLanguageModel, Processor]:
    return clip_flant5(), make_processor("t5")


@pytest.fixture
def either(request: pytest.FixtureRequest) -> tuple[VisionLanguageModel, Processor]:
    """The decoder-only or the encoder-decoder model, by its name."""
    return request.getfixturevalue(request.param)


both = pytest.mark.parametrize("either", ["vip", "t5"], indirect=True)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("sightbridge")] == []


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def record(name: str, pictures: list[int], *texts: str) -> Record:
    turns = [Turn(role, text) for role, text in zip(["user", "assistant"] * 5, texts, strict=False)]  # type: ignore[arg-type]
    return Record(name, tuple(picture(seed) for seed in pictures), tuple(turns))


RECORDS = [
    record("long", [0], "<image>\nWhat is the large man doing near the tree, and why is he so happy about it?"),
    record("none", [], "Is the dog yellow?", "Yes."),
    record("two", [1, 0], "<image> or <image>?", "The first.", "Why?", "It is red."),
    record("same", [0], "<image>\nWhat colour is it?"),
    record("again", [0], "<image>\nWho?"),
]


@pytest.mark.parametrize("name", ["vip", "t5"])
def test_parity_answer_golden(name: str, request: pytest.FixtureRequest) -> None:
    model, processor = request.getfixturevalue(name)
    recorded = np.load(GOLDEN / "generate" / f"{name}_generate.npz")
    for file, question in (("land", "What is the color of the dog?"), ("port", "Describe the image concisely.")):
        expected = recorded[f"{file}_out_ids" if name == "vip" else f"{file}_out"][:, 1:]
        settings = GenerationSettings(max_new_tokens=expected.shape[1])
        given = (model, processor, GOLDEN / "pixels" / f"{file}.png", question)
        text = answer(*given, settings)
        print(f"parity answer, {name}, {file}: {text!r}")
        assert text == processor.decode(expected.tolist())[0] != ""
        assert text == ask(*given, max_new_tokens=expected.shape[1])
        assert "".join(stream(*given, settings)) == text


@both
@pytest.mark.parametrize("settings", [SHORT, BEAMS, SAMPLED], ids=["greedy", "beam", "sampled"])
def test_a_batch_is_answered_as_one_by_one(
    either: tuple[VisionLanguageModel, Processor], settings: GenerationSettings
) -> None:
    model, processor = either
    together = answer_batch(model, processor, RECORDS, settings, batch_size=3)
    alone = [answer_batch(model, processor, [one], settings, batch_size=1)[0] for one in RECORDS]
    assert together == alone
    assert len(set(together)) >= 3
    assert together[3] == answer(model, processor, picture(0), "What colour is it?", settings)
    assert together[1] == answer(model, processor, [], "Is the dog yellow?", settings)


def test_batches_are_of_one_length_and_pictures_are_encoded_once(
    vip: tuple[VisionLanguageModel, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = vip
    encoded: list[int] = []
    lengths: list[list[int]] = []
    generate = room.generate

    def spy(model: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        lengths.append(batch.attention_mask.sum(dim=1).tolist())
        return generate(model, batch, *rest, **options)

    monkeypatch.setattr(room, "generate", spy)
    hook = model.vision_tower.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    try:
        answer_batch(model, processor, RECORDS, SHORT, batch_size=2)
    finally:
        hook.remove()
    assert sum(encoded) == 2, "two different pictures"
    assert [len(rows) for rows in lengths] == [2, 2, 1]
    in_order = [length for rows in lengths for length in rows]
    assert in_order == sorted(in_order)


def test_many_windows_keep_the_order(vip: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = vip
    one = GenerationSettings(max_new_tokens=2)
    records = [RECORDS[i % 5] for i in range(11)]
    expected = answer_batch(model, processor, RECORDS, one)
    assert answer_batch(model, processor, records, one, batch_size=1) == [expected[i % 5] for i in range(11)]
    assert answer_batch(model, processor, [], one) == []


def test_training_crops_do_not_touch_answers(vip: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = vip
    cropping = make_processor("vip", augment="crop_flip")
    assert answer_batch(model, cropping, RECORDS[:1], SHORT) == answer_batch(model, processor, RECORDS[:1], SHORT)


@both
@pytest.mark.parametrize("settings", [SHORT, SAMPLED], ids=["greedy", "sampled"])
def test_a_stream_is_the_answer_in_pieces(
    either: tuple[VisionLanguageModel, Processor], settings: GenerationSettings
) -> None:
    model, processor = either
    pieces = list(stream(model, processor, picture(3), "What is it?", settings))
    assert "".join(pieces) == answer(model, processor, picture(3), "What is it?", settings)
    assert len(pieces) >= 4 and all(pieces)


@pytest.mark.parametrize(("name", "template"), [("vip", "llava_v0"), ("llama3", ""), ("t5", "")])
def test_pieces_make_up_any_text(name: str, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte tokens, half characters, special tokens, EOS and stop texts anywhere."""
    processor = make_processor(name, template)
    tokenizer = processor.tokenizer
    generator = torch.Generator().manual_seed(0)
    texts = ["naïve 你好 ###Human: no", "a  b \n\n ## c", "  lead # tail  ", "🙂🙂 ok . , ?"]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows += torch.randint(0, len(tokenizer), (150, 12), generator=generator).tolist()
    rows += torch.randint(0, min(len(tokenizer), 262), (150, 12), generator=generator).tolist()  # the bytes are here
    several = 0
    for stop in ([], ["e", "\n\n c"], [" lead # t", "好 #"]):
        settings = GenerationSettings(stop=stop)
        for row in rows:
            monkeypatch.setattr(room, "_steps", lambda *_, row=row: (row[: n + 1] for n in range(len(row))))
            pieces = list(room.stream_batch(None, processor, None, settings))  # type: ignore[arg-type]
            assert "".join(pieces) == processor.decode([row], stop)[0], (row, pieces)
            several += len(pieces) > 2
    assert several > 300


@both
def test_stop_texts_cut_the_answer(either: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = either
    whole = answer(model, processor, picture(3), "What is it?", SHORT)
    stop = whole[7:10]
    cut = SHORT.model_copy(update={"stop": [stop]})
    expected = whole.split(stop)[0].strip()
    assert 0 < len(expected) < len(whole)
    assert answer(model, processor, picture(3), "What is it?", cut) == expected
    assert "".join(stream(model, processor, picture(3), "What is it?", cut)) == expected
    asked = [record("a", [3], "<image>\nWhat is it?"), *RECORDS]
    assert answer_batch(model, processor, asked, cut)[0] == expected


def test_the_templates_stop_text_ends_the_generation(
    vip: tuple[VisionLanguageModel, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = vip
    whole = answer(model, processor, picture(3), "What is it?", SHORT)
    stopping = make_processor("vip")
    stopping.stop_strings = (whole[7:10],)
    seen: list[int] = []
    generate = room.generate

    def spy(*given: Any, **options: Any) -> Any:
        ids = generate(*given, **options)
        seen.append(ids.shape[1])
        return ids

    monkeypatch.setattr(room, "generate", spy)
    assert answer(model, stopping, picture(3), "What is it?", SHORT) == whole.split(whole[7:10])[0].strip()
    assert seen[0] < 12


def test_a_stop_text_of_one_token_waits_for_the_shortest_length(t5: tuple[VisionLanguageModel, Processor]) -> None:
    """As the newline that ends OPT's captions."""
    model, processor = t5
    text = answer(model, processor, GOLDEN / "pixels" / "land.png", "What is the color of the dog?", SHORT)
    stop = "chases"
    assert stop in text and len(room.stop_ids([stop, "two tokens", "\n"], processor.tokenizer)) == 1
    early = SHORT.model_copy(update={"stop": [stop]})
    late = early.model_copy(update={"min_new_tokens": 8})
    given = (model, processor, GOLDEN / "pixels" / "land.png", "What is the color of the dog?")
    assert answer(*given, early) == text.split(stop)[0].strip()
    assert len(answer(*given, late)) > len(answer(*given, early))


@pytest.mark.parametrize("rest", [0, 2])
def test_a_closed_stream_stops_at_once(vip: tuple[VisionLanguageModel, Processor], rest: int) -> None:
    model, processor = vip
    steps = []
    hook = model.language_model.model.register_forward_hook(lambda *_: steps.append(1))
    try:
        pieces = stream(model, processor, picture(3), "What is it?", GenerationSettings(max_new_tokens=400))
        for _ in range(rest):
            next(pieces)
        pieces.close()
        at_close = len(steps)
        assert at_close < 200
        assert len(steps) == at_close
    finally:
        hook.remove()


def test_what_goes_wrong_in_the_thread_is_raised(vip: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = vip
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")

    hook = model.language_model.model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            list(stream(model, processor, picture(3), "What is it?", SHORT))
    finally:
        hook.remove()


def test_several_answers(vip: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = vip
    for settings in (BEAMS, SAMPLED):
        several = settings.model_copy(update={"num_answers": 3})
        texts = answers(model, processor, picture(3), "What is it?", several)
        assert len(texts) == 3 and len(set(texts)) >= 2
        for call in (answer, stream):
            with pytest.raises(SettingsError, match="num_answers is 3, but one text"):
                call(model, processor, picture(3), "What is it?", several)
        with pytest.raises(SettingsError, match="num_answers is 3"):
            answer_batch(model, processor, RECORDS, several)
    assert answers(model, processor, picture(3), "What is it?", BEAMS) == [
        answer(model, processor, picture(3), "What is it?", BEAMS)
    ]


@both
def test_an_empty_answer(either: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = either
    ids = processor.tokenizer(answer(model, processor, picture(3), "What is it?", SHORT), add_special_tokens=False)
    first = room.generate_ids(model, processor, processor.prompt(picture(3), "What is it?"), SHORT)[0, 0].item()
    assert len(ids["input_ids"]) > 1
    silent = make_processor("t5" if processor.encoder_decoder else "vip")
    silent.eos_ids = (int(first),)
    assert answer(model, silent, picture(3), "What is it?", SHORT) == ""
    assert list(stream(model, silent, picture(3), "What is it?", SHORT)) == []
    assert answer_batch(model, silent, [record("a", [3], "<image>\nWhat is it?")], SHORT) == [""]


def test_mistakes_are_named(vip: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = vip
    with pytest.raises(DataError, match=r"1 picture\(s\).*2 '<image>' marker"):
        answer(model, processor, picture(0), "<image> and <image>?")
    with pytest.raises(DataError, match="record 'bad'"):
        answer_batch(model, processor, [RECORDS[0], record("bad", [0], "<image><image>")])
    with pytest.raises(ImageError, match=r"rows\.json, row 7, picture 1: .*nowhere\.png"):
        lost = replace(RECORDS[0], images=("nowhere.png",), where="rows.json, row 7")
        answer_batch(model, processor, [lost], SHORT)
    with pytest.raises(SettingsError, match="beam search cannot be streamed"):
        stream(model, processor, picture(0), "What?", BEAMS)
    with pytest.raises(DataError, match="marker"):
        stream(model, processor, [], "Where is <image>?")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 5}, r"max_tokens: unknown setting\. Did you mean 'max_new_tokens'\?"),
        ({"temperature": 0}, "temperature: expected a number above 0, got 0"),
        ({"max_new_tokens": "5"}, "max_new_tokens: expected a whole number"),
        ({"num_answers": 2}, "num_answers is 2: set sample"),
        ({"stop": ("a", 3)}, "stop.1: expected text, got 3"),
    ],
)
def test_ask_refuses_wrong_settings(
    vip: tuple[VisionLanguageModel, Processor], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        ask(*vip, picture(0), "What?", **options)


def test_ask_from_the_package(vip: tuple[VisionLanguageModel, Processor]) -> None:
    assert sightbridge.ask is ask
    expected = answer(*vip, picture(0), "What?", GenerationSettings(max_new_tokens=3, stop=["zz"]))
    assert sightbridge.ask(*vip, picture(0), "What?", max_new_tokens=3, stop=("zz",)) == expected


def test_rows_of_the_head_beyond_the_vocabulary() -> None:
    """FlanT5 has 32128 rows for 32100 pieces."""
    for name in ("vip", "t5", "llama3"):
        tokenizer = make_processor(name).tokenizer
        beyond = len(tokenizer) + 5
        assert room.without_open_bytes([5, beyond], tokenizer) in ([5, beyond], [5])
