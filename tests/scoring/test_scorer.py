"""What a score is made of, what is recorded, kept and differentiated."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from score_models import (
    TEXTS,
    backend_of,
    first_stage,
    lively_model,
    processor_of,
    save_clip,
    save_siglip,
    write_pictures,
)

from sightbridge.batch import QFormerBatch
from sightbridge.config.model import ImageSettings
from sightbridge.data.processor import prompt_record
from sightbridge.errors import DataError, SettingsError
from sightbridge.images.load import load_image
from sightbridge.images.transforms import ImageTransform
from sightbridge.models.qformer_inference import itc_scores, itm_logits
from sightbridge.scoring import load_scorer, make_backend, rank_options
from sightbridge.scoring.clip import load_clip
from sightbridge.scoring.kinds import Scored
from sightbridge.scoring.pixels import fit_pixels
from sightbridge.scoring.scorer import Scorer

CLOSE = 1e-6


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_reductions_follow_from_the_trace(name: str, tmp_path: Path) -> None:
    pictures, scorer = write_pictures(tmp_path, 2), Scorer(backend_of(name))
    traced = scorer.score(pictures, TEXTS, answer_template="Yes, {}", trace=True)
    logprobs = [token.logprob for token in traced.tokens[1][2]]
    assert len(logprobs) > 10 and traced.tokens[1][2][-1].text == "</s>"
    whole, without_end = np.array(logprobs), np.array(logprobs[:-1])
    expected = {
        "geomean": (math.exp(whole.mean()), math.exp(without_end.mean())),
        "product": (math.exp(whole.sum()), math.exp(without_end.sum())),
        "first_token": (math.exp(logprobs[0]), math.exp(logprobs[0])),
        "mean": (whole.mean(), without_end.mean()),
        "sum": (whole.sum(), without_end.sum()),
    }
    for reduction, with_and_without in expected.items():
        for answer_eos, value in zip((True, False), with_and_without, strict=True):
            options = {"reduction": reduction, "answer_eos": answer_eos, "answer_template": "Yes, {}"}
            assert scorer.score(pictures, TEXTS, **options)[1, 2].item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_yes_no_weighs_two_answers(name: str, tmp_path: Path) -> None:
    pictures, scorer = write_pictures(tmp_path, 2), Scorer(backend_of(name), batch_size=3)
    yes, no = (scorer.score(pictures, TEXTS, reduction="product", answer_template=a) for a in ("Yes", "No"))
    both = scorer.score(pictures, TEXTS, reduction="yes_no")
    torch.testing.assert_close(both, yes / (yes + no), rtol=1e-5, atol=1e-7)
    with pytest.raises(DataError, match="against itself"):
        scorer.score(pictures, TEXTS, reduction="yes_no", other_answer="Yes")


def test_visualgpt_is_the_captions_own_likelihood(tmp_path: Path) -> None:
    """Against the training loss of the same row, which knows nothing of scores."""
    (picture,) = write_pictures(tmp_path, 1)
    model, processor = lively_model("llama"), processor_of("llama")
    found = Scorer(make_backend(model, processor, "visualgpt")).score(picture, TEXTS[1])
    record = prompt_record(picture, "<image>\n")
    answered = type(record)("x", record.images, (record.turns[0], type(record.turns[1])("assistant", TEXTS[1])))
    with torch.no_grad():
        loss = model(processor([answered]))["lm"]
    assert found.item() == pytest.approx(math.exp(-loss.sum.item() / loss.count), rel=1e-5)


def test_head_rows_share_the_probability(tmp_path: Path) -> None:
    pictures, backend = write_pictures(tmp_path, 1), backend_of("t5")
    all_rows, fewer = (Scorer(backend).score(pictures, TEXTS, head_rows=rows) for rows in (600, 300))
    assert (fewer > all_rows).all() and backend.describe()["head_rows"] == 600
    with pytest.raises(SettingsError, match="has the token 85"):
        Scorer(backend).score(pictures, TEXTS, head_rows=80)


def test_options_are_ranked_per_question(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, 2)
    for family in ("t5", "llama"):
        scorer = Scorer(make_backend(lively_model(family), processor_of(family), "options"), batch_size=2)
        samples = [
            {"image": pictures[0], "question": "What is it?", "options": ["a dog", "a bus", "two cats"]},
            {"image": pictures[1], "question": "Is it a bus?", "options": ["yes", "no"]},
        ]
        rankings = rank_options(scorer, samples)
        for sample, ranking in zip(samples, rankings, strict=True):
            alone = scorer.score(sample["image"], sample["options"], question_template=sample["question"])[0]
            torch.testing.assert_close(torch.tensor(ranking.scores), alone, rtol=1e-5, atol=1e-5)
            assert sum(ranking.probabilities) == pytest.approx(1, abs=1e-5)
            assert ranking.best == sample["options"][int(alone.argmax())]
    with pytest.raises(DataError, match="sample 1: has no question"):
        rank_options(scorer, [{"image": pictures[0], "options": ["a"]}])
    for options in ([], "yes"):
        with pytest.raises(DataError, match="sample 1: expected a list of options"):
            rank_options(scorer, [{"image": pictures[0], "question": "Is it?", "options": options}])
    with pytest.raises(SettingsError, match="kind 'options'"):
        rank_options(Scorer(backend_of("itm")), samples)


def test_first_stage_scores_are_those_of_the_model(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path, 3)
    model, processor = first_stage()
    pixels = torch.stack([processor.transform(load_image(path)) for path in pictures])
    ids, mask = processor.texts(TEXTS[:3])
    batch = QFormerBatch(ids, mask, torch.arange(3), pixel_values=pixels)
    expected = {"itm": itm_logits(model, batch).softmax(1)[:, 1], "itc": itc_scores(model, batch)}
    for kind, values in expected.items():
        table = Scorer(backend_of(kind)).score(pictures, TEXTS[:3])
        print(f"parity {kind}: {(table.diagonal() - values).abs().max():.1e}")
        torch.testing.assert_close(table.diagonal(), values, rtol=0, atol=CLOSE)


def test_parity_clip_with_transformers(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    folder, pictures = save_clip(tmp_path / "clip"), write_pictures(tmp_path / "pictures")
    model = CLIPModel.from_pretrained(folder).eval()
    images = [Image.open(path).convert("RGB") for path in pictures]
    inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    words = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=words["input_ids"], attention_mask=words["attention_mask"], **inputs)
    expected = out.logits_per_image / model.logit_scale.exp()
    scorer = load_scorer(folder, batch_size=3)
    assert scorer.backend.kind == "clip"
    found = scorer(images=pictures, texts=TEXTS)
    print(f"parity CLIPScore: {(found - expected).abs().max():.1e}")
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)
    percent, clipscore = (scorer(pictures, TEXTS, scale=scale) for scale in ("percent", "clipscore"))
    torch.testing.assert_close(percent, 100 * expected.clamp(min=0), rtol=0, atol=1e-4)
    torch.testing.assert_close(clipscore, 2.5 * expected.clamp(min=0), rtol=0, atol=1e-5)
    assert (scorer(pictures, TEXTS, prompt="a photo of {}") - found).abs().max() > 1e-4


def test_parity_siglip_with_transformers(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

    folder, pictures = save_siglip(tmp_path / "siglip"), write_pictures(tmp_path / "pictures")
    model = SiglipModel.from_pretrained(folder).eval()
    images = [Image.open(path).convert("RGB") for path in pictures]
    inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=words["input_ids"], **inputs)
    expected = (out.logits_per_image - model.logit_bias) / model.logit_scale.exp()
    found = load_scorer(folder, batch_size=3).score(pictures, TEXTS)
    print(f"parity SigLIP: {(found - expected).abs().max():.1e}")
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", ["t5", "llama", "itm", "itc", "clip"])
def test_gradients_reach_the_pixels(name: str, tmp_path: Path) -> None:
    """Against finite differences, in float64."""
    backend = load_clip(str(save_clip(tmp_path)), "cpu", torch.float64) if name == "clip" else backend_of(name)
    backend.model.double()  # type: ignore[attr-defined]
    try:
        scorer = Scorer(backend, batch_size=2)
        settings = {"reduction": "mean"} if name in ("t5", "llama") else {}
        pixels = torch.rand(2, 3, 33, 28, dtype=torch.float64) * 0.8 + 0.1
        pixels.requires_grad_()
        table = scorer.score(pixels, TEXTS[:3], differentiable=True, **settings)
        assert table.shape == (2, 3)
        (gradient,) = torch.autograd.grad(table[1, 2], pixels)
        assert (gradient[0] == 0).all() and gradient[1].abs().max() > 0
        step = gradient[1] / gradient[1].norm() * 1e-3  # steepest: norms and softmaxes of these models are in float32
        with torch.no_grad():
            moved = [pixels.detach() + sign * torch.stack([torch.zeros_like(step), step]) for sign in (1, -1)]
        ends = [scorer.score(end, TEXTS[:3], differentiable=True, **settings)[1, 2].item() for end in moved]
        expected = (gradient[1] * step).sum().item()
        print(f"{name}: slope {expected:.6e}, measured {(ends[0] - ends[1]) / 2:.6e}")
        assert (ends[0] - ends[1]) / 2 == pytest.approx(expected, rel=1e-2)
    finally:
        backend.model.float()  # type: ignore[attr-defined]


@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
def test_fitted_pixels_are_near_those_of_a_file(fit: str) -> None:
    ramp = np.linspace(0, 255, 60 * 40 * 3).reshape(60, 40, 3).astype(np.uint8)
    settings = ImageSettings(size=28, fit=fit)  # type: ignore[arg-type]
    ours = fit_pixels(torch.from_numpy(ramp).permute(2, 0, 1)[None] / 255, settings)[0]
    exact = ImageTransform(settings)(Image.fromarray(ramp))
    assert ((ours - exact).abs() * torch.tensor(settings.std).view(3, 1, 1) * 255).max() <= 2


def test_scores_are_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, backend, store = write_pictures(tmp_path / "a"), backend_of("t5"), tmp_path / "scores.sqlite"
    scorer = Scorer(backend, store=store, batch_size=2)
    first = scorer.score(pictures, TEXTS, trace=True)
    moved = write_pictures(tmp_path / "elsewhere")
    monkeypatch.setattr(type(backend), "encode", lambda *_: pytest.fail("nothing is left to compute"))
    again = scorer.score(moved, TEXTS, trace=True)
    assert torch.equal(first.values, again.values) and first.tokens == again.tokens
    for changed in ({"answer_template": "yes"}, {"reduction": "product"}, {"answer_eos": False}):
        with pytest.raises(pytest.fail.Exception):
            scorer.score(moved, TEXTS, **changed)
    with pytest.raises(pytest.fail.Exception):
        scorer.score([np.zeros((4, 4, 3), np.uint8)], TEXTS)
    runs = [json.loads(text) for (text,) in sqlite3.connect(store).execute("SELECT description FROM runs")]
    assert len(runs) == 4
    described = next(run for run in runs if run["answer_template"] == "Yes" and run["answer_eos"])
    assert described["prompt"]["template"] == "t5_v1" and described["weights"]


def test_kept_scores_are_not_another_models(tmp_path: Path) -> None:
    pictures, store = write_pictures(tmp_path / "a", 1), tmp_path / "scores.sqlite"
    tables = [Scorer(backend_of(name), store=store).score(pictures, TEXTS) for name in ("t5", "llama", "gpt2")]
    again = [Scorer(backend_of(name), store=store).score(pictures, TEXTS) for name in ("t5", "llama", "gpt2")]
    assert all(torch.equal(one, other) for one, other in zip(tables, again, strict=True))
    backend = backend_of("gpt2")
    weight = backend.model.language_model.model.get_input_embeddings().weight  # type: ignore[attr-defined]
    with torch.no_grad():
        weight.mul_(1.01)
        changed = Scorer(backend, store=store).score(pictures, TEXTS)
        weight.div_(1.01)
    assert not torch.equal(changed, tables[2])


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, backend, store = write_pictures(tmp_path / "a"), backend_of("llama"), tmp_path / "scores.sqlite"
    whole = Scorer(backend).score(pictures, TEXTS)
    done, chunk = [], type(backend)._chunk  # type: ignore[attr-defined]

    def killed(self: object, batch: list, logprobs: list) -> object:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(batch)
        return chunk(self, batch, logprobs)

    monkeypatch.setattr(type(backend), "_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        Scorer(backend, store=store, batch_size=2).score(pictures, TEXTS)
    computed: list = []
    monkeypatch.setattr(
        type(backend), "_chunk", lambda self, batch, logprobs: computed.extend(batch) or chunk(self, batch, logprobs)
    )
    resumed = Scorer(backend, store=store, batch_size=2).score(pictures, TEXTS)
    assert len(computed) == 20 - sum(len(batch) for batch in done) and len(done) == 3
    torch.testing.assert_close(resumed, whole, rtol=1e-5, atol=1e-8)


def test_a_damaged_store_is_told_and_a_damaged_score_is_made_again(tmp_path: Path) -> None:
    pictures, backend, store = write_pictures(tmp_path / "a", 1), backend_of("t5"), tmp_path / "scores.sqlite"
    first = Scorer(backend, store=store).score(pictures, TEXTS)
    file = sqlite3.connect(store)
    file.execute("UPDATE scores SET tokens = '[[1]'")
    file.commit()
    assert torch.equal(Scorer(backend, store=store).score(pictures, TEXTS), first)
    store.write_bytes(b"not a database, but precious all the same" * 20)
    with pytest.raises(SettingsError, match=r"scores\.sqlite: cannot keep scores"):
        Scorer(backend, store=store).score(pictures, TEXTS)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE scores (a)")
    other.commit()
    with pytest.raises(SettingsError, match="another program"):
        Scorer(backend, store=tmp_path / "other.sqlite").score(pictures, TEXTS)


def test_the_record_says_what_was_scored() -> None:
    record = Scorer(backend_of("t5"), "runs/model").record()
    assert record["model"] == "runs/model" and record["kind"] == "vqascore" and record["reduction"] == "geomean"
    assert record["answer_eos"] is True and "{}" in record["question_template"] and record["version"] == 1
    assert json.loads(json.dumps(record)) == record
    assert Scored(0.5).tokens == ()
