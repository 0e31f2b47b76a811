"""Templates as data: loading, switches, and the exact strings of the reference implementations."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sightbridge.errors import SettingsError
from sightbridge.text import template as template_module
from sightbridge.text.page import templates_page
from sightbridge.text.render import render
from sightbridge.text.template import SWITCHES, load_template, template_names
from sightbridge.text.turns import Turn

REFERENCE_NAMES = {
    "v1": "vicuna_v1",
    "vicuna_v1": "vicuna_v1",
    "llava_v1": "llava_v1",
    "llava_v0": "llava_v0",
    "default": "llava_v0",
    "v0": "llava_v0",
    "llama_2": "llama_2",
    "llava_llama_2": "llava_llama_2",
    "mistral_instruct": "mistral_instruct",
    "llava_llama_3": "llava_llama_3",
    "llava_phi_3": "llava_phi_3",
    "mpt": "mpt",
    "chatml_direct": "chatml_direct",
    "mistral_direct": "chatml_direct",
}
TWO_ROUNDS = [
    Turn("user", "<image>\nQ1"),
    Turn("assistant", "A1"),
    Turn("user", "Q2"),
    Turn("assistant", None),
]


@pytest.mark.parametrize("reference", REFERENCE_NAMES)
def test_parity_prompt_equals_reference(llava: dict, reference: str) -> None:
    rendered = render(load_template(REFERENCE_NAMES[reference]), TWO_ROUNDS, images=1)
    assert rendered.text == llava["prompts"][reference]
    assert rendered.is_open


def test_parity_t5_prompt_and_answer_equal_reference(llava: dict) -> None:
    turns = [*TWO_ROUNDS[:3], Turn("assistant", "A2")]
    rendered = render(load_template("t5_v1"), turns)
    assert [rendered.text, rendered.target_text] == llava["t5_prompts"]["t5_v1"]
    assert render(load_template("t5_v1"), TWO_ROUNDS).text == llava["t5_prompts"]["t5_v1"][0]


@pytest.mark.parametrize("name", [name for name in template_names() if name != "hf"])
def test_every_template_writes_every_text_once(name: str) -> None:
    turns = [Turn("user", "<image>first-Q"), Turn("assistant", "first-A"), Turn("user", "second-Q<image>")]
    rendered = render(load_template(name), [*turns, Turn("assistant", "second-A")], system="the-system", images=2)
    whole = rendered.text + (rendered.target_text if rendered.template.encoder_decoder else "")
    for text in ("the-system", "first-Q", "first-A", "second-Q", "second-A"):
        assert whole.count(text) == 1
    assert rendered.images == 2
    assert "Q" not in rendered.target_text
    assert "the-system" not in rendered.target_text
    prompt = render(load_template(name), [*turns, Turn("assistant", None)], system="the-system")
    assert whole.startswith(prompt.text)


def test_unknown_names_raise_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"'vicunna_v1'.*Did you mean 'vicuna_v1'.*Known: .*t5_v1"):
        load_template("vicunna_v1")
    with pytest.raises(SettingsError, match=r"eos_before_imag'.*Did you mean 'eos_before_image'"):
        load_template("t5_v1").resolve({"eos_before_imag": True})


def test_switches_default_to_off_and_the_template_to_its_own() -> None:
    assert [name for name, on in load_template("vicuna_v1").resolve().items() if on] == []
    assert [name for name, on in load_template("t5_plain_split_text").resolve().items() if on] == [
        "split_answer",
        "eos_before_image",
    ]
    assert not load_template("t5_v1").resolve({"eos_before_image": False})["eos_before_image"]
    assert list(load_template("plain").resolve()) == list(SWITCHES)


def test_template_is_frozen_and_extends_by_key() -> None:
    llava, vicuna = load_template("llava_v1"), load_template("vicuna_v1")
    assert llava.assistant == vicuna.assistant and llava.default_system != vicuna.default_system
    assert load_template("chatml").user.header == "user\n" and load_template("chatml").user.after == "\n"
    with pytest.raises(ValidationError):
        llava.start = "x"  # pyright: ignore[reportAttributeAccessIssue]


def test_one_file_adds_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("description: mine\nuser: {header: 'Q ', after: ' A'}\nassistant: {end: '.'}\n")
    (tmp_path / "wrong.yaml").write_text("description: wrong\nusr: {header: 'Q '}\n")
    monkeypatch.setattr(template_module, "_folder", lambda: tmp_path)
    rendered = render(load_template("mine"), [Turn("user", "x"), Turn("assistant", "y")])
    assert (rendered.text, rendered.target_text) == ("Q x Ay.", "y.")
    with pytest.raises(SettingsError, match=r"templates/wrong.yaml[\s\S]*usr"):
        load_template("wrong")


def test_stop_texts() -> None:
    stops = {name: load_template(name).stop for name in ("vicuna_v1", "llama_2", "blip2_caption", "t5_v1", "llama_3")}
    assert stops == {
        "vicuna_v1": ("</s>",),
        "llama_2": ("</s>",),
        "blip2_caption": ("\n",),
        "t5_v1": (),
        "llama_3": ("<|eot_id|>",),
    }


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "templates.md"
    assert page.read_text(encoding="utf-8") == templates_page(), (
        "run python -m sightbridge.text.page > docs/templates.md"
    )
