"""What is asked, and how the probabilities of an answer's tokens become one number; both are kept with the scores."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from sightbridge.config.base import Settings
from sightbridge.errors import SettingsError, nearest

SCORES_VERSION = 1
"""Grows whenever the same model, pictures, texts and settings give other scores than before."""

Kind = Literal["vqascore", "visualgpt", "options", "itm", "itc", "clip"]
KINDS: dict[Kind, str] = {
    "vqascore": "how probable the answer to a question about the text is, given the picture (arXiv 2404.01291)",
    "visualgpt": "how probable the text is as a caption of the picture (arXiv 2306.01879)",
    "options": "log-likelihood of each text as the answer to one question",
    "itm": "probability that picture and text match, read together (BLIP-2's first stage)",
    "itc": "cosine similarity of picture and text, read apart (BLIP-2's first stage)",
    "clip": "cosine similarity of picture and text by a whole CLIP or SigLIP",
}
Reduction = Literal["geomean", "first_token", "product", "mean", "sum", "yes_no"]


class AnswerSettings(Settings):
    """Settings of the kinds that ask a language model: vqascore, visualgpt and options.

    The defaults are those of t2v_metrics for CLIP-FlanT5 and LLaVA-1.5 (``exp(-cross entropy)`` over the answer and
    the end behind it), so that released weights give the published scores.
    """

    question_template: str = Field(
        default='Does this figure show "{}"? Please answer yes or no.', description="what is asked; {} is the text"
    )
    answer_template: str = Field(default="Yes", description="whose probability is taken; {} is the text")
    reduction: Reduction = Field(
        default="geomean",
        description="of the tokens' probabilities: geomean (geometric mean), product, first_token, mean and sum (of "
        "log-probabilities), yes_no: p(answer) / (p(answer) + p(other_answer)), each a product",
    )
    answer_eos: bool = Field(default=True, description="the end of the answer (EOS) counts as its last token")
    other_answer: str = Field(default="No", description="what yes_no weighs the answer against")
    head_rows: int | None = Field(
        default=None,
        ge=1,
        description="rows of the output head that share the probability; by default all, but of CLIP-FlanT5's 32,128 "
        "the 32,100 of its tokenizer, as in t2v_metrics",
    )


ANSWER_KINDS: dict[str, AnswerSettings] = {
    "vqascore": AnswerSettings(),
    "visualgpt": AnswerSettings(question_template="", answer_template="{}"),
    "options": AnswerSettings(question_template="", answer_template="{}", reduction="sum"),
}
"""Defaults of every kind that asks a language model."""


def change_settings(settings: AnswerSettings, changes: dict[str, Any]) -> AnswerSettings:
    """Return ``settings`` with ``changes``; raises ``SettingsError`` for an unknown name or a wrong value."""
    known = list(AnswerSettings.model_fields)
    for name in changes:
        if name not in known:
            raise SettingsError(
                f"unknown setting of a score: '{name}'.{nearest(name, known)} Known: {', '.join(known)}"
            )
    if (reduction := changes.get("reduction", "geomean")) not in get_args(Reduction):
        raise SettingsError(
            f"unknown reduction '{reduction}'.{nearest(str(reduction), list(get_args(Reduction)))} "
            f"Known: {', '.join(get_args(Reduction))}"
        )
    try:
        changed = AnswerSettings.model_validate(settings.model_dump() | changes)
    except ValueError as error:
        raise SettingsError(f"settings of a score: {error}") from error
    if "{}" not in changed.question_template + changed.answer_template:
        raise SettingsError(
            "neither question_template nor answer_template has a '{}', so that every text would get the same score; "
            "write {} where the text goes"
        )
    return changed
