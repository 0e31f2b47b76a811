"""CHAIR and POPE: their rules, their quirks, and what holds for any answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightbridge.errors import DataError
from sightbridge.evaluation.hallucination import ObjectFinder, chair, pope, read_objects, singularise, yes_or_no

PUBLISHED = """person, man, woman, people
motorcycle, scooter,  motor bike, motor cycle
bus, minibus
train, locomotive
bear, panda
dog, puppy
cat, kitten
tie, bow, bow tie
toilet
wine glass
hot dog
oven, stove, stove top oven
chair, seat
sports ball, ball
skis, ski
"""
"""In the format of CHAIR's ``synonyms.txt``, with its two spaces in front of "motor bike"."""


@pytest.fixture
def objects(tmp_path: Path) -> list[list[str]]:
    (tmp_path / "synonyms.txt").write_text(PUBLISHED)
    return read_objects(tmp_path / "synonyms.txt")


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Two men and a Puppy.", ["person", "dog"]),
        ("People with puppies, hot dogs and a wine glass", ["person", "dog", "hot dog", "wine glass"]),
        ("a baby bear beside a passenger train", ["bear", "train"]),
        ("a teddy bear", []),
        ("a man in a bow tie on a toilet seat", ["person", "tie", "toilet"]),
        ("the toilet with its seat up", ["toilet"]),
        ("a seat", ["chair"]),
        ("wine glasses", ["wine glass"]),
        ("buses", ["bus"]),
    ],
)
def test_what_captions_speak_of(caption: str, found: list[str], objects: list[list[str]]) -> None:
    assert ObjectFinder(objects).find(caption) == found
    assert ObjectFinder(objects, compat=False).find(caption) == found


@pytest.mark.parametrize(
    ("caption", "found"), [("a bus", ["bus"]), ("a motor bike", ["motorcycle"]), ("a stove top oven", ["oven"])]
)
def test_words_that_the_original_never_finds(caption: str, found: list[str], objects: list[list[str]]) -> None:
    assert ObjectFinder(objects, compat=False).find(caption) == found
    assert ObjectFinder(objects).find(caption) != found


def test_chair_counts_captions_and_mentions(objects: list[list[str]]) -> None:
    captions = ["a dog and a dog and a cat", "a man", "nothing at all", "a puppy"]
    there = [{"dog"}, {"person"}, set(), {"cat"}]
    measured = chair(captions, there, ObjectFinder(objects))
    assert (measured.chair_s, measured.chair_i) == (2 / 4, 2 / 5)
    assert chair(["nothing"], [set()], ObjectFinder(objects)).chair_i == 0


def test_singulars() -> None:
    words = {"bus": "bu", "minibus": "minibu", "buses": "bus", "glasses": "glass", "glass": "glas", "knives": "knife"}
    words |= {"men": "man", "women": "woman", "children": "child", "sheep": "sheep", "mice": "mouse", "oxen": "ox"}
    words |= {"puppies": "puppy", "benches": "bench", "skis": "ski", "potatoes": "potato", "tennis": "tenni"}
    assert {word: singularise(word) for word in words} == words
    assert [singularise(word, compat=False) for word in ("bus", "glass", "buses", "dogs")] == [
        "bus",
        "glass",
        "bus",
        "dog",
    ]


def test_the_own_list_has_cocos_classes() -> None:
    objects = read_objects()
    finder = ObjectFinder(objects, compat=False)
    assert len(objects) == 80
    for names in objects:
        for word in names:
            assert finder.find(f"a {word}") == [names[0]], word


def test_files_that_are_no_lists_of_objects(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: cannot read the names of objects"):
        read_objects(tmp_path / "none.txt")
    (tmp_path / "gaps.txt").write_text("dog, puppy\n\ncat\n")
    with pytest.raises(DataError, match=r"gaps\.txt, line 2: expected a name"):
        read_objects(tmp_path / "gaps.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"no UTF-8 text"):
        read_objects(tmp_path / "binary.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no names"):
        read_objects(tmp_path / "empty.txt")


@pytest.mark.parametrize(
    ("answer", "compat", "corrected"),
    [
        ("Yes, there is.", "yes", "yes"),
        ("No, there is not.", "no", "no"),
        ("There is no dog. Yes.", "no", "no"),
        ("Yes. No dog, though.", "yes", "yes"),
        ("NO", "yes", "no"),
        ("There isn't a dog", "yes", "no"),
        ("no!", "yes", "no"),
        ("A dog", "yes", ""),
        ("", "yes", ""),
    ],
)
def test_yes_or_no(answer: str, compat: str, corrected: str) -> None:
    assert (yes_or_no(answer), yes_or_no(answer, compat=False)) == (compat, corrected)


def test_pope_of_answers() -> None:
    truths = ["yes"] * 4 + ["no"] * 4
    measured = pope(["yes", "yes", "yes", "no", "yes", "no", "no", "no"], truths)
    assert measured == {"accuracy": 0.75, "precision": 0.75, "recall": 0.75, "f1": 0.75, "yes_ratio": 0.5}
    assert pope(["yes"] * 8, truths)["yes_ratio"] == 1, "of the answers, not of the truth"
    assert pope(["no"] * 8, truths) == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}


@given(
    st.lists(st.tuples(st.sampled_from(["yes", "no", ""]), st.sampled_from(["yes", "no"])), min_size=1), st.randoms()
)
def test_pope_is_bounded_and_order_does_not_matter(pairs, rng) -> None:
    measured = pope(*map(list, zip(*pairs, strict=True)))
    assert all(0 <= value <= 1 for value in measured.values())
    assert measured["f1"] <= max(measured["precision"], measured["recall"]) + 1e-12
    shuffled = rng.sample(pairs, len(pairs))
    assert pope(*map(list, zip(*shuffled, strict=True))) == measured
