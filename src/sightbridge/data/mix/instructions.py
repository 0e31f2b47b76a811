"""Instructions: the prompts and labels that raw samples are put into. The texts are data (``instructions.yaml``)."""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import yaml

from sightbridge.errors import SettingsError, nearest


@dataclass(frozen=True)
class Prompt:
    """One prompt with slots in braces; ``answers`` are labels of its own, for yes and no."""

    text: str
    answers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Instructions:
    """A set of instructions: prompts with ``{slots}``, prompts to be translated, labels."""

    name: str
    kind: str
    prompts: tuple[Prompt, ...]
    translated: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def check_slots(self, known: Collection[str]) -> None:
        """Raise ``SettingsError`` for a slot that no sample of this kind can fill."""
        texts = [prompt.text for prompt in self.prompts]
        texts += [answer for prompt in self.prompts for answer in (prompt.answers or {}).values()]
        for text in (*texts, *self.translated, *self.labels):
            for slot in _slots(text):
                if slot not in known:
                    raise SettingsError(
                        f"the template '{text}' has the slot {{{slot}}}; kind '{self.kind}' has "
                        f"{', '.join(f'{{{name}}}' for name in known)}.{nearest(slot, list(known))}",
                        "templates",
                    )


def find_instructions(kind: str, given: str | Sequence[str] | None) -> Instructions:
    """The set of instructions for a part: the kind's own, a shipped one by name, or prompts of the user's.

    Prompts of the user's keep the labels of the kind's set; for a kind that answers yes and no, they are answered with
    "yes" and "no". Raises ``SettingsError`` for an unknown set, or one of another kind.
    """
    sets = _read_sets()
    if given is None:
        return sets[kind]
    if not isinstance(given, str):
        if not given:
            raise SettingsError("'templates' holds no prompt", "templates")
        has_answers = sets[kind].prompts[0].answers is not None
        answers = {"yes": "yes", "no": "no"} if has_answers else None
        return replace(
            sets[kind], name="your own", prompts=tuple(Prompt(text, answers) for text in given), translated=()
        )
    fitting = [name for name, found in sets.items() if found.kind == kind]
    if given not in fitting:
        hint = nearest(given, fitting) if given not in sets else f" That set is for kind '{sets[given].kind}'."
        raise SettingsError(
            f"kind '{kind}' has no set of templates '{given}'; it has {', '.join(fitting)}, or give a list of prompts "
            f"of your own.{hint}",
            "templates",
        )
    return sets[given]


def fill(text: str, fields: Mapping[str, str]) -> str:
    """Fill the slots of a checked template. Braces in what is filled in mean nothing."""
    return text.format_map(fields)


def _slots(text: str) -> list[str]:
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise SettingsError(f"the template '{text}' is broken: {error}; write {{{{ and }}}} for braces") from error
    for _, slot, form, conversion in parsed:
        if form or conversion:
            raise SettingsError(f"the template '{text}': a slot is a name in braces and nothing else")
        if slot is not None and not slot.isidentifier():
            raise SettingsError(
                f"the template '{text}' has the slot {{{slot}}}; slots have names, such as {{language}}"
            )
    return [slot for _, slot, _, _ in parsed if slot is not None]


@cache
def _read_sets() -> dict[str, Instructions]:
    content = yaml.safe_load((files("sightbridge.data.mix") / "instructions.yaml").read_text("utf-8"))
    return {name: _make_set(name, **given) for name, given in content.items()}


def _make_set(
    name: str,
    prompts: list[str | dict[str, str]],
    kind: str | None = None,
    translated: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Instructions:
    made = tuple(Prompt(given) if isinstance(given, str) else _prompt_with_answers(given) for given in prompts)
    return Instructions(name, kind or name, made, tuple(translated), tuple(labels))


def _prompt_with_answers(given: dict[str, str]) -> Prompt:
    return Prompt(given["prompt"], {"yes": given["yes"], "no": given["no"]})
