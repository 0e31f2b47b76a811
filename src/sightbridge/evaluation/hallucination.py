"""What a model sees that is not there: CHAIR of its captions, POPE of its answers."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from sightbridge.errors import DataError
from sightbridge.evaluation.bootstrap import Floats, share
from sightbridge.evaluation.tokenize import ptb_tokens

DOUBLE_WORDS = """
motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant, stop sign,
parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog, cell phone,
mobile phone, teddy bear, hair drier, potted plant, bow tie, laptop computer, stove top oven, home plate, train track
"""
"""Two words that are read as one, or the second would be found in them: a hot dog is no dog (CHAIR's release)."""
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
VEHICLES = ("jet", "train")

UNCOUNTABLE = ("equipment", "information", "rice", "money", "species", "series", "fish", "sheep", "sms")
IRREGULAR = {"people": "person", "men": "man", "children": "child", "sexes": "sex", "moves": "move"}
SINGULARS = [
    (re.compile(pattern), singular)
    for pattern, singular in (
        (r"(quiz)zes$", r"\1"),
        (r"(matr)ices$", r"\1ix"),
        (r"(vert|ind)ices$", r"\1ex"),
        (r"^(ox)en", r"\1"),
        (r"(alias|status)es$", r"\1"),
        (r"([octop|vir])i$", r"\1us"),
        (r"(cris|ax|test)es$", r"\1is"),
        (r"(shoe)s$", r"\1"),
        (r"(o)es$", r"\1"),
        (r"(bus)es$", r"\1"),
        (r"([m|l])ice$", r"\1ouse"),
        (r"(x|ch|ss|sh)es$", r"\1"),
        (r"(m)ovies$", r"\1ovie"),
        (r"(s)eries$", r"\1eries"),
        (r"([^aeiouy]|qu)ies$", r"\1y"),
        (r"([lr])ves$", r"\1f"),
        (r"(tive)s$", r"\1"),
        (r"(hive)s$", r"\1"),
        (r"([^f])ves$", r"\1fe"),
        (r"(^analy)ses$", r"\1sis"),
        (r"(analy|ba|diagno|parenthe|progno|synop|the)ses$", r"\1sis"),
        (r"([ti])a$", r"\1um"),
        (r"(n)ews$", r"\1ews"),
        (r"s$", ""),
    )
]
"""The English rules of Bermi Ferrer's inflector, which mBLIP took, slips included: of "bus" they make "bu"."""


def singularise(word: str, *, compat: bool = True) -> str:
    """The singular of a word in lower case. Without ``compat`` words in -ss and -us are left alone, unlike there."""
    if any(word.endswith(known) for known in UNCOUNTABLE):
        return word
    for plural, singular in IRREGULAR.items():
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    if not compat and re.search(r"(ss|us|is|tv)$", word):
        return word
    for pattern, singular in SINGULARS:
        if pattern.search(word):
            return pattern.sub(singular, word)
    return word


def read_objects(path: Path | None = None) -> list[list[str]]:
    """Read a line for each class of objects: its name, and words for it, with commas between.

    CHAIR's published ``synonyms.txt`` has this format. Without a path the package's own list is read: COCO's 80 classes
    with the words that captions have most. Spaces within a line are kept: published numbers depend on them.

    Raises ``DataError`` for a file that cannot be read, is no text, or has a line without a name.
    """
    own = files("sightbridge.evaluation") / "coco_objects.txt"
    try:
        text = path.read_text(encoding="utf-8") if path else own.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot read the names of objects: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the names of objects are no UTF-8 text ({error.reason}).") from error
    lines = [line.strip().split(", ") for line in text.splitlines()]
    for number, words in enumerate(lines, start=1):
        if not all(word.strip() for word in words):
            raise DataError(f"{path}, line {number}: expected a name and words for it with ', ' between.")
    if not lines:
        raise DataError(f"{path}: holds no names of objects.")
    return lines


class ObjectFinder:
    """Finds the classes of objects that a caption speaks of (Rohrbach et al., CHAIR, arXiv 1809.02156).

    ``compat``: exactly as mBLIP's evaluation, where a few words of the published list are never found: "bus", whose
    singular is "bu", "motor bike" behind two spaces, "stove top oven" of three words. Without, they are.
    """

    def __init__(self, objects: Sequence[Sequence[str]], *, compat: bool = True) -> None:
        self.compat = compat
        self.class_of = {self._key(word): words[0].strip() for words in objects for word in words}
        doubles = {word.strip(): word.strip() for word in DOUBLE_WORDS.split(",")}
        doubles |= {f"{age} {animal}": animal for animal in ANIMALS for age in ("baby", "adult")}
        doubles |= {f"passenger {vehicle}": vehicle for vehicle in VEHICLES}
        doubles |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
        if not compat:
            doubles |= {phrase: phrase for phrase in self.class_of if " " in phrase and phrase not in doubles}
        self.doubles = {self._key(double): word for double, word in doubles.items()}

    def find(self, caption: str) -> list[str]:
        """The class of every mention, in order."""
        words = self._join_doubles([self._singular(word) for word in ptb_tokens(caption.lower())])
        if "toilet" in words:
            words = [word for word in words if word != "seat"]
        keys = words if self.compat else map(self._key, words)
        return [self.class_of[key] for key in keys if key in self.class_of]

    def _join_doubles(self, words: list[str]) -> list[str]:
        joined, place = [], 0
        while place < len(words):
            lengths = (2,) if self.compat else (3, 2)
            phrases = (" ".join(words[place : place + length]) for length in lengths if place + length <= len(words))
            found = next((phrase for phrase in phrases if phrase in self.doubles), None)
            joined.append(self.doubles[found] if found else words[place])
            place += len(found.split()) if found else 1
        return joined

    def _singular(self, word: str) -> str:
        return singularise(word, compat=self.compat)

    def _key(self, word: str) -> str:
        return word if self.compat else " ".join(map(self._singular, word.lower().split()))


@dataclass(frozen=True)
class Chair:
    """CHAIR-s: the share of captions with an object that is not there; CHAIR-i: the share of such mentions of all."""

    chair_s: float
    chair_i: float


def chair(captions: Sequence[str], objects: Sequence[Collection[str]], finder: ObjectFinder) -> Chair:
    """Measure captions by the classes of objects that each picture has; what captions do not mention does not count."""
    found = chair_of_counts(chair_counts(captions, objects, finder).sum(axis=0))
    return Chair(float(found["s"]), float(found["i"]))


def chair_counts(captions: Sequence[str], objects: Sequence[Collection[str]], finder: ObjectFinder) -> Floats:
    """What CHAIR sums over captions, (captions, 4): whether one mentions what is not there, such mentions, all, 1."""
    assert captions and len(captions) == len(objects), "a set of objects for every caption"
    rows = []
    for caption, there in zip(captions, objects, strict=True):
        mentioned = finder.find(caption)
        wrong = sum(name not in there for name in mentioned)
        rows.append((wrong > 0, wrong, len(mentioned), 1))
    return np.array(rows, dtype=np.float64)


def chair_of_counts(sums: Floats) -> dict[str, Floats]:
    """``s`` and ``i`` of sums (..., 4) of ``chair_counts``; without mentions ``i`` is 0."""
    captions_wrong, wrong, mentions, captions = np.moveaxis(sums, -1, 0)
    return {"s": captions_wrong / captions, "i": share(wrong, mentions)}


def yes_or_no(answer: str, *, compat: bool = True) -> str:
    """What an answer to a yes-no question says.

    ``compat``: as POPE (AoiDragon/POPE, ``evaluate.py``): "no" if one of "No", "no", "not" is a word of the first
    sentence, else "yes", whatever it says. Without, words count in any case, "isn't" too, and an answer that says
    neither is "".
    """
    if compat:
        words = answer.partition(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "no", "not"} & set(words) else "yes"
    words = re.findall(r"[\w'’]+", answer.partition(".")[0].casefold())
    if any(word in ("no", "not", "none") or re.search(r"n['’]t$", word) for word in words):
        return "no"
    return "yes" if "yes" in words else ""


def pope(said: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """POPE's five numbers (Li et al., arXiv 2305.10355) of answers "yes" and "no", "yes" being what is looked for.

    Args:
        said: of ``yes_or_no``; anything else is a wrong answer, and no "yes".
        truths: "yes" or "no".

    Returns:
        ``accuracy``, ``precision``, ``recall``, ``f1`` and ``yes_ratio``, the share of answers that say yes. Precision,
        recall and F1 are 0 where nothing was found.
    """
    return {name: float(value) for name, value in pope_of_counts(pope_counts(said, truths).sum(axis=0)).items()}


def pope_counts(said: Sequence[str], truths: Sequence[str]) -> Floats:
    """What POPE sums over answers, (answers, 5): whether one is right, finds what is there, says yes, should, 1."""
    assert said and len(said) == len(truths) and set(truths) <= {"yes", "no"}, "an answer for every yes and no"
    rows = [
        (one == true, one == true == "yes", one == "yes", true == "yes", 1)
        for one, true in zip(said, truths, strict=True)
    ]
    return np.array(rows, dtype=np.float64)


def pope_of_counts(sums: Floats) -> dict[str, Floats]:
    """The five numbers of sums (..., 5) of ``pope_counts``."""
    right, hits, answered_yes, is_yes, count = np.moveaxis(sums, -1, 0)
    precision, recall = share(hits, answered_yes), share(hits, is_yes)
    return {
        "accuracy": right / count,
        "precision": precision,
        "recall": recall,
        "f1": share(2 * precision * recall, precision + recall),
        "yes_ratio": answered_yes / count,
    }
