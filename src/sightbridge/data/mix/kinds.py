"""Kinds of parts: what of a raw sample goes into the slots of its instruction, and what of it is translated."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from sightbridge.data.mix.sample import Sample
from sightbridge.data.mix.settings import Languages, PartSettings
from sightbridge.errors import SettingsError, nearest

Texts = dict[str, str]


class Pool:
    """Some captions of a part and one language, to choose wrong ones from."""

    def __init__(self) -> None:
        self.captions: list[tuple[str, str]] = []
        self._places: dict[str, list[int]] = {}

    def put(self, place: int, caption: str, image: str) -> None:
        """Put a caption behind the others, or in the place of one."""
        if place == len(self.captions):
            self.captions.append((caption, image))
        else:
            self._places[self.captions[place][1]].remove(place)
            self.captions[place] = (caption, image)
        insort(self._places.setdefault(image, []), place)

    def draw(self, rng: Random, image: str) -> str | None:
        """A caption of any picture but ``image``, each as likely; ``None`` if there is none."""
        own = self._places.get(image, [])
        if len(own) == len(self.captions):
            return None
        number = rng.randrange(len(self.captions) - len(own))
        for place in own:  # step over the picture's own ones
            number += number >= place
        return self.captions[number][0]


Pools = Mapping[str, Pool]
"""Captions by language."""


class Draft(NamedTuple):
    """A sample's texts for the slots, and whether the prompt's own answer is ``yes`` or ``no``."""

    texts: Texts
    verdict: str | None = None


def _take(*names: str) -> Callable[[Sample, Random, Pools, str], Draft]:
    """Texts of the sample as they are."""
    return lambda sample, rng, pools, language: Draft({name: sample.fields[name] for name in names})


def _match(sample: Sample, rng: Random, pools: Pools, language: str) -> Draft | str:
    """The picture's own caption or, half the time, a wrong one: another picture's, or one of the row's ``negatives``,
    each as likely (mBLIP: captions that CLIP finds near, at ranks 3, 10, 30, 100 and 300)."""
    if rng.random() < 0.5:
        return Draft({"caption": sample.fields["caption"]}, "yes")
    other = pools[language].draw(rng, sample.images[0])
    wrong = [text for text in sample.fields["negatives"] if text != sample.fields["caption"]]
    wrong += [other] if other else []
    return Draft({"caption": rng.choice(wrong)}, "no") if wrong else "no wrong caption"


def _decide(sample: Sample, rng: Random, pools: Pools, language: str) -> Draft | str:
    """The picture's class or, half the time, the next one of the table or any other (mBLIP may draw the right one)."""
    name = sample.fields["name"]
    if rng.random() < 0.5:
        return Draft({"name": name}, "yes")
    if rng.random() < 0.5 and sample.fields["next"] != name:
        return Draft({"name": sample.fields["next"]}, "no")
    others = [other for other in sample.fields["names"] if other != name]
    return Draft({"name": rng.choice(others)}, "no") if others else "no other class"


def _reason(sample: Sample, rng: Random, pools: Pools, language: str) -> Draft:
    """The rationale becomes a part of a sentence: its full stop goes."""
    fields = sample.fields
    reason = fields["rationale"].rstrip(". ")
    return Draft({"question": fields["question"], "answer": fields["answer"], "reason": reason})


@dataclass(frozen=True)
class Kind:
    """A kind of part.

    ``formats``: of its raw files, the usual one first. ``slots``: what instructions may name besides the language.
    ``draft``: fills them, or says why the sample cannot be used. ``translated``: slots that are put into the row's
    language. ``options``: settings of parts that only some kinds have. ``languages``: instead of the mixture's.
    """

    formats: tuple[str, ...]
    slots: tuple[str, ...]
    draft: Callable[[Sample, Random, Pools, str], Draft | str]
    translated: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    languages: Languages | None = None
    what: str = ""


_CAPTIONS = ("captions", "karpathy", "regions")
_QUESTIONS = ("vqa", "gqa")
_ANSWERS = ("answer_language", "translate_answers", "min_answer_count", "back_translation")
_TABLE = ("classes", "synsets", "passes")

KINDS: dict[str, Kind] = {
    "captions": Kind(_CAPTIONS, ("caption",), _take("caption"), ("caption",), what="describe the picture"),
    "matching": Kind(_CAPTIONS, ("caption",), _match, ("caption",), what="does this caption fit? yes or no"),
    "vqa": Kind(
        _QUESTIONS, ("question", "answer"), _take("question", "answer"), ("question",), _ANSWERS, what="short answers"
    ),
    "vqg": Kind(
        _QUESTIONS, ("question", "answer"), _take("question", "answer"), ("question",), _ANSWERS,
        what="find a question to an answer",
    ),
    "conversation": Kind(
        ("llava",), ("question", "answer"), _take("question", "answer"), ("question", "answer"), ("max_sentences",),
        what="questions with answers in sentences, one row for each",
    ),
    "detail": Kind(
        ("llava",), ("question", "answer"), _take("question", "answer"), ("question", "answer"),
        what="long descriptions",
    ),
    "cot": Kind(
        ("aokvqa",), ("question", "answer", "reason"), _reason, ("question", "answer", "reason"), languages="en",
        what="reason, then answer",
    ),
    "explanation": Kind(
        ("aokvqa",), ("question", "answer", "rationale"), _take("question", "answer", "rationale"),
        ("question", "answer", "rationale"), languages="en", what="why is that the answer?",
    ),
    "entailment": Kind(
        ("snli_ve",), ("statement", "label"), _take("statement", "label"), ("statement",),
        what="does the statement follow? yes, no or maybe",
    ),
    "two_images": Kind(
        ("nlvr2",), ("statement", "label"), _take("statement", "label"), ("statement",),
        what="is it true of both pictures? yes or no",
    ),
    "classify": Kind(("imagenet",), ("name",), _take("name"), (), _TABLE, what="name the main thing"),
    "decide": Kind(("imagenet",), ("name",), _decide, (), _TABLE, what="is this thing there? yes or no"),
    "rows": Kind(("mblip",), ("context", "label"), _take("context", "label"), languages="row", what="mBLIP's own rows"),
}  # fmt: skip
"""What parts can be."""

FORMAT_OPTIONS = {"columns": ("captions",), "split": ("karpathy",), "annotations": ("vqa",)}
"""Settings of parts that only some formats have."""


def find_kind(part: PartSettings) -> Kind:
    """The part's kind; raises ``SettingsError`` for an unknown one, or settings that it does not have."""
    if part.kind not in KINDS:
        raise SettingsError(
            f"unknown kind '{part.kind}'. Known: {', '.join(KINDS)}.{nearest(part.kind, list(KINDS))}", "kind"
        )
    kind = KINDS[part.kind]
    format_ = part.format or kind.formats[0]
    if format_ not in kind.formats:
        raise SettingsError(
            f"kind '{part.kind}' is made of files in the format {' or '.join(kind.formats)}, got '{format_}'."
            f"{nearest(format_, list(kind.formats))}",
            "format",
        )
    optional = {option for other in KINDS.values() for option in other.options}
    for option in part.model_fields_set:
        if option in optional and option not in kind.options:
            owners = [name for name, other in KINDS.items() if option in other.options]
            raise SettingsError(f"'{option}' is for kind {' or '.join(owners)}, not for '{part.kind}'", option)
        if option in FORMAT_OPTIONS and format_ not in FORMAT_OPTIONS[option]:
            owner = " or ".join(FORMAT_OPTIONS[option])
            raise SettingsError(f"'{option}' is for files in the format {owner}, not for '{format_}'", option)
    return kind


def is_too_long(part: PartSettings, sample: Sample) -> bool:
    """Whether an answer has more full stops than a conversation's may have (mBLIP: 3)."""
    limit = part.max_sentences or 3
    return part.kind == "conversation" and sample.fields["answer"].count(".") > limit
