"""The 96 languages that mBLIP learns: their names in prompts, their codes in NLLB, their shares of the training data.

The table itself is data (``languages.tsv``), and says where it is from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from sightbridge.errors import SettingsError, nearest


@dataclass(frozen=True)
class Language:
    """One language. ``share`` is in percent of mC4; ``aliases`` are other codes for it (``he`` for ``iw``)."""

    code: str
    name: str
    nllb: str
    share: float
    aliases: tuple[str, ...] = ()


def _read_table() -> Iterator[Language]:
    for line in (files("sightbridge.text") / "languages.tsv").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            code, name, nllb, share, *aliases = line.split("\t")
            yield Language(code, name, nllb, float(share), tuple(aliases[0].split(",")) if aliases else ())


ALL_LANGUAGES: dict[str, Language] = {language.code: language for language in _read_table()}
"""Every language known, by its code in mC4: those of ``LANGUAGES`` and two that are only evaluated on."""
LANGUAGES: dict[str, Language] = {code: language for code, language in ALL_LANGUAGES.items() if language.share > 0}
"""The 96 languages of the training mixture; their shares add up to 100."""

TASK_NAMES: dict[str, dict[str, str]] = {
    # Of CrossModal-3600: mBLIP's published scores were made with exactly these prompts, misspellings included.
    "xm3600": {"fa": "Farsi", "bn": "Bengali", "uk": "Ukranian", "pt": "Portugese"},
    # What mBLIP's released weights were trained on.
    "mblip": {"iw": "former Hebrew"},
}
"""Tasks whose prompts call some languages differently."""


def find_language(name: str) -> Language:
    """Return the language that ``name`` stands for: its code, an alias, its NLLB code or its name, in any case.

    >>> find_language("he").code, find_language("deu_Latn").name, find_language("Bangla").code
    ('iw', 'German', 'bn')

    Raises ``SettingsError`` with the nearest known name for any other.
    """
    wanted = name.strip().casefold().replace("_", "-")
    spellings = {
        spelling.casefold().replace("_", "-"): language
        for language in ALL_LANGUAGES.values()
        for spelling in (language.name, language.nllb, *language.aliases, language.code)
    }
    if wanted in spellings:
        return spellings[wanted]
    hint = nearest(wanted, list(spellings))
    if hint:
        close = spellings[hint.split("'")[1]]
        hint = f" Did you mean '{close.code}' ({close.name})?"
    raise SettingsError(f"unknown language '{name}'; known are the codes of mC4: {', '.join(ALL_LANGUAGES)}.{hint}")


def language_name(code: str, names: dict[str, str] | None = None) -> str:
    """Name of a language in prompts. ``names`` overrides some of them, by code (see ``TASK_NAMES``).

    >>> language_name("uk"), language_name("uk", TASK_NAMES["xm3600"])
    ('Ukrainian', 'Ukranian')
    """
    language = find_language(code)
    return (names or {}).get(language.code, language.name)
