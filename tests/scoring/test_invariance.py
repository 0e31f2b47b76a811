"""A pair's score is its own: no batch size, order, company or way of computing changes it."""

from __future__ import annotations

import inspect
import random
from pathlib import Path

import pytest
import torch
from score_models import DECODERS, TEXTS, backend_of, lively_model, processor_of, write_pictures

from sightbridge.scoring.likelihood import AnswerLikelihood
from sightbridge.scoring.prefix import FAMILIES
from sightbridge.scoring.scorer import Scorer

EVERY = ["t5", "llama", "itm", "itc"]
CLOSE = 1e-6


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize("name", EVERY)
def test_scores_do_not_depend_on_batch_size_order_or_company(name: str, tmp_path: Path) -> None:
    def apart(one: torch.Tensor, other: torch.Tensor) -> float:
        if name in ("itm", "itc"):
            return difference(one, other)
        return difference(one.log(), other.log())  # a likelihood of e**-8 has eight times its logarithm's rounding

    pictures, backend = write_pictures(tmp_path), backend_of(name)
    table = Scorer(backend, batch_size=1).score(pictures, TEXTS)
    assert table.shape == (4, 5) and len(table.unique()) == 20, "the pairs must be told apart"
    for size in (2, 3, 7, 64):
        assert apart(table, Scorer(backend, batch_size=size).score(pictures, TEXTS)) <= CLOSE
    scorer, shuffle = Scorer(backend, batch_size=3), random.Random(0)
    rows, columns = shuffle.sample(range(4), 4), shuffle.sample(range(5), 5)
    shuffled = scorer.score([pictures[row] for row in rows], [TEXTS[column] for column in columns])
    assert apart(table[rows][:, columns], shuffled) <= CLOSE
    cells = shuffle.sample([(row, column) for row in range(4) for column in range(5)], 9)
    alone = scorer.pairs([pictures[row] for row, _ in cells], [TEXTS[column] for _, column in cells])
    assert apart(torch.stack([table[cell] for cell in cells]), alone) <= CLOSE
    samples = [{"images": pictures[:2], "texts": TEXTS[:3]}, {"images": pictures[2:], "texts": TEXTS[2:]}]
    expected = torch.stack([table[:2, :3], table[2:, 2:]])
    assert apart(expected, scorer.batch_forward(samples, batch_size=4)) <= CLOSE


@pytest.mark.parametrize("family", [*DECODERS])
def test_a_kept_prefix_changes_no_score(family: str, tmp_path: Path) -> None:
    pictures, model, processor = write_pictures(tmp_path, 3), lively_model(family), processor_of(family)
    ways = [AnswerLikelihood(model, processor, keep_prefix=keep) for keep in (True, False)]
    assert [way.keep_prefix for way in ways] == [True, False]
    kept, whole = (Scorer(way, batch_size=4).score(pictures, TEXTS, trace=True) for way in ways)
    logprobs = [
        torch.tensor([[[token.logprob for token in tokens] for tokens in row] for row in scores.tokens])
        for scores in (kept, whole)
    ]
    print(f"{family}: relative {difference(logprobs[1], logprobs[0]):.1e}, scores differ by {kept.values.std():.1e}")
    assert difference(logprobs[1], logprobs[0]) <= CLOSE
    assert difference(whole.values, kept.values) <= 2e-5  # the exponential of what lies within float32's last bits
    assert len(kept.values.unique()) == 15


def test_every_family_that_keeps_its_prefix_is_tested() -> None:
    assert set(DECODERS) == set(FAMILIES)


@pytest.mark.parametrize("name", EVERY)
def test_each_picture_is_encoded_and_each_text_read_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, backend = write_pictures(tmp_path, 3), backend_of(name)
    encoded, read = [], []
    forward = backend.model.vision_tower.forward  # type: ignore[attr-defined]
    monkeypatch.setattr(
        backend.model.vision_tower,  # type: ignore[attr-defined]
        "forward",
        lambda pixels: encoded.append(len(pixels)) or forward(pixels),
    )
    if name in ("t5", "llama"):
        reader = backend.reader  # type: ignore[attr-defined]
        encode = reader.processor.encode
        monkeypatch.setattr(reader.processor, "encode", lambda record: read.append(record) or encode(record))
    monkeypatch.setattr(backend, "changed", lambda **none: backend)
    samples = [{"images": [pictures[i], pictures[(i + 1) % 3]], "texts": TEXTS[:3]} for i in range(3)]
    values = Scorer(backend).batch_forward([*samples, *samples], batch_size=2)
    assert values.shape == (6, 2, 3) and torch.equal(values[:3], values[3:])
    assert sum(encoded) == 3
    assert len(read) == (3 if name in ("t5", "llama") else 0)


def test_a_prefix_goes_through_the_language_model_once_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_of("llama")
    trunk = backend.model.language_model.model.base_model  # type: ignore[attr-defined]
    shapes, forward = [], trunk.forward

    def watched(**inputs: torch.Tensor) -> object:
        shapes.append(tuple(inputs["inputs_embeds"].shape[:2]))
        return forward(**inputs)

    watched.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(trunk, "forward", watched)
    Scorer(backend, batch_size=10).score(write_pictures(tmp_path, 2), TEXTS)
    (prefixes, kept), (rests, left) = shapes
    assert prefixes == 2 and rests == 10
    assert kept > left, "system text, picture and the beginning of the question are common"
