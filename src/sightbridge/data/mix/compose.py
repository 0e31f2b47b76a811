"""Samples to rows: drafts, translations, instructions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from sightbridge.data.mix.instructions import Prompt, fill
from sightbridge.data.mix.kinds import Texts
from sightbridge.data.mix.plan import MixPlan, PartPlan, sample_language
from sightbridge.data.mix.sample import Sample
from sightbridge.text.languages import ALL_LANGUAGES, find_language

CHUNK = 2048
"""Samples held at a time; a translator gets the texts of so many at once, grouped by language."""

Row = dict[str, Any]


@dataclass
class _Draft:
    """A row in the making. ``spoken`` is the language its texts are in so far, ``language`` the one wanted."""

    sample: Sample
    rng: Random
    spoken: str
    language: str
    texts: Texts
    verdict: str | None
    prompt: Prompt | None = None
    answer_language: str = ""
    dropped: str | None = None


class Composer:
    """Makes the rows of one part. ``dropped`` counts those that could not be made, by reason."""

    def __init__(self, part: PartPlan, plan: MixPlan) -> None:
        self.part = part
        self.plan = plan
        self.codes = list(part.rows)
        self.dropped: Counter[str] = Counter()
        given = part.part.answer_language
        self._answers_in = find_language(given).code if given else None
        self._prompts: dict[str, list[Prompt]] = {}
        self._used: Counter[str] = Counter()

    def rows(self) -> Iterator[Row | None]:
        """Yield the row of every chosen sample in the file's order, ``None`` for one that is dropped."""
        samples = self.part.chosen_samples()
        while chunk := list(islice(samples, CHUNK)):
            drafts = [self._draft(number, sample) for number, sample in chunk]
            self._translate(drafts)
            if self.part.part.translate_answers:
                self._translate_answers(drafts)
            for draft in drafts:
                self.dropped.update([draft.dropped] if draft.dropped else [])
                yield None if draft.dropped else self._row(draft)

    def _draft(self, number: int, sample: Sample) -> _Draft:
        part, plan = self.part, self.plan
        spoken = sample_language(part, sample, plan.source_language)
        language = spoken if part.places is None else self.codes[part.places[number]]
        rng = Random(f"{plan.settings.seed}/{part.name}/{number}")
        made = part.kind.draft(sample, rng, part.pools, spoken)
        if isinstance(made, str):
            return _Draft(sample, rng, spoken, language, {}, None, dropped=made)
        prompts = self._prompts_in(language)
        prompt = prompts[self._used[language] % len(prompts)]
        self._used[language] += 1
        return _Draft(sample, rng, spoken, language, dict(made.texts), made.verdict, prompt, self._answers_in or spoken)

    def _prompts_in(self, language: str) -> list[Prompt]:
        """The prompts for a language: those with its name, and those that could be translated into it.

        As in mBLIP, a prompt that still speaks of an "image caption" is not translated; nor is one that did not change.
        """
        if language not in self._prompts:
            texts = self.part.instructions.translated
            said: Sequence[str | None] = texts
            if language != self.plan.source_language:
                said = self._translated_prompts(texts, language)
            self._prompts[language] = [*self.part.instructions.prompts, *(Prompt(text) for text in said if text)]
        return self._prompts[language]

    def _translated_prompts(self, texts: Sequence[str], language: str) -> list[str | None]:
        if self.plan.translator is None or not texts:
            return []
        said = self.plan.translator.translate(texts, language, optional=True)
        return [
            there if there and there != here and "image caption" not in there.lower() else None
            for here, there in zip(texts, said, strict=True)
        ]

    def _translate(self, drafts: list[_Draft]) -> None:
        """Put every text that is to be translated into its row's language, all texts of a language together."""
        by_language: dict[str, list[tuple[_Draft, str]]] = {}
        for draft in drafts:
            if draft.language != draft.spoken and not draft.dropped:
                slots = [slot for slot in self.part.kind.translated if slot in draft.texts]
                by_language.setdefault(draft.language, []).extend((draft, slot) for slot in slots)
        for language, wanted in by_language.items():
            assert self.plan.translator is not None
            said = self.plan.translator.translate([draft.texts[slot] for draft, slot in wanted], language)
            for (draft, slot), text in zip(wanted, said, strict=True):
                if text:
                    draft.texts[slot] = text
                else:
                    draft.dropped = self.plan.translator.missing

    def _translate_answers(self, drafts: list[_Draft]) -> None:
        """Translate some answers too: common ones without digits, whose translation differs and translates back."""
        translator, part = self.plan.translator, self.part.part
        by_language: dict[str, list[_Draft]] = {}
        for draft in drafts:
            is_foreign = draft.language != draft.spoken and not draft.dropped
            if (
                is_foreign
                and draft.rng.random() < part.translate_answers
                and self._may_translate(draft.texts["answer"])
            ):
                by_language.setdefault(draft.language, []).append(draft)
        for language, wanted in by_language.items():
            assert translator is not None
            answers = [draft.texts["answer"] for draft in wanted]
            said = [text or "" for text in translator.translate(answers, language, optional=True)]
            back = translator.translate_back(said, language) if part.back_translation else answers
            for draft, answer, there, again in zip(wanted, answers, said, back, strict=True):
                if there and there != answer and (again or "").casefold() == answer.casefold():
                    draft.texts["answer"] = there
                    draft.answer_language = language

    def _may_translate(self, answer: str) -> bool:
        is_common = self.part.answers[answer] >= self.part.part.min_answer_count
        return is_common and len(answer) > 1 and not any(character.isdigit() for character in answer)

    def _row(self, draft: _Draft) -> Row:
        prompt = draft.prompt
        assert prompt is not None
        named = draft.answer_language if self.part.part.kind == "vqa" else draft.language
        fields = draft.texts | {"language": self.plan.names.get(named, ALL_LANGUAGES[named].name)}
        if prompt.answers is not None and draft.verdict is not None:
            label = prompt.answers[draft.verdict]
        else:
            label = fill(draft.rng.choice(self.part.instructions.labels), fields)
        return self._finish(draft, fill(prompt.text, fields), label)

    def _finish(self, draft: _Draft, context: str, label: str) -> Row:
        row: Row = {"context": context, "label": label}
        if self.plan.settings.rows == "evaluation":
            answers = draft.sample.fields.get("answers") if self.part.part.kind == "vqa" else None
            is_own = draft.answer_language == (self._answers_in or draft.spoken)
            row = {"context": context, "label": "", "text_label": answers if answers and is_own else label}
        keys = ("image_id",) if len(draft.sample.images) == 1 else ("left_image", "right_image")
        row |= zip(keys, draft.sample.images, strict=True)
        return row | {"language": draft.language, "part": self.part.name}
