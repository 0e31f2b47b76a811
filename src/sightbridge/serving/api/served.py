"""The models behind a server: what each can be asked for, found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeVar

from sightbridge.data.marks import Drawing
from sightbridge.data.processor import Processor
from sightbridge.data.qformer_processor import QFormerProcessor
from sightbridge.errors import DataError, SettingsError, nearest
from sightbridge.evaluation.features import first_stage_features
from sightbridge.generation.chat import takes_system, tells_turns_apart
from sightbridge.models.input_embeddings import InputEmbeddings
from sightbridge.models.qformer_pretraining import QFormerPretraining
from sightbridge.scoring.load import make_backend
from sightbridge.scoring.scorer import Scorer, Scores
from sightbridge.scoring.settings import ANSWER_KINDS, Kind
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.one_at_a_time import OneAtATime
from sightbridge.serving.engines.any_engine import AnyEngine

Item = TypeVar("Item")
BATCH = 16
"""Pictures or texts that go through a model together when it scores, or gives features."""


LONGEST_SCORED = 1024
"""Tokens of a text in its template: longer rows, ``BATCH`` of them at a time, could take all memory."""
PAIRS = 64
"""Pairs that are scored in one piece: so long the answers of the same model wait, and so much is done for nobody."""


class GivenUpError(Exception):
    """Nobody waits for this work any longer."""


@dataclass
class ScoreTable:
    """Scores (pictures, texts), the tokens of each, and what they depend on."""

    scores: list[list[float]]
    tokens: list[list[Any]]
    record: dict[str, Any]


@dataclass
class ServedModel:
    """A model with its name.

    Attributes:
        name: in requests.
        model: of a whole CLIP its kind of score, which is all that it has.
        processor: that came with it, of a CLIP none.
        engine: that answers; a model of the first stage and a CLIP have none.
        work: where scores and features are made.
    """

    name: str
    model: Any
    processor: Processor | QFormerProcessor | None
    engine: AnyEngine | None
    work: OneAtATime
    created: int = 0
    _backends: dict[Kind, Any] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of score that it has, the usual one first; none where the language model is elsewhere."""
        if isinstance(getattr(self.model, "language_model", None), InputEmbeddings):
            return []
        if isinstance(self.processor, Processor):
            return list(ANSWER_KINDS)  # type: ignore[arg-type]
        return ["itm", "itc"] if isinstance(self.processor, QFormerProcessor) else ["clip"]

    @property
    def takes_system(self) -> bool:
        """Whether its template has a place for a system text."""
        return takes_system(self._template)

    @property
    def remembers(self) -> bool:
        """Whether its template tells turns apart."""
        return tells_turns_apart(self._template)

    @property
    def description(self) -> dict[str, Any]:
        """The model as ``/v1/models`` lists it."""
        told: dict[str, Any] = {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "sightbridge",
            "answers": self.engine is not None,
            "scores": self.kinds,
            "features": isinstance(self.model, QFormerPretraining),
        }
        if self.engine is not None:
            told |= {"context": self.engine.max_tokens, "remembers": self.remembers, "takes_system": self.takes_system}
        return told

    def score(
        self,
        stop: Event,
        pictures: Sequence[tuple[bytes, Drawing]],
        texts: Sequence[str],
        kind: Kind,
        settings: dict[str, Any],
        tell: Callable[[int], None] | None = None,
    ) -> ScoreTable:
        """Score every picture with every text: ``PAIRS`` at a time, between steps of the engine, until ``stop`` is set.

        ``tell`` is told how many pairs are done.

        Raises ``DataError`` or ``SettingsError`` for what cannot be scored so.
        """
        scorer = Scorer(self._backend(kind), self.name, batch_size=BATCH)
        self._check_lengths(texts, settings)
        anchor, step = scorer.backend.image_settings.anchor, max(1, PAIRS // len(texts))
        table, done = ScoreTable([], [], {}), 0
        for group in batched(pictures, step):
            drawn = [drawing.on(picture, anchor) for picture, drawing in group]
            parts = []
            for some in batched(texts, PAIRS):
                _go_on(stop)
                parts.append(self._use_model(partial(scorer.score, drawn, some, trace=True, **settings)))
                done += len(drawn) * len(some)
                if tell:
                    tell(done)
            table.scores += [
                [score for part in parts for score in part.values[row].tolist()] for row in range(len(drawn))
            ]
            table.tokens += [[tokens for part in parts for tokens in part.tokens[row]] for row in range(len(drawn))]
            table.record = parts[0].record
        return table

    def features(self, stop: Event, pictures: Sequence[tuple[bytes, Drawing]], texts: Sequence[str]) -> dict[str, Any]:
        """Features of pictures, texts or pairs, as ``sightbridge features`` makes them, until ``stop`` is set."""
        assert isinstance(self.processor, QFormerProcessor), "only a model of the first stage has features"
        anchor = self.processor.image_settings.anchor
        drawn = [drawing.on(picture, anchor) for picture, drawing in pictures]

        def watch(batches: Sequence[Sequence[int]]) -> Any:
            for batch in batches:
                _go_on(stop)
                yield batch

        return first_stage_features(self.model, self.processor, drawn, texts, BATCH, watch)

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """End its threads."""
        self.work.close()
        if self.engine is not None:
            self.engine.close(drain, timeout)

    def _check_lengths(self, texts: Sequence[str], settings: dict[str, Any]) -> None:
        """Raise ``DataError`` for a text whose row would be too long: memory grows with its square, for a whole batch.

        CLIP and models of the first stage cut texts off themselves.
        """
        if not isinstance(self.processor, Processor):
            return
        templates = [value for name, value in settings.items() if name.endswith("_template") and value]
        others = [value for value in [settings.get("other_answer")] if value]
        for written in [*(template.replace("{}", text) for text in texts for template in [*templates, "{}"]), *others]:
            if (length := len(self.processor.tokenizer(written, add_special_tokens=False).input_ids)) > LONGEST_SCORED:
                raise DataError(
                    f"a text has {length:,} tokens with its template; at most {LONGEST_SCORED:,} are scored"
                )

    def _use_model(self, work: Callable[[], Scores]) -> Scores:
        """Only one thread may use a model at a time, and where there is an engine that is the engine's."""
        return work() if self.engine is None else self.engine.run_beside(work)

    @property
    def _template(self) -> Any:
        assert isinstance(self.processor, Processor), "only models that answer have a prompt template"
        return self.processor.template

    def _backend(self, kind: Kind) -> Any:
        """The kind of score of this model; made once."""
        if kind not in self.kinds:
            raise SettingsError(
                f"'{self.name}' has no scores of kind '{kind}', but: {', '.join(self.kinds)}.", key="kind"
            )
        if kind == "clip":
            return self.model
        with self._lock:
            if kind not in self._backends:
                self._backends[kind] = make_backend(self.model, self.processor, kind, self.name)
            return self._backends[kind]


def batched(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Lists of up to ``size`` items, in order."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _go_on(stop: Event) -> None:
    if stop.is_set():
        raise GivenUpError


class ServedModels:
    """All models of a server."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self.by_name = {model.name: model for model in models}
        assert len(self.by_name) == len(models) > 0, "names are checked before models are loaded"

    def find(self, name: str | None) -> ServedModel:
        """The model of this name, or the only one. Raises ``ApiError``."""
        known = list(self.by_name)
        if name is None and len(known) == 1:
            return self.by_name[known[0]]
        if name is None:
            raise ApiError(400, f"Which model? Set 'model' to one of: {', '.join(known)}.", param="model")
        if name not in self.by_name:
            raise ApiError(
                404,
                f"There is no model '{name[:100]}'.{nearest(name[:100], known)} Known: {', '.join(known)}.",
                param="model",
                code="model_not_found",
            )
        return self.by_name[name]

    def find_answering(self, name: str | None) -> tuple[ServedModel, AnyEngine]:
        """A model that answers questions, and its engine. Raises ``ApiError``."""
        found = self.find(name)
        if found.engine is None:
            raise ApiError(
                400, f"'{found.name}' gives scores (POST /score), it cannot answer questions.", param="model"
            )
        return found, found.engine


def names_for(folders: Sequence[str], given: Sequence[str]) -> list[str]:
    """Names of models: those given, in the order of the folders, else the folders' own.

    A folder that is called ``model``, as every run's is, has its run's name.

    >>> names_for(["runs/quickstart/model", "clip-flant5"], [])
    ['quickstart', 'clip-flant5']

    Raises ``SettingsError`` for names that are not one for each, or twice the same.
    """
    if len(given) not in (0, len(folders)):
        raise SettingsError(f"--name: names given: {len(given)}, models: {len(folders)}; give none, or one for each")
    names = list(given) or [_own_name(folder) for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"two models would be called '{name}'. Give each a name of its own with --name.")
        if not name.strip():
            raise SettingsError("--name: a name is empty")
    return names


def _own_name(folder: str) -> str:
    path = Path(folder)
    path = path if path.name else path.resolve()
    return path.resolve().parent.name if path.name == "model" else path.name
