"""Every answer is right: texts are read back word by word and answered again from the objects of the scene."""

import random
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scene_words import LANGUAGES, colour_in, fitting, kind_in, position_in

from sightbridge.data.scenes.language import QUESTION_TYPES, figure_question, question, questions, statement
from sightbridge.data.scenes.world import NEW_COMBINATIONS, sample_scene
from sightbridge.errors import SettingsError

seeds = st.integers(0, 2**32)
codes = st.sampled_from(list(LANGUAGES))
object_sets = st.sampled_from(["shapes", "digits"])


def right_answer(scene, asked, code):
    """What the text asks for, answered from the objects."""
    words, kind, colour = LANGUAGES[code], kind_in(asked.text, code), colour_in(asked.text, code)
    things = fitting(scene, kind, colour)
    match asked.type:
        case "colour":
            assert (kind is not None, colour, len(things)) == (True, None, 1)
            return words["colours"][things[0].colour]["bare"]
        case "shape":
            assert (kind, colour is not None, len(things)) == (None, True, 1)
            return words["kinds"].get(things[0].kind, {"one": things[0].kind})["one"]
        case "position":
            assert kind is not None and colour is not None and len(things) == 1
            return words["positions"][things[0].position]
        case "existence":
            assert kind is not None and colour is not None
            return words["yes" if things else "no"]
        case "count":
            return str(len(things))
    raise AssertionError(asked.type)


@given(seeds, codes, object_sets, st.sampled_from(QUESTION_TYPES))
def test_every_answer_is_right(seed, code, object_set, kind_of_question):
    rng = random.Random(seed)
    scene = sample_scene(rng, object_set)
    asked = question(scene, kind_of_question, code, rng)
    if asked is None:
        assert kind_of_question in ("colour", "shape", "position")
        by = {"colour": lambda o: o.kind, "shape": lambda o: o.colour, "position": lambda o: o.pair}[kind_of_question]
        assert min(Counter(map(by, scene.objects)).values()) > 1
    else:
        assert asked.type == kind_of_question and asked.language == code
        assert asked.answer == right_answer(scene, asked, code), (asked, scene)


@given(seeds, codes, object_sets)
def test_statements_are_true_or_false_as_they_say(seed, code, object_set):
    rng = random.Random(seed)
    new = NEW_COMBINATIONS[object_set]
    scene = sample_scene(rng, object_set, exclude=new)
    said = statement(scene, code, rng, avoid=new)
    meant = kind_in(said.text, code), colour_in(said.text, code), position_in(said.text, code)
    there = {(o.kind, o.colour, o.position) for o in scene.objects}
    assert said.answer == LANGUAGES[code]["true" if meant in there else "false"], (said, scene)
    assert meant[:2] not in new


@given(seeds, codes, object_sets, st.booleans())
def test_figures_show_what_they_are_said_to(seed, code, object_set, true):
    rng = random.Random(seed)
    new = NEW_COMBINATIONS[object_set]
    scene = sample_scene(rng, object_set, exclude=new)
    asked = figure_question(scene, code, rng, true=true, avoid=new)
    assert asked.text.startswith('Does this figure show "') and asked.text.endswith('"? Please answer yes or no.')
    said = asked.text.split('"')[1]
    meant = kind_in(said, code), colour_in(said, code)
    assert None not in meant and meant not in new
    if any(position in said for position in LANGUAGES[code]["positions"]):
        shown = (*meant, position_in(said, code)) in {(o.kind, o.colour, o.position) for o in scene.objects}
    else:
        shown = bool(fitting(scene, *meant))
    assert (asked.answer == "Yes") == true == shown, (asked, scene)


@given(seeds, codes, object_sets)
def test_nobody_asks_for_a_held_out_pair(seed, code, object_set):
    rng = random.Random(seed)
    new = NEW_COMBINATIONS[object_set]
    scene = sample_scene(rng, object_set, exclude=new)
    assert not {thing.pair for thing in scene.objects} & new
    for asked in questions(scene, code, rng, 8, avoid=new):
        assert (kind_in(asked.text, code), colour_in(asked.text, code)) not in new


@given(seeds, codes, object_sets)
def test_questions_about_held_out_pairs_are_about_nothing_else(seed, code, object_set):
    rng = random.Random(seed)
    new = NEW_COMBINATIONS[object_set]
    scene = sample_scene(rng, object_set, require=new)
    assert {thing.pair for thing in scene.objects} & new
    for asked in questions(scene, code, rng, 4, about=new):
        kind, colour = kind_in(asked.text, code), colour_in(asked.text, code)
        assert asked.answer == right_answer(scene, asked, code)
        if kind and colour:
            assert (kind, colour) in new
        else:
            assert {thing.pair for thing in fitting(scene, kind, colour)} <= new


@given(seeds, codes, object_sets, st.integers(1, 9))
@example(354, "en", "shapes", 1).via("three types in a row that have nothing to ask")
def test_no_text_is_asked_twice(seed, code, object_set, n):
    rng = random.Random(seed)
    asked = questions(sample_scene(rng, object_set), code, rng, n)
    texts = [question.text for question in asked]
    assert 1 <= len(texts) <= n and len(set(texts)) == len(texts)


def test_types_take_turns():
    rng = random.Random(0)
    scene = sample_scene(random.Random(3))
    assert {asked.type for asked in questions(scene, "en", rng, 2, types=("count", "existence"))} == {
        "count",
        "existence",
    }


def test_answers_are_not_lopsided():
    """Both answers of a yes-or-no question are common, and counts above one are not rare."""
    rng = random.Random(1)
    answers = Counter()
    for _ in range(1500):
        scene = sample_scene(rng)
        for asked in (question(scene, "existence", "en", rng), question(scene, "count", "en", rng)):
            answers[asked.type, asked.answer] += 1
        answers["statement", statement(scene, "en", rng).answer] += 1
    assert 0.45 < answers["existence", "yes"] / 1500 < 0.55
    assert 0.45 < answers["statement", "true"] / 1500 < 0.55
    assert sum(answers["count", n] for n in "234") / 1500 > 0.25
    assert min(answers["count", n] for n in "01234") > 20


def test_an_unknown_language_is_told_with_the_known_ones():
    scene = sample_scene(random.Random(0))
    with pytest.raises(SettingsError, match=r"no language 'eng'; known: en, de, es, zh.*Did you mean 'en'"):
        question(scene, "count", "eng", random.Random(0))
