"""The page's settings of an answer: fields of the API's request, under the chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from sightbridge.serving.api.state import State
from sightbridge.text.languages import LANGUAGES

AS_WRITTEN = "as it is written"
LONG, SHORT = "Caption in {}: ", "Question: {} Short answer in {}:"
"""How mBLIP's evaluation asks for captions and answers in a language (arXiv 2307.06930)."""


class Controls:
    """Components for everything about an answer that is not the question. Make it inside of ``gr.Blocks``."""

    def __init__(self, state: State) -> None:
        settings = state.settings
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            with gr.Row():
                self.temperature = gr.Slider(
                    0, 2, 0, step=0.05, label="Temperature", info="0: the likeliest words", min_width=150
                )
                self.top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top p", info="1: any word", min_width=150)
            with gr.Row():
                whole: dict[str, Any] = {"precision": 0, "min_width": 100}
                longest, widest = settings.max_tokens, settings.max_beams
                told = f"in tokens, to {longest}; 0: as usual"
                self.max_tokens = gr.Number(0, label="Longest answer", info=told, minimum=0, maximum=longest, **whole)
                told = f"of a search, to {widest}; 1: none"
                self.beams = gr.Number(1, label="Beams", info=told, minimum=1, maximum=widest, **whole)
                self.seed = gr.Number(-1, label="Seed", info="of drawn words; −1: any", minimum=-1, **whole)
            names = sorted(language.name for language in LANGUAGES.values())
            self.language = gr.Dropdown(
                [AS_WRITTEN, *names],
                value=AS_WRITTEN,
                label="Ask for an answer in",
                info="“Question: … Short answer in German:”, or a caption if you write nothing",
            )
            takes_system = [name for name, model in state.models.by_name.items() if model.engine and model.takes_system]
            self.system = gr.Textbox(
                value="",
                label="System text",
                info=f"what comes before the conversation, for {', '.join(takes_system)}",
                visible=bool(takes_system),
                max_lines=4,
                max_length=settings.max_characters,
            )

    @property
    def components(self) -> list[Component]:
        """In the order of ``read_controls``."""
        return [self.temperature, self.top_p, self.max_tokens, self.beams, self.seed, self.language, self.system]


def read_controls(values: Sequence[Any], question: str) -> tuple[dict[str, Any], str, str]:
    """Fields of the request, system text, and the question in the words that ask for a language."""
    temperature, top_p, max_tokens, beams, seed, language, system = values
    given = {"max_tokens": (max_tokens, 0), "num_beams": (beams, 1), "seed": (seed, -1)}
    fields = {name: value for name, (value, unasked) in given.items() if value not in (unasked, None)}
    temperature, top_p = temperature or 0, top_p or 1  # a field that was emptied asks for nothing
    if temperature > 0 or top_p < 1:
        fields |= {"temperature": temperature} | ({"top_p": top_p} if top_p < 1 else {})
    return fields, system or "", in_language(question, language)


def in_language(question: str, language: str) -> str:
    """Ask for an answer, or without a question for a caption, in a language.

    >>> in_language("What is it?", "German"), in_language("", "German")
    ('Question: What is it? Short answer in German:', 'Caption in German: ')
    """
    if language == AS_WRITTEN:
        return question
    return SHORT.format(question.strip(), language) if question.strip() else LONG.format(language)
