"""The table of languages."""

from __future__ import annotations

import re

import pytest

from sightbridge.errors import SettingsError
from sightbridge.text.languages import ALL_LANGUAGES, LANGUAGES, TASK_NAMES, find_language, language_name


def test_there_are_96_languages_whose_shares_add_up() -> None:
    assert len(LANGUAGES) == 96
    assert sum(language.share for language in LANGUAGES.values()) == pytest.approx(100, abs=0.01)
    assert list(ALL_LANGUAGES)[96:] == ["hr", "quz"]
    assert max(LANGUAGES.values(), key=lambda language: language.share).code == "en"
    assert LANGUAGES["ru"].share == 11.3089 and LANGUAGES["yo"].share == 0.000966731


def test_codes_are_unique_and_well_formed() -> None:
    everything = list(ALL_LANGUAGES.values())
    assert len({language.name for language in everything}) == len({language.nllb for language in everything}) == 98
    assert all(re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", language.nllb) for language in everything)
    codes = [code for language in everything for code in (language.code, *language.aliases)]
    assert len(codes) == len(set(codes))
    assert (LANGUAGES["zh"].nllb, LANGUAGES["ku"].nllb, LANGUAGES["no"].nllb) == ("zho_Hant", "ckb_Arab", "nob_Latn")


@pytest.mark.parametrize(
    ("given", "code"),
    [("iw", "iw"), ("he", "iw"), ("tl", "fil"), ("nb", "no"), ("DE", "de"), ("german", "de"), ("zh_TW", "zh"),
     ("quy_latn", "quz"), (" sw ", "sw"), ("Hebrew", "iw")],
)  # fmt: skip
def test_languages_are_found_under_every_name(given: str, code: str) -> None:
    assert find_language(given).code == code


def test_an_unknown_language_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"unknown language 'Germna'; .*Did you mean 'de' \(German\)\?$"):
        find_language("Germna")
    with pytest.raises(SettingsError, match="unknown language 'xx'"):
        find_language("xx")


def test_tasks_may_call_languages_differently() -> None:
    assert language_name("he") == "Hebrew"
    assert language_name("iw", TASK_NAMES["mblip"]) == "former Hebrew"
    assert language_name("pt", TASK_NAMES["xm3600"]) == "Portugese" and language_name("pt") == "Portuguese"
    assert all(code in ALL_LANGUAGES for names in TASK_NAMES.values() for code in names)
