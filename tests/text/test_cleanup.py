"""The text clean-ups equal LAVIS' processors, and touch only the turns they are meant for."""

import json
from pathlib import Path

import pytest

from sightbridge.text.cleanup import CLEANUPS, clean_turns
from sightbridge.text.turns import Turn

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lavis" / "text_procs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["caption", "question"])
def test_parity_with_lavis_text_processors(kind):
    clean = CLEANUPS[f"blip_{kind}"].clean
    different = sum(clean(text) != expected for text, expected in GOLDEN[kind])
    print(f"parity blip_{kind}: {different} of {len(GOLDEN[kind])} texts differ")
    assert GOLDEN[kind] and different == 0


def test_parity_with_lavis_prompted_captions():
    """LAVIS puts the prompt in front of the cleaned caption; here a template does."""
    clean = CLEANUPS["blip_caption"].clean
    assert all("a photo of " + clean(text) == expected for text, expected in GOLDEN["caption_prompt"])


def test_questions_are_cleaned_and_answers_are_left():
    turns = (Turn("user", "<image>\nWhat's the Man (left) doing?  "), Turn("assistant", "Surfing."))
    assert clean_turns(turns, "blip_question") == (Turn("user", "<image>\nwhat's the man left doing?"), turns[1])


def test_captions_are_cleaned_and_prompts_are_left():
    turns = (
        Turn("user", "<image> Describe."),
        Turn("assistant", "A Dog."),
        Turn("user", "And?"),
        Turn("assistant", None),
    )
    assert clean_turns(turns, "blip_caption") == (turns[0], Turn("assistant", "a dog"), *turns[2:])


def test_markers_count_as_no_words():
    words = " ".join(f"w{n}" for n in range(60))
    (turn,) = clean_turns([Turn("user", f"<image> {words}\n<image>")], "blip_question")
    assert turn.text == "<image> " + " ".join(f"w{n}" for n in range(50)) + "\n<image>"
