"""The one interface to every kind of score: pictures and texts in, a table of scores out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import sightbridge
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.generation.generate import in_evaluation_mode
from sightbridge.images.load import ImageSource
from sightbridge.scoring.kinds import Backend, Item, Row, Scored, TokenScore
from sightbridge.scoring.pictures import Picture, Pictures, find_pictures
from sightbridge.scoring.pixels import fit_pixels
from sightbridge.scoring.store import ScoreStore

WINDOW = 4
"""So many batches of pictures are held, encoded, at one time; their rows are sorted by length together."""
OnError = Literal["raise", "skip"]
Images = ImageSource | Sequence[ImageSource]


@dataclass(frozen=True)
class Scores:
    """What a run found.

    - ``values``: float32 on the CPU, (M, N), (pairs,) or (samples, M, N) like what was asked; NaN where a picture was
      skipped.
    - ``images``: name of each picture, and ``texts``.
    - ``tokens``: of every value, in the same nesting, the tokens it was made of; empty for kinds without tokens.
    - ``skipped``: name of each picture that could not be opened -> what is wrong with it.
    - ``record``: kind, settings, model and version. Scores whose records differ are not comparable.
    """

    values: Tensor
    images: list[str]
    texts: list[str]
    tokens: list[Any]
    skipped: dict[str, str]
    record: dict[str, Any] = field(repr=False)


class Scorer:
    """Scores pictures with texts.

    Every picture is opened and encoded once and every text tokenised once, however many pairs they are in. A pair's
    score depends on no other pair, on no batch size and on no order.

    Args:
        backend: a kind of score of a loaded model; ``load_scorer`` makes one.
        name: of the model, kept with the scores.
        batch_size: rows, and pictures, at a time.
        store: SQLite file to keep scores in and find them again.
        on_error: whether a picture that cannot be opened ends the run before it begins, or is skipped and listed.
        frames: pictures taken from a video file.
        progress: show a bar on stderr.
    """

    def __init__(
        self,
        backend: Backend,
        name: str = "",
        *,
        batch_size: int = 16,
        store: str | Path | None = None,
        on_error: OnError = "raise",
        frames: int = 8,
        progress: bool = False,
    ) -> None:
        self.backend = backend
        self.name = name
        self.batch_size = batch_size
        self.store = Path(store) if store else None
        self.on_error = on_error
        self.frames = frames
        self.progress = progress

    def __call__(self, images: Images | Tensor, texts: str | Sequence[str], **options: Any) -> Any:
        """Do what ``score`` does."""
        return self.score(images, texts, **options)

    def score(
        self,
        images: Images | Tensor,
        texts: str | Sequence[str],
        *,
        trace: bool = False,
        differentiable: bool = False,
        batch_size: int | None = None,
        **settings: Any,
    ) -> Any:
        """Score every picture with every text.

        Args:
            images: M pictures: files, folders, videos, bytes, Pillow pictures, arrays; one may stand alone. With
                ``differentiable``: pixels in 0..1, (M, 3, H, W), of any size.
            texts: N of them; one may stand alone.
            trace: return ``Scores``, with the tokens of every score, in place of the bare table.
            differentiable: keep the graph, from the pixels to the scores; nothing is looked up or kept.
            batch_size: in place of the scorer's.
            settings: of the kind, for this call, such as ``question_template``.

        Returns:
            A table (M, N), float32 on the CPU; or, differentiable, on the model's device.

        Raises:
            ImageError: naming the first picture that cannot be opened, before anything is computed.
            DataError: a text is empty or cannot be scored.
            SettingsError: a setting is unknown or wrong.
        """
        texts = check_texts([texts] if isinstance(texts, str) else list(texts))
        backend = self.backend.changed(**settings)
        size = batch_size or self.batch_size
        if differentiable:
            return self._with_graph(backend, images, texts, size)
        pictures = find_pictures(as_list(images), self.frames)
        rows = [(image, item) for image in range(len(pictures)) for item in backend.items(texts)]
        scores = self._scores(backend, pictures, texts, rows, (len(pictures), len(texts)), size)
        return scores if trace else scores.values

    def pairs(
        self,
        images: Images,
        texts: str | Sequence[str],
        *,
        trace: bool = False,
        batch_size: int | None = None,
        **settings: Any,
    ) -> Any:
        """Score the first picture with the first text, the second with the second, ...: (P,); see ``score``."""
        texts = check_texts([texts] if isinstance(texts, str) else list(texts))
        backend, pictures = self.backend.changed(**settings), find_pictures(as_list(images), self.frames)
        if len(pictures) != len(texts):
            raise DataError(
                f"{len(pictures)} pictures and {len(texts)} texts are no pairs: give as many of one as the other"
            )
        rows = list(enumerate(backend.items(texts)))
        scores = self._scores(backend, pictures, texts, rows, (len(texts),), batch_size or self.batch_size)
        return scores if trace else scores.values

    def batch_forward(
        self, dataset: Iterable[Mapping[str, Any]], batch_size: int = 16, *, trace: bool = False, **settings: Any
    ) -> Any:
        """Score every picture of a sample with every text of it, for many samples, as t2v_metrics does.

        Args:
            dataset: rows ``{"images": [...], "texts": [...]}``, all with as many pictures and as many texts.
            batch_size: rows at a time, of any samples.
            trace: as in ``score``, which also tells the other arguments and the errors.
            settings: of the kind, for this call.

        Returns:
            (samples, images, texts).
        """
        backend = self.backend.changed(**settings)
        samples = [(find_pictures(as_list(row["images"]), self.frames), list(row["texts"])) for row in dataset]
        shapes = {(len(images), len(texts)) for images, texts in samples}
        if len(shapes) != 1:
            raise DataError(
                "all samples must have as many pictures and as many texts, but these numbers occur: "
                + (", ".join(f"{m} and {n}" for m, n in sorted(shapes)) or "there is no sample")
            )
        (shape,) = shapes
        pictures = [picture for images, _ in samples for picture in images]
        texts = check_texts([text for _, of_sample in samples for text in of_sample])
        rows = [
            (number * shape[0] + image, item)
            for number, (_, of_sample) in enumerate(samples)
            for image in range(shape[0])
            for item in backend.items(of_sample)
        ]
        scores = self._scores(backend, pictures, texts, rows, (len(samples), *shape), batch_size)
        return scores if trace else scores.values

    def run(self, pictures: Sequence[Picture], rows: Sequence[Row], texts: Sequence[str] = ()) -> Scores:
        """Score rows, each a picture's number and an item of the backend: values (rows,)."""
        return self._scores(self.backend, pictures, list(texts), rows, (len(rows),), self.batch_size)

    def record(self, backend: Backend | None = None) -> dict[str, Any]:
        """Return all that the scores depend on, to keep with them: model, weights, kind, settings, version."""
        backend = backend or self.backend
        return {
            "model": self.name,
            "weights": backend.fingerprint(),
            **backend.describe(),
            "sightbridge": sightbridge.__version__,
        }

    def _scores(
        self,
        backend: Backend,
        pictures: Sequence[Picture],
        texts: list[str],
        rows: Sequence[Row],
        shape: tuple[int, ...],
        batch_size: int,
    ) -> Scores:
        """Score each different pair once, and lay the scores out as they were asked for."""
        numbers: dict[str, int] = {}
        unique: list[Picture] = []
        which = []
        for picture in pictures:
            if (key := picture.key) not in numbers:
                numbers[key] = len(unique)
                unique.append(picture)
            which.append(numbers[key])
        wanted = [(which[image], item) for image, item in rows]
        record = self.record(backend)
        found, broken = self._find(
            backend, Pictures(unique, backend.transform), list(dict.fromkeys(wanted)), batch_size, record
        )
        nothing = Scored(float("nan"))
        scored = [found.get(row, nothing) for row in wanted]
        return Scores(
            torch.tensor([one.score for one in scored], dtype=torch.float32).reshape(shape),
            [picture.name for picture in pictures],
            texts,
            nest([one.tokens for one in scored], shape),
            {unique[number].name: problem for number, problem in broken.items()},
            record,
        )

    def _find(
        self, backend: Backend, pictures: Pictures, wanted: list[Row], batch_size: int, record: dict[str, Any]
    ) -> tuple[dict[Row, Scored], dict[int, str]]:
        """Look scores up, check the pictures that are still wanted, compute the rest; scores and broken pictures."""
        found: dict[Row, Scored] = {}
        store, keys = None, {}
        if self.store:
            store = ScoreStore(
                self.store, {name: record[name] for name in record if name not in ("model", "sightbridge")}
            )
            contents = pictures.hashes(sorted({image for image, _ in wanted}))
            keys = {row: (contents[row[0]], row[1]) for row in wanted if row[0] in contents}
            kept = store.find(keys.values())
            found = {row: kept[key] for row, key in keys.items() if key in kept}
        missing = [row for row in wanted if row not in found]
        try:
            broken = pictures.check(sorted({image for image, _ in missing}))
            if broken and self.on_error == "raise":
                more = f" ({len(broken) - 1} more pictures are broken.)" if len(broken) > 1 else ""
                raise ImageError(next(iter(broken.values())) + more)
            missing = [row for row in missing if row[0] not in broken]
            for scored in self._compute(backend, pictures, missing, batch_size):
                found |= scored
                if store:
                    store.add({keys[row]: one for row, one in scored.items() if row in keys})
        finally:
            if store:
                store.close()
        return found, broken

    def _compute(
        self, backend: Backend, pictures: Pictures, rows: list[Row], batch_size: int
    ) -> Iterator[dict[Row, Scored]]:
        """Score rows window by window: a few batches of pictures, and all rows about them sorted by length."""
        by_image: dict[int, list[Item]] = {}
        for image, item in rows:
            by_image.setdefault(image, []).append(item)
        images = sorted(by_image)
        with torch.no_grad(), evaluating(backend), bar(len(rows), self.progress) as advance:
            read = backend.read(list(dict.fromkeys(item for _, item in rows)), batch_size)
            for start in range(0, len(images), WINDOW * batch_size):
                window = images[start : start + WINDOW * batch_size]
                encoded = backend.encode(pictures.batches(window, batch_size))
                here = [(place, item) for place, image in enumerate(window) for item in by_image[image]]
                for chunk in backend.score(encoded, here, read, batch_size):
                    scored = {}
                    for place, score, tokens in zip(chunk.places, chunk.scores.tolist(), chunk.tokens, strict=True):
                        if score != score:
                            raise DataError(NOT_A_NUMBER)
                        scored[window[here[place][0]], here[place][1]] = Scored(score, tokens)
                    advance(len(scored))
                    yield scored

    def _with_graph(self, backend: Backend, pixels: Any, texts: list[str], batch_size: int) -> Tensor:
        """Score pixels and keep the graph."""
        if (
            not isinstance(pixels, Tensor)
            or pixels.dim() != 4
            or pixels.shape[1] != 3
            or not pixels.is_floating_point()
        ):
            raise SettingsError("differentiable=True takes pixels in 0..1 as one floating tensor (M, 3, H, W)")
        with torch.enable_grad(), evaluating(backend):
            items = backend.items(texts)
            read = backend.read(items, batch_size)
            encoded = backend.encode(fit_pixels(pixels, backend.image_settings).split(batch_size))
            rows = [(image, item) for image in range(len(pixels)) for item in items]
            chunks = list(backend.score(encoded, rows, read, batch_size))
        order = torch.tensor([place for chunk in chunks for place in chunk.places]).argsort()
        scores = torch.cat([chunk.scores for chunk in chunks])
        return scores[order.to(scores.device)].reshape(len(pixels), len(texts))


NOT_A_NUMBER = (
    "a score is not a number: a weight of the model is broken, or it overflows in float16 (use float32 or bfloat16)"
)


def as_list(images: Any) -> list[ImageSource]:
    """A list of what may be one picture or many; raises ``SettingsError`` for a bare tensor."""
    if isinstance(images, Tensor):
        raise SettingsError("pictures given as a tensor are scored with differentiable=True only; give files or arrays")
    return list(images) if isinstance(images, list | tuple) else [images]


def check_texts(texts: list[str]) -> list[str]:
    """Return texts that can be scored; raises ``DataError``, naming the first that is empty or no text."""
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"text {number} of {len(texts)} is {'empty' if text == '' else repr(text)}; expected words")
    return texts


def nest(flat: Sequence[tuple[TokenScore, ...]], shape: tuple[int, ...]) -> list[Any]:
    """Nest a flat list like a tensor of ``shape``."""
    if len(shape) == 1:
        return list(flat)
    step = len(flat) // shape[0] if shape[0] else 0
    return [nest(flat[number * step : (number + 1) * step], shape[1:]) for number in range(shape[0])]


def evaluating(backend: Any) -> Any:
    """Switch dropout off for a while."""
    return in_evaluation_mode(backend.model)


@contextmanager
def bar(total: int, shown: bool) -> Iterator[Any]:
    """A progress bar on stderr, as a function to advance it by; it goes away when it is full."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task("scoring", total=total)
        yield lambda count: progress.advance(task, count)
