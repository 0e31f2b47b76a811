"""What people think of answers, a line of JSON each."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sightbridge.errors import SettingsError
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.web.talk import Talk

ONE = {"Like": "upvote", "Dislike": "downvote", "Flag": "flag"}
"""Votes on one answer, by what the page calls them. LLaVA's page writes the same words."""
TWO = {"Left is better": "leftvote", "Right is better": "rightvote", "Tie": "tievote", "Both are bad": "bothbad_vote"}
"""Votes on two answers to one question, in FastChat's words."""


MOST = 20
"""Votes on one question, as each repeats the conversation: a disk is not filled by clicks."""


class Votes:
    """A file of votes. Each is appended by one write, so that several servers can share the file.

    A line has ``time``, ``tstamp`` (seconds since 1970), ``type``, ``models``, ``question`` (the number of the
    question that is voted on), ``settings``, ``client``, and ``conversation``: of each side its messages, answers with
    their timing, pictures by the SHA-256 of what was uploaded and by their regions. No picture is in it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, kind: str, talk: Talk, question: int, sides: list[int], client: str | None) -> dict[str, Any]:
        """Write down a vote of this ``kind`` on a question of a talk, up to which the conversation is kept.

        Raises ``ApiError`` for more votes on a question than a person who is of two minds gives.
        """
        asked, said = talk.exchanges[question], talk.exchanges[: question + 1]
        if asked.votes >= MOST:
            raise ApiError(429, f"There are {MOST} votes on this question already.", code="too_many_votes")
        asked.votes += 1
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "tstamp": round(time.time(), 3),
            "type": kind,
            "models": [asked.answers[side].model for side in sides],
            "question": question,
            "settings": asked.settings,
            "client": client,
            "conversation": [[exchange.describe(side) for exchange in said] for side in sides],
        }
        file = _open(self.file)
        try:
            os.write(file, (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        finally:
            os.close(file)
        return line


def check_file(file: Path) -> None:
    """Raise ``SettingsError`` if votes cannot be written to ``file``."""
    try:
        os.close(_open(file))
    except OSError as error:
        raise SettingsError(f"--votes {file}: cannot be written ({error.strerror}); name another.") from error


def _open(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
