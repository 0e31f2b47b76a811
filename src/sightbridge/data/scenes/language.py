"""Speaking about scenes: captions, questions with answers, statements, in several languages.

The words are data (``languages.yaml``); this file only chooses what to say.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from sightbridge.data.scenes.world import COLOURS, POSITIONS, Pair, Scene, SceneObject, all_pairs, kinds_of
from sightbridge.errors import SettingsError, nearest

QUESTION_TYPES = ("colour", "shape", "count", "position", "existence")
MARKED_TYPES = ("object", "colour", "shape")
"""Of questions about a marked thing."""
FIGURE = 'Does this figure show "{}"? Please answer yes or no.'
"""What VQAScore asks of CLIP-FlanT5 (linzhiqiu/t2v_metrics)."""


@dataclass(frozen=True)
class Question:
    """A question with its one right answer. ``pair`` is the kind and colour it is about, where there is one object."""

    type: str
    text: str
    answer: str
    language: str
    pair: Pair | None = None


@cache
def _languages() -> dict[str, Any]:
    return yaml.safe_load((files("sightbridge.data.scenes") / "languages.yaml").read_text("utf-8"))


def language_codes() -> list[str]:
    """Codes of the languages that scenes can be described in."""
    return list(_languages())


def language_name(code: str) -> str:
    """English name of a language."""
    return _words(code)["name"]


def _words(code: str) -> dict[str, Any]:
    if code not in _languages():
        known = language_codes()
        raise SettingsError(f"scenes know no language '{code}'; known: {', '.join(known)}.{nearest(code, known)}")
    return _languages()[code]


def colour_word(colour: str, code: str) -> str:
    """The colour as an answer."""
    return _words(code)["colours"][colour]["bare"]


def kind_word(kind: str, code: str) -> str:
    """The kind of object as an answer; a digit answers as its numeral in every language."""
    return _words(code)["kinds"].get(kind, {"one": kind})["one"]


def position_word(position: int, code: str) -> str:
    """The cell as an answer."""
    return _words(code)["positions"][position]


def direction_word(direction: str, code: str) -> str:
    """A word that positions are put together from: ``left``, ``right``, ``top``, ``bottom`` or ``middle``."""
    return _words(code)["directions"][direction]


def dictionary() -> list[list[str]]:
    """Words that mean the same: for each concept (a colour, a kind, a direction, ...) its words in all languages.

    The first word of each is one of the first language.
    """
    concepts: dict[str, list[str]] = {}
    for words in _languages().values():
        for colour, shades in words["colours"].items():
            for form, word in shades.items():
                if form != "a":
                    concepts.setdefault(colour, []).extend(word.values() if isinstance(word, dict) else [word])
        for noun_of, noun in [*words["kinds"].items(), *words["thing"].items()]:
            concepts.setdefault(noun_of, []).extend([noun["one"], noun["many"]])
        for group in ("asking", "directions"):
            for concept, word in words[group].items():
                concepts.setdefault(f"{group} {concept}", []).append(word)
        for answer in ("yes", "no", "true", "false"):
            concepts.setdefault(answer, []).append(words[answer])
    return [list(dict.fromkeys(forms)) for forms in concepts.values()]


def _noun(words: dict[str, Any], kind: str) -> dict[str, str]:
    if kind in words["kinds"]:
        return words["kinds"][kind]
    return {key: value.format(digit=kind) for key, value in words["digit"].items()}


def _forms(words: dict[str, Any], scene: Scene, kind: str | None, colour: str | None) -> dict[str, str]:
    """All placeholders of ``languages.yaml`` that agree with this kind and colour."""
    thing = words["thing"][scene.object_set]
    noun = _noun(words, kind) if kind else {**thing, "gender": thing.get("gender", "n")}
    gender = noun["gender"]
    forms = {
        "kind": noun["one"],
        "kinds": noun["many"],
        "thing": thing["one"],
        "things": thing["many"],
        "a": words["a"].get(gender, ""),
        "the": words["the"].get(gender, ""),
        "how_many": words.get("how_many", {}).get(gender, ""),
    }
    if colour:
        shades = words["colours"][colour]
        many = shades["many"]
        forms |= {
            "a": shades.get("a", forms["a"]),
            "bare": shades["bare"],
            "colour": shades.get(gender, shades["bare"]),
            "weak": shades.get("weak", shades["bare"]),
            "colours": many[gender] if isinstance(many, dict) else many,
        }
    return forms


def phrase(scene: Scene, thing: SceneObject, code: str) -> str:
    """An object with its colour and place: ``a red circle at the top left``."""
    words = _words(code)
    forms = _forms(words, scene, thing.kind, thing.colour)
    return words["phrase"].format(**forms, position=position_word(thing.position, code))


def nothing(position: int, code: str) -> str:
    """What one says of an empty cell."""
    return _words(code)["nothing"].format(position=position_word(position, code))


def caption(scene: Scene, code: str) -> str:
    """All objects in reading order."""
    return join_phrases([phrase(scene, thing, code) for thing in scene.objects], code)


def join_phrases(phrases: list[str], code: str) -> str:
    """A list as the language writes it: with commas of its own."""
    return _words(code)["joiner"].join(phrases)


def caption_prompt(rng: random.Random, code: str) -> str:
    """A request for a caption."""
    return rng.choice(_words(code)["caption_prompt"])


def statement(scene: Scene, code: str, rng: random.Random, *, avoid: frozenset[Pair] = frozenset()) -> Question:
    """A statement that is true or false with equal chance. ``avoid``: pairs that no false one speaks of."""
    words = _words(code)
    thing = rng.choice(scene.objects)
    true = rng.random() < 0.5
    said = thing if true else _slightly_wrong(scene, thing, avoid, rng)
    forms = _forms(words, scene, said.kind, said.colour)
    text = words["statement"].format(**forms, position=position_word(said.position, code))
    return Question("statement", text, words["true" if true else "false"], code, thing.pair)


def figure_question(
    scene: Scene, code: str, rng: random.Random, *, true: bool, avoid: frozenset[Pair] = frozenset()
) -> Question:
    """VQAScore's question (arXiv 2404.01291) whether an object is on the picture, half the time with its place.

    Only what is asked about is in the scene's language, as with VQAScore. ``avoid``: as for ``statement``.
    """
    thing, with_place = rng.choice(scene.objects), rng.random() < 0.5
    if with_place:
        text = phrase(scene, thing if true else _slightly_wrong(scene, thing, avoid, rng), code)
    else:
        kind, colour = thing.pair if true else _absent(scene, thing, avoid, rng)
        text = _words(code)["object"].format(**_forms(_words(code), scene, kind, colour))
    return Question("figure", FIGURE.format(text), "Yes" if true else "No", code, thing.pair)


def _slightly_wrong(scene: Scene, thing: SceneObject, avoid: frozenset[Pair], rng: random.Random) -> SceneObject:
    """The object with one property changed, so that no object of the scene fits."""
    there = {(o.kind, o.colour, o.position) for o in scene.objects}
    while True:
        kind, colour, position = thing.kind, thing.colour, thing.position
        match rng.randrange(3):
            case 0:
                kind = rng.choice(kinds_of(scene.object_set))
            case 1:
                colour = rng.choice(COLOURS)
            case _:
                position = rng.randrange(POSITIONS)
        if (kind, colour, position) not in there and (kind, colour) not in avoid:
            return SceneObject(kind, colour, position)


def question(
    scene: Scene,
    type_: str,
    code: str,
    rng: random.Random,
    *,
    about: frozenset[Pair] = frozenset(),
    avoid: frozenset[Pair] = frozenset(),
) -> Question | None:
    """A question of this type with exactly one right answer, or ``None`` if the scene allows none.

    ``about``: if given, the question is about an object of one of these pairs (or asks in vain for one of them).
    ``avoid``: pairs that no question asks for in vain.
    """
    words = _words(code)
    things = [o for o in scene.objects if not about or o.pair in about]
    match type_:
        case "colour":
            things = [o for o in things if scene.count(kind=o.kind) == 1]
        case "shape":
            things = [o for o in things if scene.count(colour=o.colour) == 1]
        case "position":
            things = [o for o in things if scene.count(o.kind, o.colour) == 1]
    if not things:
        return None
    thing = rng.choice(things)
    kind, colour, form, answer = thing.kind, thing.colour, type_, ""
    match type_:
        case "colour":
            answer = colour_word(colour, code)
        case "shape":
            answer = kind_word(kind, code)
        case "position":
            answer = position_word(thing.position, code)
        case "existence":
            if rng.random() < 0.5:
                kind, colour = _absent(scene, thing, avoid, rng, about)
            answer = words["yes" if scene.count(kind, colour) else "no"]
        case "count":
            form = rng.choice(["count", "count_colour", "count_all"] if not about else ["count_colour"])
            if not about and form != "count_all" and rng.random() < 0.25:
                kind, colour = _absent(scene, thing, avoid, rng)
            wanted_kind = None if form == "count_all" else kind
            wanted_colour = colour if form == "count_colour" else None
            answer = str(scene.count(wanted_kind, wanted_colour))
            kind = wanted_kind
    text = rng.choice(words["questions"][form]).format(**_forms(words, scene, kind, colour))
    return Question(type_, text, answer, code, thing.pair)


def marked_question(scene: Scene, thing: SceneObject, type_: str, code: str) -> Question:
    """A question about a thing that a mark points at: ``<bbox>`` in it stands for the mark's phrase."""
    words = _words(code)
    asked = words["marked"][type_]
    forms = _forms(words, scene, thing.kind, thing.colour)
    return Question(type_, asked["question"].format(**forms), asked["answer"].format(**forms), code, thing.pair)


def _absent(
    scene: Scene,
    thing: SceneObject,
    avoid: frozenset[Pair],
    rng: random.Random,
    about: frozenset[Pair] = frozenset(),
) -> Pair:
    """A pair that the scene does not show, of ``about`` if given, sharing kind or colour with ``thing`` if possible.

    If the scene shows all of ``about``, it is that of ``thing`` after all.
    """
    excluded = {o.pair for o in scene.objects} | avoid
    absent = [pair for pair in all_pairs(scene.object_set) if pair not in excluded and (not about or pair in about)]
    near = [pair for pair in absent if pair[0] == thing.kind or pair[1] == thing.colour]
    return rng.choice(near or absent or [thing.pair])


def questions(
    scene: Scene,
    code: str,
    rng: random.Random,
    n: int,
    *,
    types: tuple[str, ...] = QUESTION_TYPES,
    about: frozenset[Pair] = frozenset(),
    avoid: frozenset[Pair] = frozenset(),
) -> list[Question]:
    """Up to ``n`` different questions, their types in turn from a random start, no text twice."""
    asked: dict[str, Question] = {}
    order = list(types)
    rng.shuffle(order)
    for attempt in range(max(3 * n, len(order))):  # some types may ask nothing about this scene
        made = question(scene, order[attempt % len(order)], code, rng, about=about, avoid=avoid)
        if made is not None:
            asked.setdefault(made.text, made)
        if len(asked) == n:
            break
    return list(asked.values())
