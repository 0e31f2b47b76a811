"""Generating: rows on their own, lengths, sampling, and nothing that leaks in or out."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from builders import make_batch, tiny_model
from lively import PAD, ROWS, batch_of, find_eos, lively_model, run
from pydantic import ValidationError
from torch import Tensor

from sightbridge.batch import Batch
from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import DataError
from sightbridge.generation.generate import Draw, generate, pad_on_one_side
from sightbridge.models.vlm import VisionLanguageModel

FAMILIES = ["llama", "opt", "qwen2", "bloom", "t5"]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 3, "length_penalty": 2.0},
    "sampled": {"sample": True, "seed": 5, "temperature": 1.5},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_neighbours_or_its_padding(family: str, way: str) -> None:
    model = lively_model(family)
    batch = batch_of(model)
    eos = find_eos(model, batch)
    together = run(model, batch, eos, **WAYS[way])
    assert together == run(model, batch_of(model, padding="right"), eos, **WAYS[way])
    assert together == [run(model, batch_of(model, [row]), eos, **WAYS[way])[0] for row in ROWS]
    assert len({token for row in together for token in row}) >= 4
    if way == "greedy":
        assert len({len(row) for row in together}) >= 2, "some rows should end before others"


def argmax_by_hand(model: VisionLanguageModel, batch: Batch, steps: int) -> list[list[int]]:
    """Greedy tokens without any cache, from whole passes through our own model."""
    lm, rows = model.language_model, []
    with torch.no_grad():
        embeddings, mask = model.embed(batch), batch.attention_mask
        for row in range(len(batch)):
            prompt = embeddings[row, mask[row].bool()][None]
            ids: list[int] = []
            for _ in range(steps):
                written = torch.tensor([ids], dtype=torch.long)
                if lm.is_encoder_decoder:
                    shifted = torch.cat([torch.tensor([[lm.config.decoder_start_token_id]]), written], dim=1)
                    hidden = lm(prompt, torch.ones(prompt.shape[:2], dtype=torch.long), shifted)
                else:
                    whole = torch.cat([prompt, lm.embed(written)], dim=1)
                    hidden = lm(whole, torch.ones(whole.shape[:2], dtype=torch.long))
                ids.append(int(lm.head(hidden[0, -1]).argmax()))
            rows.append(ids)
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_takes_the_likeliest_token_of_the_whole_model(family: str) -> None:
    model = lively_model(family)
    batch = batch_of(model)
    assert run(model, batch, max_new_tokens=6) == argmax_by_hand(model, batch, 6)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_lengths_count_new_tokens(family: str) -> None:
    model = lively_model(family)
    batch = batch_of(model)
    eos = find_eos(model, batch)
    free = run(model, batch, eos)
    assert any(len(row) == 1 + row.index(eos) < 5 for row in free if eos in row), free
    assert all(len(row) == 10 for row in run(model, batch))
    assert run(model, batch, max_new_tokens=1) == [row[:1] for row in run(model, batch)]
    for beams in (1, 3):
        held = run(model, batch, eos, min_new_tokens=5, num_beams=beams)
        assert all(len(row) >= 5 and eos not in row[:5] for row in held), held


def test_prompt_and_answer_must_fit_into_the_language_model() -> None:
    batches = {family: batch_of(lively_model(family)) for family in ("opt", "llama", "t5")}
    longest = int(batches["opt"].attention_mask.sum(dim=1).max())
    for family, batch in batches.items():
        model = lively_model(family)
        model.language_model.config.max_position_embeddings = longest + 10
        if family == "opt":  # the others' positions go on: angles, differences
            with pytest.raises(DataError, match=rf"takes {longest} positions .* is 11, but .* has {longest + 10}"):
                run(model, batch, max_new_tokens=11)
        assert all(len(row) == 10 for row in run(model, batch, max_new_tokens=10))
        model.language_model.config.max_position_embeddings = longest - 1
        if family != "opt":
            assert run(model, batch, max_new_tokens=1)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_broken_weights_do_not_answer(family: str) -> None:
    model = lively_model(family)
    with torch.no_grad():
        next(model.language_model.parameters())[:] = torch.nan
    with pytest.raises(DataError, match="scores are not numbers"):
        run(model, batch_of(model))


def test_several_ends_and_none() -> None:
    model = lively_model("llama")
    batch = batch_of(model)
    first, other = run(model, batch)[1][2], run(model, batch)[2][1]
    ids = generate(model, batch, GenerationSettings(max_new_tokens=10), eos_ids=[first, other], pad_id=PAD)
    ends = [next((i for i, token in enumerate(row) if token in (first, other)), None) for row in ids.tolist()]
    assert ends[1] is not None and ends[1] <= 2 and ends[2] is not None and ends[2] <= 1
    for row, end in zip(ids.tolist(), ends, strict=True):
        assert end is None or set(row[end + 1 :]) <= {PAD}


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_settings_of_the_released_model_do_not_leak_in(family: str) -> None:
    model = lively_model(family)
    batch = batch_of(model)
    clean = {way: run(model, batch, 7, **options) for way, options in WAYS.items()}
    own = transformers.GenerationConfig(
        max_length=3,
        min_length=9,
        num_beams=4,
        do_sample=True,
        temperature=3.0,
        top_k=2,
        num_return_sequences=2,
        forced_bos_token_id=11,
        forced_eos_token_id=12,
        suppress_tokens=list(range(20, 50)),
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        eos_token_id=13,
        decoder_start_token_id=14,
    )
    model.language_model.model.generation_config = own
    before = own.to_dict()
    assert {way: run(model, batch, 7, **options) for way, options in WAYS.items()} == clean
    assert model.language_model.model.generation_config is own
    assert own.to_dict() == before


def test_a_picture_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("opt", "t5"):
        model = lively_model(family)
        seen: list[tuple[str, int]] = []

        def note(name: str, seen: list[tuple[str, int]] = seen) -> Any:
            return lambda module, inputs: seen.append((name, len(inputs[0])))

        model.vision_tower.register_forward_pre_hook(note("tower"))
        model.connector.register_forward_pre_hook(note("connector"))
        for options in ({}, {"num_beams": 3}, {"sample": True, "num_answers": 3}):
            run(model, batch_of(model), **options)
            assert seen == [("tower", 4), ("connector", 4)]
            seen.clear()


def test_kept_features_give_the_same_tokens() -> None:
    model = lively_model("llama")
    batch = batch_of(model)
    assert batch.pixel_values is not None
    with torch.no_grad():
        features = model.encode_images(batch.pixel_values)
    assert run(model, replace(batch, pixel_values=None, image_features=features)) == run(model, batch)
    assert run(model, replace(batch, pixel_values=batch.pixel_values.flip(0))) != run(model, batch)


def test_nothing_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for family in ("llama", "bloom", "t5"):
                model = lively_model(family)
                for options in (*WAYS.values(), {"min_new_tokens": 3, "repetition_penalty": 1.3}):
                    run(model, batch_of(model, padding="right"), 7, **{"max_new_tokens": 4, **options})
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert [str(warning.message) for warning in warned] == []
    assert [record.getMessage() for record in heard] == []
    assert capfd.readouterr() == ("", "")


def test_dropout_is_off_and_the_mode_is_kept() -> None:
    model = tiny_model("opt")
    model.language_model.model.config.dropout = 0.9
    for module in model.language_model.model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.9
    batch = batch_of(model)
    quiet = run(model, batch)
    model.train()
    assert run(model, batch) == quiet
    assert model.training and model.language_model.model.training
    text_only = make_batch(model, [(3, 0, 9)])
    assert len(run(model, text_only)) == 1


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
def test_heads_stay_untied(family: str) -> None:
    model = tiny_model(family)
    head = model.language_model.model.get_output_embeddings().weight.clone()
    run(model, batch_of(model), num_beams=2)
    model.language_model.assert_heads_untied()
    assert torch.equal(model.language_model.model.get_output_embeddings().weight, head)


def test_sampling_follows_its_seed_and_leaves_the_callers_alone() -> None:
    model = lively_model("opt")
    batch = batch_of(model)
    state = torch.random.get_rng_state()
    first = run(model, batch, sample=True, seed=1, temperature=5.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert run(model, batch, sample=True, seed=1, temperature=5.0) == first
    assert run(model, batch, sample=True, seed=2, temperature=5.0) != first
    free = run(model, batch, sample=True, temperature=5.0)
    assert run(model, batch, sample=True, temperature=5.0) != free
    torch.random.set_rng_state(state)
    torch.rand(3)
    assert run(model, batch, sample=True, temperature=5.0) == free
    twice = batch_of(model, [ROWS[0], ROWS[0]])
    a, b = run(model, twice, sample=True, temperature=5.0)
    assert a != b, "without a seed, equal rows draw apart"


def test_sampling_narrowed_down_is_greedy() -> None:
    model = lively_model("llama")
    batch = batch_of(model)
    greedy = run(model, batch)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert run(model, batch, sample=True, seed=3, **narrow) == greedy
    assert run(model, batch, sample=True, seed=3) != greedy


def test_draws_follow_the_softmax() -> None:
    scores = torch.tensor([0.0, 1.0, -1.0, float("-inf"), 2.0])
    draw = Draw(GenerationSettings(sample=True), torch.device("cpu"))
    n = 40_000
    drawn = draw(torch.zeros(n, 0), scores.expand(n, -1)).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=5) / n
    assert (shares - scores.softmax(dim=0)).abs().max() < 0.015  # six standard deviations
    assert shares[3] == 0


@pytest.mark.parametrize("way", ["beam", "sampled"])
def test_several_answers_stand_side_by_side(way: str) -> None:
    model = lively_model("llama")
    options = {**WAYS[way], "num_answers": 3}
    together = run(model, batch_of(model), 7, **options)
    alone = [answer for row in ROWS for answer in run(model, batch_of(model, [row]), 7, **options)]
    assert together == alone and len(together) == 12
    assert len({tuple(answer) for answer in together[:3]}) == 3
    if way == "beam":
        assert together[::3] == run(model, batch_of(model), 7, **WAYS[way])


def test_repetition_penalty_counts_what_was_written_only() -> None:
    model = lively_model("t5")
    batch = batch_of(model)
    assert any(len(set(row)) < len(row) for row in run(model, batch))
    assert all(len(set(row)) == len(row) for row in run(model, batch, repetition_penalty=1e6))


def test_watch_sees_every_step_and_can_end_it() -> None:
    for family in ("llama", "t5"):
        model = lively_model(family)
        batch = batch_of(model)
        seen: list[list[list[int]]] = []

        def watch(ids: Tensor, seen: list[list[list[int]]] = seen) -> bool:
            seen.append(ids.tolist())
            return len(seen) == 4

        ids = generate(model, batch, GenerationSettings(max_new_tokens=9), eos_ids=[], pad_id=PAD, watch=watch)
        assert seen == [[row[:n] for row in run(model, batch)] for n in (1, 2, 3, 4)]
        assert ids.tolist() == seen[-1]


class Letters:
    """A tokenizer whose token n is a letter."""

    def decode(self, ids: list[int], **options: bool) -> str:
        return "".join(chr(ord("A") + token) for token in ids)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_stop_texts_end_a_row(family: str) -> None:
    model, letters = lively_model(family), Letters()
    batch = batch_of(model, [ROWS[1]])
    text = letters.decode(run(model, batch)[0])
    stop = text[3:5]
    for beams in (1, 3):
        settings = GenerationSettings(max_new_tokens=10, num_beams=beams, stop=["never", stop])
        ids = generate(model, batch, settings, eos_ids=[], pad_id=PAD, tokenizer=letters)
        written = letters.decode(ids[0].tolist())
        if beams == 1:
            assert written == text[: text.index(stop) + 2]
        assert written.find(stop) in (-1, len(written.rstrip("A")) - 2), "nothing but padding follows a stop text"


def test_padding_moves_to_either_side() -> None:
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]])
    embeddings = torch.arange(8.0).view(2, 4, 1)
    moved, left = pad_on_one_side(embeddings, mask, left=True)
    assert left.tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    assert moved[..., 0][left.bool()].tolist() == [0, 2, 5, 6, 7]
    moved, right = pad_on_one_side(embeddings, mask, left=False)
    assert right.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert moved[..., 0][right.bool()].tolist() == [0, 2, 5, 6, 7]


def test_pictures_and_slots_must_agree() -> None:
    model = tiny_model()
    batch = replace(batch_of(model), images_per_row=torch.tensor([1, 1, 1, 1]))
    with pytest.raises(DataError, match="Record 'record-2' has 10 image slots, but its 1 picture"):
        run(model, batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_new_tokens": 9, "max_new_tokens": 8}, r"min_new_tokens \(9\) is above max_new_tokens \(8\)"),
        ({"sample": True, "num_beams": 2}, "choose one"),
        ({"num_answers": 2}, "num_answers is 2: set sample, or num_beams to at least as many"),
        ({"num_answers": 4, "num_beams": 3}, "num_answers is 4"),
        ({"stop": ["a", ""]}, "empty"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GenerationSettings(**options)
