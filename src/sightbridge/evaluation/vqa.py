"""VQA accuracy, equal to the official scorer's (GT-Vision-Lab/VQA, ``vqaEval.py``), which LAVIS and PaddleMIX ship."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

SIGNS = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
DIGITS_AND_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
"""A full stop that no digit follows. "Not behind a digit" was meant as well; the typo is part of official numbers."""
PERIODS = 32
"""So many full stops are taken away: the original passes ``re.UNICODE``, which is 32, where the count belongs."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd've he'd he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
"""What a word becomes that lacks one of its apostrophes. "im" and "ive" are not among them: the original has them with
capitals, and looks for words in lower case."""


def normalise(answer: str) -> str:
    """An answer as it is compared: no signs, small numbers as digits, no articles, contractions with apostrophes.

    >>> normalise("Two dogs, the black-and-white ones!")
    '2 dogs black and white ones'
    """
    words = strip_signs(answer.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    kept = (DIGITS.get(word, word) for word in words)
    return " ".join(_contractions().get(word, word) for word in kept if word not in ARTICLES)


def strip_signs(text: str) -> str:
    """Take signs away: a sign that stands beside a space anywhere, or beside digits and a comma, leaves no gap."""
    without = text
    for sign in SIGNS:
        leaves_none = f"{sign} " in text or f" {sign}" in text or DIGITS_AND_COMMA.search(text)
        without = without.replace(sign, "" if leaves_none else " ")
    return PERIOD.sub("", without, count=PERIODS)


@cache
def _contractions() -> dict[str, str]:
    """By each way to leave out one apostrophe; and one line that the original has the wrong way round."""
    places = ((word, place) for word in CONTRACTED.split() for place, sign in enumerate(word) if sign == "'")
    return {word[:place] + word[place + 1 :]: word for word, place in places} | {"somebody'd": "somebodyd"}


def vqa_accuracy(said: str, truths: Sequence[str], *, compat: bool = True) -> float:
    """How many people gave the answer: 1 if at least three of the others did, averaged over whom is left out (0 to 1).

    ``compat``: treat the true answers as the official scorer does, which takes their signs away only if they differ,
    and leaves articles and number words in them. Without, they are normalised like the answer.
    """
    if not compat:
        return soft_accuracy(normalise(said), [normalise(truth) for truth in truths])
    known = [strip_signs(truth) for truth in truths] if len(set(truths)) > 1 else truths
    return soft_accuracy(normalise(said), known)


def soft_accuracy(said: str, truths: Sequence[str]) -> float:
    """``vqa_accuracy`` of texts as they are. mBLIP has it of cleaned answers and true ones in lower case."""
    hits = sum(truth == said for truth in truths)
    return sum(min(1.0, (hits - (truth == said)) / 3) for truth in truths) / len(truths)
