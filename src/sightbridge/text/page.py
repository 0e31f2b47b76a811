"""The page ``docs/templates.md``, written from the templates themselves.

``python -m sightbridge.text.page > docs/templates.md`` writes it anew; a test compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sightbridge.text.render import Piece, Rendered, render
from sightbridge.text.template import SWITCHES, PromptTemplate, load_template, template_names
from sightbridge.text.turns import IMAGE_MARKER, Turn

EXAMPLE = (
    Turn("user", f"{IMAGE_MARKER}\nWhat is in the picture?"),
    Turn("assistant", "A red cup."),
    Turn("user", "Is it full?"),
    Turn("assistant", "Yes."),
)
CAPTION = (Turn("user", IMAGE_MARKER), Turn("assistant", "a red cup on a table"))
QUESTION = EXAMPLE[:2]
CONTEXT = (
    Turn("user", f"{IMAGE_MARKER}Question: What is on the table? Short answer in English:"),
    Turn("assistant", "cup"),
)

HEAD = """# Prompt templates

<!-- Written by `python -m sightbridge.text.page`. Do not edit by hand. -->

A template says how a conversation is written for a language model and which part of it the model learns to write.
Choose one with `model.prompt.template`, replace its system text with `model.prompt.system`, and change its switches
with `model.prompt.switches`. Each template is one YAML file in `sightbridge/text/templates/`; adding a file adds a
template, and `extends: NAME` in it takes everything from another one and changes the rest.

Every turn is written as `open`, `header`, `lead`, text, `end`, `after`. A prompt for an answer stops after the
assistant's `header`; so `lead`, the answer and `end` are what the model learns to write. Labels are made in the same
pass as the ids: a row is tokenised once, and its targets follow from where characters and tokens lie.

- A picture stands where `<image>` stands in a turn, or in front of everything (`image_place: front`). The marker
  never reaches a tokenizer. In a system text that is not a turn of the record it is plain text.
- A tokenizer's automatic BOS is kept unless the template writes one itself. Its automatic EOS is kept for
  encoder-decoder templates only; the others write their own end of turn.
- `labels` of a decoder-only template are as long as the row, not shifted, and -100 outside targets. Those of an
  encoder-decoder template are what the decoder writes, EOS included.
- A token is a target if it holds a target character other than white space, or, being white space alone, any target
  character.
- A row that is too long loses text at its right end and the number of lost positions is reported. A picture is never
  cut, a prompt for an answer is never cut, and a record left without a target is an error.

In the examples `\u27e6 \u27e7` enclose what the model learns to write. BOS and EOS that a tokenizer adds are not shown.
"""


def templates_page() -> str:
    """The whole page as Markdown."""
    sections = [HEAD, _switch_table()]
    sections += [_section(load_template(name)) for name in template_names()]
    return "\n".join(sections)


def _switch_table() -> str:
    rows = []
    for name, meaning in SWITCHES.items():
        on = [f"`{other}`" for other in template_names() if load_template(other).switches.get(name)]
        rows.append(f"| `{name}` | {meaning} | {', '.join(on)} |")
    head = ["## Switches", "", "Off unless named here. Most keep the ways of a released model.", ""]
    return "\n".join([*head, "| switch | when on | on by default in |", "| --- | --- | --- |", *rows, ""])


def _section(template: PromptTemplate) -> str:
    kind = "encoder-decoder" if template.encoder_decoder else "decoder-only"
    lines = [f"## {template.name}", "", template.description, ""]
    if template.from_tokenizer:
        lines += [
            "Targets are the answers and the end-of-turn token after each. They are found by having the tokenizer's",
            "template write the conversation a second time with other texts; a template that changes the texts so",
            "that they cannot be found for certain is refused.",
            "",
        ]
        return "\n".join(lines)
    lines += [f"Kind: {kind}. Ends an answer: {_stop(template)}.", "", "```text"]
    rendered = render(template, _example(template), record_id="example")
    if rendered.decoder_pieces is not None:
        given, answer = _split_words(rendered)
        lines += ["encoder:", marked_text(rendered.pieces) + given, "decoder:", marked_text(answer)]
    else:
        lines.append(marked_text(rendered.pieces))
    return "\n".join([*lines, "```", ""])


def _split_words(rendered: Rendered) -> tuple[str, Sequence[Piece]]:
    """What ``split_answer_tokens`` does to an answer, if words were its tokens."""
    answer = rendered.decoder_pieces or ()
    if rendered.token_split is None:
        return "", answer
    words = rendered.target_text.split(" ")
    cut = 1 + int(rendered.token_split * (len(words) // 2))
    return " ".join(words[:cut]), (Piece(" ".join(words[cut:]), True),)


def _stop(template: PromptTemplate) -> str:
    return ", ".join(f"`{text!r}`" for text in template.stop) + " or EOS" if template.stop else "EOS"


def _example(template: PromptTemplate) -> tuple[Turn, ...]:
    """A context for mBLIP, a caption for what has no words for a user, one question for BLIP-2, else a conversation."""
    if template.name.startswith("mblip"):
        return CONTEXT
    if template.user.header == template.user.open == "":
        return CAPTION
    return QUESTION if template.image_place == "front" else EXAMPLE


def marked_text(pieces: Sequence[Piece]) -> str:
    """Pieces as text with targets between ``\u27e6`` and ``\u27e7``; neighbouring targets share one pair."""
    text = ""
    inside = False
    for piece in pieces:
        if piece.is_target != inside:
            text += "\u27e6" if piece.is_target else "\u27e7"
            inside = piece.is_target
        text += IMAGE_MARKER if piece.text is None else piece.text
    return text + ("\u27e7" if inside else "")


if __name__ == "__main__":
    sys.stdout.write(templates_page())
