"""No language lacks a word, and what is said is grammatical where languages differ."""

import random
import re

import pytest
from scene_words import LANGUAGES, flat

from sightbridge.data.scenes.language import (
    caption,
    colour_word,
    dictionary,
    kind_word,
    language_codes,
    nothing,
    phrase,
    position_word,
    question,
    statement,
)
from sightbridge.data.scenes.world import COLOURS, DIGITS, POSITIONS, SHAPES, Scene, SceneObject

FORMS = ("colour", "shape", "count", "count_colour", "count_all", "position", "existence")
codes = pytest.mark.parametrize("code", LANGUAGES)


def scene_of(*things):
    """A scene of (kind, colour, position) things."""
    return Scene(tuple(SceneObject(*t) for t in things), "digits" if things[0][0].isdigit() else "shapes", 0)


def phrase_of(code, *thing):
    scene = scene_of(thing)
    return phrase(scene, scene.objects[0], code)


def ways_to_ask(scene, code):
    """Every question that this scene is ever asked."""
    types = ("colour", "shape", "count", "position", "existence")
    made = [question(scene, type_, code, random.Random(seed)) for type_ in types for seed in range(60)]
    return {asked.text for asked in made if asked}


@codes
def test_no_language_lacks_a_word(code):
    words, english = LANGUAGES[code], LANGUAGES["en"]
    assert set(words) >= set(english) - {"marked"}  # the phrases of marks are English
    assert set(words["kinds"]) == set(SHAPES) and set(words["colours"]) == set(COLOURS)
    assert len(set(words["positions"])) == POSITIONS
    assert set(words["questions"]) == set(FORMS) and all(len(set(ways)) >= 2 for ways in words["questions"].values())
    assert set(words["thing"]) == {"shapes", "digits"}
    for group in ("asking", "directions"):
        assert set(words[group]) == set(english[group])
    genders = {noun["gender"] for noun in [*words["kinds"].values(), words["digit"]]}
    for gender in genders:
        for colour, shades in words["colours"].items():
            assert shades[gender], (colour, gender)
            assert shades["many"] if isinstance(shades["many"], str) else shades["many"][gender]
        assert gender in words["a"] and gender in words["the"]


@codes
def test_answers_differ_from_each_other(code):
    for answers in (
        [colour_word(colour, code) for colour in COLOURS],
        [kind_word(kind, code) for kind in (*SHAPES, *DIGITS)],
        [position_word(cell, code) for cell in range(POSITIONS)],
        [LANGUAGES[code][word] for word in ("yes", "no", "true", "false")],
    ):
        assert len(set(answers)) == len(answers) and all(answers)


@codes
def test_texts_are_whole(code):
    """No placeholder stays, no gap is left where a language has no word."""
    texts = [nothing(cell, code) for cell in range(POSITIONS)]
    for kind in (*SHAPES, *DIGITS):
        for colour in COLOURS:
            scene = scene_of((kind, colour, 4))
            texts += [caption(scene, code), statement(scene, code, random.Random(1)).text]
            texts += [question(scene, type_, code, random.Random(2)).text for type_ in ("colour", "shape", "count")]
            texts += [question(scene, type_, code, random.Random(3)).text for type_ in ("position", "existence")]
    for text in texts:
        assert not re.search(r"[{}]|  |\s[?.,]|^\s|\s$", text), text
        assert "None" not in text


@pytest.mark.parametrize(
    ("code", "thing", "expected"),
    [
        ("en", ("circle", "red", 0), "a red circle at the top left"),
        ("en", ("star", "orange", 4), "an orange star at the centre"),
        ("en", ("8", "blue", 7), "a blue 8 at the bottom"),
        ("de", ("circle", "red", 0), "ein roter Kreis an der Stelle oben links"),
        ("de", ("square", "green", 8), "ein grünes Quadrat an der Stelle unten rechts"),
        ("de", ("3", "orange", 4), "eine orangefarbene 3 an der Stelle Mitte"),
        ("es", ("circle", "yellow", 3), "un círculo amarillo a la izquierda"),
        ("es", ("star", "yellow", 7), "una estrella amarilla abajo"),
        ("es", ("star", "blue", 4), "una estrella azul en el centro"),
        ("es", ("3", "purple", 2), "un 3 morado arriba a la derecha"),
        ("zh", ("circle", "orange", 0), "左上有一个橙色的圆形"),
        ("zh", ("3", "green", 5), "右边有一个绿色的数字3"),
    ],
)
def test_phrases(code, thing, expected):
    assert phrase_of(code, *thing) == expected


@pytest.mark.parametrize(
    ("code", "thing", "expected"),
    [
        ("en", ("circle", "orange", 0), {"Is there an orange circle?", "How many orange circles do you see?"}),
        ("en", ("star", "red", 0), {"Is there a red star?", "Which shape is red?", "How many shapes are there?"}),
        ("en", ("3", "red", 0), {"How many red 3s are there?", "Which colour does the 3 have?"}),
        ("de", ("circle", "red", 0), {"Wo ist der rote Kreis?", "Ist hier ein roter Kreis?", "Was ist rot?"}),
        ("de", ("square", "blue", 0), {"Welche Farbe hat das Quadrat?", "Ist hier ein blaues Quadrat?"}),
        ("de", ("star", "purple", 0), {"Gibt es hier irgendwo violette Sterne?", "Wo ist der violette Stern?"}),
        ("de", ("3", "red", 0), {"Wo ist die rote 3?", "Wie viele rote 3en gibt es?", "Welche Ziffer ist rot?"}),
        ("es", ("circle", "red", 0), {"¿Cuántos círculos rojos hay?", "¿De qué color es el círculo?"}),
        ("es", ("star", "red", 0), {"¿Cuántas estrellas rojas ves?", "¿Dónde está la estrella roja?"}),
        ("es", ("star", "orange", 0), {"¿Ves una estrella naranja?", "¿Cuántas formas hay?"}),
        ("es", ("3", "green", 0), {"¿Cuántos 3 verdes hay?", "¿Cuál es la cifra de color verde?"}),
        ("zh", ("circle", "red", 0), {"有几个红色的圆形？", "圆形是什么颜色？", "有红色的圆形吗？"}),
        ("zh", ("3", "red", 0), {"数字3的颜色是什么？", "哪个数字是红色的？", "红色的数字3在哪里？"}),
    ],
)  # fmt: skip
def test_questions(code, thing, expected):
    assert expected <= ways_to_ask(scene_of(thing), code)


def test_captions_name_all_objects_in_reading_order():
    scene = scene_of(("star", "red", 1), ("circle", "blue", 8))
    assert caption(scene, "en") == "a red star at the top, a blue circle at the bottom right"
    assert caption(scene, "zh") == "上方有一个红色的星形，右下有一个蓝色的圆形"


def test_the_dictionary_has_every_concept_in_every_language():
    concepts = dictionary()
    assert language_codes()[0] == "en"
    for code, language in LANGUAGES.items():
        own = flat([text for key, text in language.items() if key != "name"])
        assert all(any(word in own for word in words) for words in concepts), code
    by_first = {words[0]: words for words in concepts}
    assert {"red", "rot", "rote", "rojas", "红色"} <= set(by_first["red"])
    assert {"circle", "Kreise", "círculo", "圆形"} <= set(by_first["circle"])
    assert {"left", "links", "izquierda", "左"} <= set(by_first["left"])
