"""Which row is in which language: exact shares, at random places, the same for the same seed."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from random import Random

from sightbridge.data.mix.settings import Languages
from sightbridge.errors import SettingsError
from sightbridge.text.languages import LANGUAGES, find_language


def resolve_languages(given: Languages) -> dict[str, float] | None:
    """Shares by code, in percent or any other unit; ``None`` if every row's language is its own.

    Raises ``SettingsError`` for a language that is unknown, given twice or without a share.
    """
    if given == "row":
        return None
    if given == "registry":
        return {code: language.share for code, language in LANGUAGES.items()}
    shares = given if isinstance(given, dict) else dict.fromkeys([given] if isinstance(given, str) else given, 1.0)
    if not shares:
        raise SettingsError("'languages' names no language", "languages")
    resolved: dict[str, float] = {}
    for name, share in shares.items():
        code = find_language(name).code
        if code in resolved:
            raise SettingsError(f"the language '{code}' is given twice, once as '{name}'", "languages")
        if share <= 0:
            raise SettingsError(
                f"the share of '{name}' is {share:g}; leave out a language that is not wanted", "languages"
            )
        resolved[code] = share
    return resolved


def share_out(total: int, shares: Mapping[str, float], min_rows: int = 0) -> dict[str, int]:
    """Divide ``total`` rows as near to the shares as whole rows allow (largest remainders), then see to ``min_rows``.

    mBLIP takes ``int(total * share)`` rows of each language and leaves the rest out.

    >>> share_out(10, {"en": 60, "de": 38, "sw": 2}), share_out(10, {"en": 60, "de": 38, "sw": 2}, min_rows=1)
    ({'en': 6, 'de': 4, 'sw': 0}, {'en': 5, 'de': 4, 'sw': 1})
    """
    if total < min_rows * len(shares):
        raise SettingsError(
            f"{total:,} rows cannot give each of {len(shares)} languages {min_rows}; lower min_rows or name fewer "
            "languages",
            "min_rows",
        )
    whole = sum(shares.values())
    exact = {code: total * share / whole for code, share in shares.items()}
    rows = {code: int(value) for code, value in exact.items()}
    by_remainder = sorted(exact, key=lambda code: rows[code] - exact[code])  # stable: ties go to the first
    for code in by_remainder[: total - sum(rows.values())]:
        rows[code] += 1
    for code in rows:
        while rows[code] < min_rows:
            rows[max(rows, key=lambda other: rows[other])] -= 1
            rows[code] += 1
    return rows


def assign(rows: Mapping[str, int], rng: Random) -> array[int]:
    """The language of each row, as its place in ``rows``, shuffled."""
    places = array("H")
    for place, count in enumerate(rows.values()):
        places.extend([place] * count)
    rng.shuffle(places)
    return places
