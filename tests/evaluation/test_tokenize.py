"""Captions become the tokens that the COCO toolkit's Java makes of them; languages without spaces are parted."""

from __future__ import annotations

import json
import random
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from sightbridge.errors import SettingsError
from sightbridge.evaluation import tokenize
from sightbridge.evaluation.tokenize import PUNCTUATION, caption_tokens, ptb_tokens, segment, segmenter_version

GOLDEN = Path(__file__).parents[1] / "golden" / "ptb" / "tokens.json"
"""Texts, and what CoreNLP 3.4.1's PTBTokenizer makes of each with ``-preserveLines -lowerCase``."""

SUBJECTS = ["A man", "Two dogs", "The boy's sister", "Mr. Lee", "An old-fashioned T.V.", "Someone", "Children's toys"]
VERBS = ["isn't", "cannot be", "sits (alone)", "are jumping,", 'wearing a "Stop!" t-shirt', "who's", "holds 2-3 cups;"]
PLACES = [
    "on Main St.",
    "at 5:30 p.m.",
    "in the U.S.",
    "near a 10% off sign",
    "by the café…",
    "-- outside",
    "for $5.00",
]


def counted(tokens: list[str]) -> list[str]:
    return " ".join(token for token in tokens if token not in PUNCTUATION).split()


def test_parity_with_recorded_tokens() -> None:
    rows = json.loads(GOLDEN.read_text(encoding="utf-8"))
    wrong = [text for text, tokens in rows if counted(ptb_tokens(text)) != counted(tokens)]
    print(f"parity PTB tokens: {len(wrong)} of {len(rows)} texts differ")
    assert not wrong and len(rows) > 200


WORDS = sorted({word for text, _ in json.loads(GOLDEN.read_text(encoding="utf-8")) for word in text.split()})
JOINED = st.lists(st.sampled_from(WORDS) | st.sampled_from([" ", " ", ", ", ",", ".", ". ", " . ", "\n"]), max_size=12)


@given(JOINED.map(" ".join) | JOINED.map("".join))
def test_the_short_way_through_plain_words_is_that_of_all_rules(text: str) -> None:
    short = ptb_tokens(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize, "PLAIN", regex.compile(r"(?!)"))
        patch.setattr(tokenize, "_rules_of", lambda first: tokenize._rules())
        assert short == ptb_tokens(text)


@pytest.mark.skipif(shutil.which("java") is None, reason="the toolkit's tokeniser needs Java")
def test_parity_with_the_toolkit() -> None:
    toolkit = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    rng = random.Random(0)
    captions = [" ".join(rng.choice(part) for part in (SUBJECTS, VERBS, PLACES)) + " " for _ in range(100)]
    theirs = toolkit.tokenize({number: [{"caption": text}] for number, text in enumerate(captions)})
    wrong = [text for number, text in enumerate(captions) if caption_tokens(text).split() != theirs[number][0].split()]
    print(f"parity captions with pycocoevalcap: {len(wrong)} of {len(captions)} differ")
    assert not wrong


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's a dog, don't you see?", "it 's a dog do n't you see"),
        ("l'homme (a/b) c-d ¿20°C?", "l'homme -lrb- a/b -rrb- c-d ¿ 20 ° c"),
        ("“curly” … -- quotes", "curly quotes"),
        ("two\nlines", "two lines"),
        ("", ""),
    ],
)
def test_vectors(text: str, tokens: str) -> None:
    assert caption_tokens(text) == tokens


@given(st.text())
def test_any_text_is_tokenised_and_what_is_tokenised_stays_in_lower_case(text: str) -> None:
    tokens = ptb_tokens(text)
    assert all(token and " " not in token for token in tokens)
    assert caption_tokens(text) == caption_tokens(f" {text}  ") or "." in text  # a dot at an end is another's


def test_languages_without_spaces_are_parted() -> None:
    assert caption_tokens("一只狗，坐着。", "zh") == "一 只 狗 ， 坐 着 。"
    assert segmenter_version("zh") == "characters" and segmenter_version("de") is None
    assert segment("eine Katze", "de") == "eine Katze"


@pytest.mark.parametrize(
    ("language", "package", "text", "parts"),
    [
        ("ja", "sudachipy", "犬がテーブルの上にいる。", "犬 が テーブル の 上 に いる 。"),
        ("th", "pythainlp", "สุนัขนั่งอยู่บนโต๊ะ", "สุนัข นั่ง อยู่ บน โต๊ะ"),
    ],
)
def test_words_of_japanese_and_thai(language: str, package: str, text: str, parts: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    assert caption_tokens(text, language) == parts
    assert str(segmenter_version(language)).startswith(f"{package} ")


@pytest.mark.parametrize(("language", "package"), [("ja", "sudachipy"), ("th", "pythainlp.tokenize")])
def test_a_missing_package_is_told(language: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightbridge.evaluation import tokenize

    monkeypatch.setitem(sys.modules, package, None)
    for make in (tokenize._japanese, tokenize._thai):
        make.cache_clear()
    with pytest.raises(SettingsError, match=r"which is not installed: pip install .*sightbridge\[languages\]"):
        caption_tokens("犬", language)
    with pytest.raises(SettingsError, match="not installed"):
        segmenter_version(language)
