"""Errors for mistakes a user can make and mend.

Everything in here is a ``SightbridgeError``: the command line prints its message as one line and exits with
status 1 instead of showing a traceback. A message says what is wrong, where (file, row, key), what was expected
and what to do. Broken invariants of our own code are plain ``assert``s, not these.
"""

from __future__ import annotations


class SightbridgeError(ValueError):
    """A mistake in what the user gave: settings, data, images or a model folder."""


class SettingsError(SightbridgeError):
    """A recipe or an override is wrong. ``key`` is the dotted path of the offending setting, if there is one."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class DataError(SightbridgeError):
    """An annotation file, a row of it, or a record made from it is wrong."""


class ImageError(SightbridgeError):
    """A picture is missing, unreadable, truncated or larger than the bounds."""


class CheckpointError(SightbridgeError):
    """A model folder or a file inside it is missing, damaged or of the wrong kind."""


def nearest(name: str, known: list[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string.

    >>> nearest("vicunna_v1", ["plain", "vicuna_v1"])
    " Did you mean 'vicuna_v1'?"
    """
    import difflib

    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""
