"""Records that cannot be used: found beforehand where that is cheap, counted and listed always, never replaced by a
black picture, and too many of them stop the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sightbridge.data.record import Record
from sightbridge.errors import DataError
from sightbridge.images.load import ImageSource
from sightbridge.images.video import VideoFrame


@dataclass(frozen=True)
class BadSample:
    """A record that was left out. One that the user chose to skip is listed all the same, but ``counts`` is false."""

    id: str
    where: str
    reason: str
    counts: bool = True


class BadSamples:
    """The bad samples of one run, each counted once.

    Args:
        total: number of records of the run.
        limit: largest share of them that may be bad.
        path: file that every one is appended to, a JSON object per line; none is written without a bad sample.
    """

    def __init__(self, total: int, limit: float = 0.01, path: Path | None = None) -> None:
        self.total = total
        self.limit = limit
        self.path = path
        self.samples: list[BadSample] = []
        self._known: set[tuple[str, str]] = set()

    def state_dict(self) -> list[dict[str, Any]]:
        """All of them, to be given to ``load_state_dict``."""
        return [asdict(sample) for sample in self.samples]

    def load_state_dict(self, samples: Sequence[dict[str, Any]]) -> None:
        """Go back to when these were all; the file is left alone."""
        self.samples = [BadSample(**sample) for sample in samples]
        self._known = {(sample.id, sample.where) for sample in self.samples}

    def add(self, samples: Iterable[BadSample]) -> None:
        """List ``samples``; raises ``DataError`` as soon as more than the limit are bad."""
        for sample in samples:
            if (sample.id, sample.where) in self._known:
                continue
            self._known.add((sample.id, sample.where))
            self.samples.append(sample)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(sample), ensure_ascii=False) + "\n")
        bad = [sample for sample in self.samples if sample.counts]
        if len(bad) > self.limit * self.total:
            first = "".join(f"\n  {sample.where or sample.id}: {sample.reason}" for sample in bad[:5])
            more = f"\n  and {len(bad) - 5} more" if len(bad) > 5 else ""
            listed = f" All are listed in {self.path}." if self.path else ""
            raise DataError(
                f"{len(bad)} of {self.total} records cannot be used, more than the limit of {self.limit:.2%} "
                f"(data.bad_limit):{first}{more}\nMend or remove them, or raise the limit.{listed}"
            )


def check_images(records: Sequence[Record]) -> list[BadSample]:
    """Return the records whose picture files are not there. Files are looked for, not opened."""
    exists: dict[str, bool] = {}
    bad = []
    for record in records:
        missing = [source for source in record.images if _is_missing(source, exists)]
        if missing:
            names = dict.fromkeys(str(source.path if isinstance(source, VideoFrame) else source) for source in missing)
            what = "video" if isinstance(missing[0], VideoFrame) else "picture"
            bad.append(BadSample(record.id, record.where, f"no such {what} file: {', '.join(names)}"))
    return bad


def _is_missing(source: ImageSource, exists: dict[str, bool]) -> bool:
    if isinstance(source, VideoFrame):
        source = source.path
    if not isinstance(source, str | Path) or str(source).startswith("data:"):
        return False
    name = str(source)
    if name not in exists:
        try:
            exists[name] = Path(name).is_file()
        except OSError:  # a name longer than the file system takes
            exists[name] = False
    return not exists[name]
