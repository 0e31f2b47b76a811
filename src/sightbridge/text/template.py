"""Prompt templates as data: one YAML file each in ``templates/``, read into a frozen ``PromptTemplate``.

A conversation is written as ``start``, the system text, then the turns. Every turn is written as

    open | header | lead | text | end | after

and an open assistant turn (the place where the model is to answer) stops after ``header``. What follows an assistant's
header is what the model must write itself, so ``lead``, ``text`` and ``end`` of assistant turns are the targets.
Adding a template means adding one file; ``extends: NAME`` takes everything from another one and changes the rest.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from sightbridge.config.base import Settings
from sightbridge.errors import SettingsError, nearest
from sightbridge.text.turns import Role

SWITCHES: dict[str, str] = {
    "image_first": "pictures of a turn move to its front, one per line, and its text is stripped (LLaVA's training "
    "data preparation; LLaVA also makes one picture out of several, which we never do)",
    "drop_leading_assistant": "a conversation that the assistant opens loses that first turn (LLaVA)",
    "drop_user_text": "user turns keep their pictures only, their words are discarded (LLaVA's caption pre-training)",
    "split_answer": "a random share of the last answer, at most half of its characters, is given to the model and only "
    "the rest is a target (prefix language modelling); the same cut for the same seed and record",
    "split_answer_tokens": "the first tokens of the answer, their number drawn uniformly from 1 to half of them, go to "
    "the encoder and only the rest is the decoder's target (prefix language modelling as BLIP-2's authors describe "
    "it); the same cut for the same seed and record",
    "learn_markup": "`open`, `end` and `after` of every turn of every role are targets too (Qwen, MiniGPT4Qwen)",
    "separate_text": "the text of a turn is tokenised apart from the markup around it (Qwen, mBLIP)",
    "image_before_bos": "pictures at the front stand before the tokenizer's BOS, not after it (BLIP-2 with OPT)",
    "bos_target": "the tokenizer's BOS is a target (BLIP-2 with OPT, without a prompt)",
    "eos_before_image": "the tokenizer's EOS follows every piece of text, also the one before a picture (CLIP-FlanT5)",
    "double_bos": "the tokenizer's BOS is added even if the template already wrote one (LLaVA with Llama-3)",
    "lost_newline": "where the template writes BOS and the tokenizer does not, each text after a picture loses its "
    "first token, the newline (LLaVA with Llama-3)",
    "drop_cut_images": "pictures that do not fit into the greatest length are dropped whole instead of being an error",
}
"""Every switch and what it does when on. Each is off unless a template's file says otherwise."""


class RoleFormat(Settings):
    """What is written around the text of a turn."""

    open: str = Field(default="", description="mark that opens the turn, e.g. <|im_start|>")
    header: str = Field(default="", description="name of the role and what follows it; an open turn ends here")
    lead: str = Field(
        default="", description="written in front of a text, but not in an open turn; a target before an answer"
    )
    default: str = Field(default="", description="text of a turn that has none of its own")
    end: str = Field(default="", description="end of the turn; a target after an answer")
    after: str = Field(default="", description="written after the turn; not a target")


class PromptTemplate(Settings):
    """How a conversation is written for a language model.

    ``encoder_decoder``: the last answer is the decoder's target, all before it is the encoder's text.
    ``image_place``: ``marker`` leaves every picture where its marker stands, ``front`` puts all of them first.
    ``system_place``: ``front``, or ``first_user`` for inside the first user turn, after its header.
    """

    name: str
    description: str = Field(..., description="who uses it, in a sentence")
    encoder_decoder: bool = False
    from_tokenizer: bool = Field(
        default=False, description="written by the tokenizer's own chat template, not by this file"
    )
    start: str = Field(default="", description="written once, at the very front")
    between: str = Field(default="", description="written before every user turn but the first")
    default_system: str = Field(
        default="", description="system text if the conversation brings none; nothing is written if ''"
    )
    system: RoleFormat = RoleFormat()
    user: RoleFormat = RoleFormat()
    assistant: RoleFormat = RoleFormat()
    system_place: Literal["front", "first_user"] = "front"
    image_place: Literal["marker", "front"] = "marker"
    stops: list[str] = Field(default_factory=list, description="texts that end an answer besides the end of its turn")
    switches: dict[str, bool] = Field(default_factory=dict, description="switches that are on for this template")

    def format_of(self, role: Role) -> RoleFormat:
        """The format of turns of ``role``."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer, besides the tokenizer's EOS. Empty if EOS is the only end."""
        end = self.assistant.end.strip() or self.assistant.end
        return (*([end] if end else []), *self.stops)

    def resolve(self, switches: dict[str, bool] | None = None) -> dict[str, bool]:
        """Every switch with its value: off, unless the template or ``switches`` (which wins) says otherwise.

        Raises ``SettingsError`` for an unknown switch.
        """
        for name in switches or {}:
            if name not in SWITCHES:
                raise SettingsError(
                    f"prompt.switches: unknown switch '{name}'.{nearest(name, list(SWITCHES))} "
                    f"Known: {', '.join(SWITCHES)}",
                    key=f"prompt.switches.{name}",
                )
        return dict.fromkeys(SWITCHES, False) | self.switches | (switches or {})


def template_names() -> list[str]:
    """Names of all templates, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


@cache
def load_template(name: str) -> PromptTemplate:
    """Read the template ``name``; raises ``SettingsError`` with the known names if there is none."""
    fields = _read(name)
    try:
        template = PromptTemplate(name=name, **fields)
        template.resolve(template.switches)
    except ValidationError as error:
        raise SettingsError(f"templates/{name}.yaml: {error}") from error
    return template


def _folder() -> Traversable:
    return files("sightbridge.text") / "templates"


def _read(name: str) -> dict[str, Any]:
    """The fields of one file on top of those of the file it extends."""
    known = template_names()
    if name not in known:
        raise SettingsError(
            f"unknown prompt template '{name}'.{nearest(name, known)} Known: {', '.join(known)}", key="prompt.template"
        )
    fields = yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    parent = fields.pop("extends", None)
    return _merge(_read(parent), fields) if parent else fields


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
