"""What render does with turns, pictures and switches; nothing gets lost without a word."""

from __future__ import annotations

import pytest

from sightbridge.errors import DataError
from sightbridge.text.page import marked_text
from sightbridge.text.render import render
from sightbridge.text.template import load_template
from sightbridge.text.turns import Turn

VICUNA = load_template("vicuna_v1")
PLAIN = load_template("plain")


def user(text: str) -> Turn:
    return Turn("user", text)


def answer(text: str | None) -> Turn:
    return Turn("assistant", text)


def test_pictures_stay_where_they_stand() -> None:
    rendered = render(VICUNA, [user("a <image>\n<image> b<image>"), answer("see <image>")], system="", images=4)
    assert rendered.text == "USER: a <image>\n<image> b<image> ASSISTANT: see <image></s>"
    assert all(not piece.is_target for piece in rendered.pieces if piece.text is None)


def test_image_first_moves_every_picture_to_the_front_of_its_turn() -> None:
    turns = [user(" b <image> c<image>"), answer("d"), user("<image>"), answer("f")]
    rendered = render(VICUNA, turns, system="", switches={"image_first": True})
    assert rendered.text == "USER: <image>\n<image>\nb  c ASSISTANT: d</s>USER: <image> ASSISTANT: f</s>"


@pytest.mark.parametrize(
    ("text", "front"),
    [("<image>\nWhat?", "What?"), ("What?\n<image>", "What?"), ("Which <image>of <image>\n", "Which of ")],
)
def test_templates_with_pictures_in_front(text: str, front: str) -> None:
    rendered = render(load_template("mblip"), [user(text), answer("x")])
    assert rendered.text == "<image>" * text.count("<image>") + front


def test_markers_are_recognised_in_turns_only() -> None:
    turns = [user("<image><IMAGE> < image> <image"), answer("x")]
    rendered = render(VICUNA, turns, system="look at <image>", images=1)
    assert rendered.images == 1
    assert rendered.pieces[0].text == "look at <image>"
    with_turn = render(VICUNA, [Turn("system", "this is <image>."), *turns], images=2)
    assert with_turn.images == 2


@pytest.mark.parametrize("images", [0, 2, ["a.png", "b.png"]])
def test_markers_and_pictures_must_agree(images: int | list[str]) -> None:
    with pytest.raises(DataError, match=r"record 'r7': it has \d picture\(s\), but its turns hold 1 '<image>' marker"):
        render(VICUNA, [user("<image>"), answer("x")], images=images, record_id="r7")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "no user or assistant turn"),
        ([Turn("system", "s")], "no user or assistant turn"),
        ([answer(None), user("q")], r"turn 0 \(assistant\) has no text"),
        ([Turn("user", None)], r"turn 0 \(user\) has no text"),
        ([user("q"), Turn("system", "s"), answer("a")], "turn 1 is a system turn"),
    ],
)
def test_turns_that_cannot_be_written(turns: list[Turn], message: str) -> None:
    with pytest.raises(DataError, match=f"record 'r7': .*{message}"):
        render(VICUNA, turns, record_id="r7")


def test_system_text_own_turn_over_argument_over_template() -> None:
    turns = [user("q"), answer("a")]
    assert render(VICUNA, turns).text.startswith("A chat between")
    assert render(VICUNA, turns, system="short").text == "short USER: q ASSISTANT: a</s>"
    assert render(VICUNA, [Turn("system", "own"), *turns], system="short").text == "own USER: q ASSISTANT: a</s>"
    assert render(VICUNA, turns, system="").text == "USER: q ASSISTANT: a</s>"


def test_a_conversation_that_the_assistant_opens_keeps_its_first_turn() -> None:
    turns = [answer("hello"), user("q"), answer("a")]
    assert render(VICUNA, turns, system="").text == "ASSISTANT: hello</s>USER: q ASSISTANT: a</s>"
    dropped = render(VICUNA, turns, system="", switches={"drop_leading_assistant": True})
    assert dropped.text == "USER: q ASSISTANT: a</s>"


def test_llama_2_needs_a_user_turn_for_its_system_text() -> None:
    with pytest.raises(DataError, match=r"record 'r': 'llama_2' writes the system text into the first user turn"):
        render(load_template("llama_2"), [answer("a")], record_id="r")
    opened = render(load_template("llama_2"), [answer("a"), user("q"), answer(None)], system="S")
    assert opened.text == " a </s>[INST] <<SYS>>\nS\n<</SYS>>\n\nq [/INST]"


def test_plain_keeps_the_words_of_the_user_unless_told_otherwise() -> None:
    turns = [user("Describe.\n<image>"), answer("a dog")]
    assert render(PLAIN, turns).text == "Describe.\n<image>a dog\n"
    assert render(PLAIN, turns, switches={"drop_user_text": True}).text == "<image>a dog\n"


def test_blip2_prompts() -> None:
    caption = render(load_template("blip2_caption"), [user("<image>"), answer("two cats")])
    assert marked_text(caption.pieces) == "<image>a photo of\u27e6 two cats\n\u27e7"
    assert render(load_template("blip2_caption_t5"), [user("<image>"), answer(None)]).text == "<image>a photo of"
    question = render(load_template("blip2_question_t5"), [user("<image>how many?"), answer("two")])
    assert question.text == "<image>Question: how many? Short answer:"
    assert question.target_text == "two"


def test_chatml_targets_with_and_without_markup() -> None:
    turns = [user("<image>q"), answer("a")]
    plain = render(load_template("chatml"), turns, system="s")
    assert plain.target_text == "a<|im_end|>"
    learned = render(load_template("chatml"), turns, system="s", switches={"learn_markup": True})
    assert marked_text(learned.pieces) == (
        "\u27e6<|im_start|>\u27e7system\ns\u27e6<|im_end|>\n"
        "<|im_start|>\u27e7user\n<image>q\u27e6<|im_end|>\n"
        "<|im_start|>\u27e7assistant\n\u27e6a<|im_end|>\n\u27e7"
    )


def test_split_answer_is_the_same_for_the_same_seed_and_record() -> None:
    template, caption = load_template("t5_plain_split_text"), "two people with an umbrella near a train"

    def cut(seed: int, record: str) -> str:
        rendered = render(template, [user("<image>"), answer(caption)], seed=seed, record_id=record)
        assert rendered.text.removeprefix("<image>") + rendered.target_text == caption
        return rendered.text.removeprefix("<image>")

    assert cut(1, "r") == cut(1, "r")
    lengths = {len(cut(seed, str(record))) for seed in range(10) for record in range(40)}
    assert lengths == set(range(1, len(caption) // 2 + 1))
    assert render(template, [user("<image>"), answer("x")]).target_text == "x"


def test_split_answer_of_a_decoder_only_template() -> None:
    rendered = render(PLAIN, [user("<image>"), answer("abcdef")], switches={"split_answer": True})
    assert rendered.text == "<image>abcdef\n"
    assert 3 <= len(rendered.target_text.rstrip("\n")) <= 5 and "abcdef\n".endswith(rendered.target_text)


def test_encoder_decoder_earlier_answers_are_context() -> None:
    turns = [user("<image>q"), answer("a"), user("r"), answer("b")]
    rendered = render(load_template("t5_v1"), turns, system="")
    assert rendered.text == "USER: <image>q ASSISTANT: a USER: r ASSISTANT: "
    assert rendered.target_text == "b"
    assert render(load_template("t5_v1"), turns[:3], system="").decoder_pieces is None
    with pytest.raises(DataError, match="holds a picture, but a decoder has no place"):
        render(load_template("t5_v1"), [user("q"), answer("<image>")])
