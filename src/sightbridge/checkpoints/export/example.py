"""The question of every model card, as the model is asked it."""

from __future__ import annotations

from sightbridge.data.processor import Processor
from sightbridge.text.render import render
from sightbridge.text.turns import IMAGE_MARKER, Turn

QUESTION = "What is in the picture?"


def example_prompt(processor: Processor) -> str:
    """A question in the model's template, ``<image>`` where the picture goes."""
    turns = (Turn("user", f"{IMAGE_MARKER}\n{QUESTION}"), Turn("assistant", None))
    settings = processor.prompt_settings
    rendered = render(
        processor.template,
        turns,
        images=1,
        switches=settings.switches,
        system=settings.system,
        tokenizer=processor.tokenizer,
    )
    return rendered.text


def example_text(processor: Processor, class_name: str) -> str:
    """The same as a processor of transformers takes it: Llava's with the marker, Blip2's without, as it adds it."""
    prompt = example_prompt(processor)
    return prompt if "Llava" in class_name else prompt.replace(IMAGE_MARKER, "").lstrip("\n")
