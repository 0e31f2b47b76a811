"""A tokenizer's own chat template: what it wrote, and what of it is learned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from text_tokenizers import trained_tokenizer

from sightbridge.errors import DataError, SettingsError
from sightbridge.text.encode import encode
from sightbridge.text.page import marked_text
from sightbridge.text.render import render
from sightbridge.text.template import load_template
from sightbridge.text.turns import Turn

HF = load_template("hf")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content | trim }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TURNS = [
    Turn("user", "<image>\nis it red? "),
    Turn("assistant", " yes "),
    Turn("user", "yes"),
    Turn("assistant", "no"),
]


def tokenizer_with(template: str | None, kind: str = "bpe") -> Any:
    tokenizer = copy.deepcopy(trained_tokenizer(kind))
    tokenizer.chat_template = template
    return tokenizer


def messages(turns: list[Turn]) -> list[dict[str, str | None]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def test_chatml_spans() -> None:
    rendered = render(HF, TURNS, system="S <image>", images=1, tokenizer=tokenizer_with(CHATML))
    assert marked_text(rendered.pieces) == (
        "<|im_start|>system\nS <image><|im_end|>\n<|im_start|>user\n<image>\nis it red? <|im_end|>\n"
        "<|im_start|>assistant\n\u27e6 yes <|im_end|>\u27e7\n<|im_start|>user\nyes<|im_end|>\n"
        "<|im_start|>assistant\n\u27e6no<|im_end|>\u27e7\n"
    )
    assert rendered.images == 1


def test_trimmed_texts_are_found() -> None:
    rendered = render(HF, TURNS, tokenizer=tokenizer_with(TRIMMING))
    assert marked_text(rendered.pieces) == (
        "<s>[INST] <image>\nis it red? [/INST] \u27e6yes </s>\u27e7[INST] yes [/INST] \u27e6no </s>\u27e7"
    )


@pytest.mark.parametrize("kind", ["bpe", "bpe-bos", "bpe-trimmed", "unigram"])
@pytest.mark.parametrize("template", [CHATML, TRIMMING])
@pytest.mark.parametrize("is_open", [False, True])
def test_ids_are_those_of_apply_chat_template(kind: str, template: str, is_open: bool) -> None:
    tokenizer = tokenizer_with(template, kind)
    turns = [Turn("user", "is it red?"), Turn("assistant", "yes"), Turn("user", "is it full?")]
    conversation = [*turns, Turn("assistant", None if is_open else "no")]
    closed = turns if is_open else conversation
    own = tokenizer.apply_chat_template(messages(closed), add_generation_prompt=is_open, return_dict=True)["input_ids"]
    assert encode(render(HF, conversation, tokenizer=tokenizer), tokenizer, 1).input_ids == own


def test_a_template_that_changes_texts_is_refused() -> None:
    shouting = CHATML.replace("m.content", "(m.content | upper)")
    with pytest.raises(DataError, match="record 'r7': the tokenizer's chat template changes the texts"):
        render(HF, TURNS, tokenizer=tokenizer_with(shouting), record_id="r7")
    forgetful = CHATML.replace("in messages", "in messages[-1:]")
    with pytest.raises(DataError, match="changes the texts"):
        render(HF, TURNS, tokenizer=tokenizer_with(forgetful))
    thinking = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    turns = [Turn("user", "q"), Turn("assistant", "hm</think>yes")]
    with pytest.raises(DataError, match="changes the texts"):
        render(HF, turns, tokenizer=tokenizer_with(thinking))


def test_a_template_without_an_end_of_turn_is_refused() -> None:
    with pytest.raises(SettingsError, match="holds no special token, so a model trained on it would never stop"):
        render(HF, TURNS, tokenizer=tokenizer_with(CHATML.replace("<|im_end|>", "")))


def test_messages_of_the_template_are_passed_on() -> None:
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"record 'r7': .*refuses the conversation: roles must alternate"):
        render(HF, TURNS, tokenizer=tokenizer_with(refusing), record_id="r7")


def test_what_hf_needs_and_cannot_do() -> None:
    with pytest.raises(SettingsError, match="hand render\\(\\) a tokenizer"):
        render(HF, TURNS)
    with pytest.raises(SettingsError, match="no chat template"):
        render(HF, TURNS, tokenizer=tokenizer_with(None))
    with pytest.raises(SettingsError, match=r"prompt\.switches\.learn_markup"):
        render(HF, TURNS, switches={"learn_markup": True}, tokenizer=tokenizer_with(CHATML))
