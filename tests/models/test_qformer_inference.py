"""Matching, similarity, features and captions from a first-stage model."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from qformer_models import SEP, captions, rows_of, tiny_pretraining

from sightbridge.models.qformer import causal_mask
from sightbridge.models.qformer_captioning import generate_captions
from sightbridge.models.qformer_inference import extract_features, itc_scores, itm_logits

BATCH = captions(5, pictures=3)


@pytest.fixture(scope="module")
def model():
    return tiny_pretraining()


def test_a_pair_scores_the_same_alone_and_in_company(model):
    logits, scores = itm_logits(model, BATCH), itc_scores(model, BATCH)
    assert logits.shape == (5, 2) and scores.shape == (5,)
    for row in range(5):
        alone = rows_of(BATCH, [row])
        assert torch.allclose(itm_logits(model, alone)[0], logits[row], atol=1e-5)
        assert torch.allclose(itc_scores(model, alone)[0], scores[row], atol=1e-5)
    assert scores.abs().max() <= 1
    assert logits.std() > 0.05


def test_features(model):
    image, text = extract_features(model, BATCH, "image"), extract_features(model, BATCH, "text")
    both = extract_features(model, BATCH, "multimodal")
    shapes = {name: tuple(value.shape) for name, value in (image | text | both).items()}
    assert shapes == {
        "image_embeds": (3, 6, 32),
        "image_embeds_proj": (3, 6, 16),
        "text_embeds": (5, 9, 32),
        "text_embeds_proj": (5, 9, 16),
        "multimodal_embeds": (5, 6, 32),
    }
    for name in ("image_embeds_proj", "text_embeds_proj"):
        lengths = (image | text)[name].norm(dim=-1)
        assert torch.allclose(lengths, torch.ones_like(lengths))
    first = image["image_embeds_proj"][BATCH.image_index], text["text_embeds_proj"][:, 0]
    similar = torch.stack([(queries @ words).max() for queries, words in zip(*first, strict=True)])
    assert torch.allclose(similar, itc_scores(model, BATCH))
    assert torch.allclose(
        model.qformer.itm_head(both["multimodal_embeds"]).mean(1), itm_logits(model, BATCH), atol=1e-6
    )
    with pytest.raises(ValueError, match="Did you mean 'image'"):
        extract_features(model, BATCH, "images")


def log_probabilities(model, batch, words):
    """Log-probabilities of words (n, T) after [DEC], each given the first picture and the words before; no cache."""
    with torch.no_grad():
        earlier = model.qformer.read_pictures(model.encode_images(batch)).earlier
        first = torch.zeros(len(words), dtype=torch.long)
        ids = torch.cat([torch.full((len(words), 1), model.qformer.decoder_start_id), words[:, :-1]], dim=1)
        mask = causal_mask(torch.ones_like(ids), model.qformer.options.num_queries)
        hidden, _ = model.qformer.continue_text(ids, [part.pick(first) for part in earlier], mask)
        return model.qformer.word_logits(hidden).log_softmax(-1)


def test_greedy_captions_are_the_likeliest_words_in_turn(model):
    written = generate_captions(model, BATCH, end_id=SEP, num_beams=1, max_length=9, min_length=6)
    assert written.shape == (3, 8)
    for row in range(3):
        scores = log_probabilities(model, rows_of(BATCH, [row]), written[[row]])[0]
        scores[:5, SEP] = float("-inf")  # five words after [DEC] before it may end
        assert scores.argmax(-1).tolist() == written[row].tolist()


def test_captions_do_not_depend_on_company(model):
    together = generate_captions(model, BATCH, end_id=SEP, num_beams=3, max_length=8, min_length=3)
    for row in range(3):
        alone = generate_captions(model, rows_of(BATCH, [row]), end_id=SEP, num_beams=3, max_length=8, min_length=3)
        assert alone[0].tolist() == together[row, : alone.shape[1]].tolist()
    assert len({tuple(row) for row in together.tolist()}) > 1


@pytest.mark.parametrize(("length_penalty", "min_length"), [(1.0, 1), (0.0, 1), (2.0, 4)])
def test_beam_search_finds_the_best_of_all_captions(length_penalty, min_length):
    """With as many beams as there are prefixes nothing is missed, so the best can be found by trying everything."""
    vocabulary, length = 5, 4  # [DEC] is 4, so are the most words: [DEC] and three
    batch = replace(captions(2), text_ids=torch.zeros(2, 9, dtype=torch.long))
    found = set()
    for seed in range(4):
        model = tiny_pretraining(seed=seed, text_vocabulary=vocabulary)
        written = generate_captions(
            model,
            batch,
            end_id=SEP,
            num_beams=vocabulary**2,
            max_length=length,
            min_length=min_length,
            length_penalty=length_penalty,
        )
        every = torch.tensor(list(itertools.product(range(vocabulary), repeat=length - 1)))
        scores = log_probabilities(model, batch, every).gather(2, every[..., None])[..., 0]
        best, best_score = [], float("-inf")
        for words, log in zip(every.tolist(), scores.tolist(), strict=True):
            ended = words.index(SEP) + 1 if SEP in words else len(words)
            if ended < min_length and SEP in words:  # counted with [DEC]: held back up to min_length
                continue
            score = sum(log[:ended]) / ended**length_penalty
            if score > best_score:
                best, best_score = words[:ended], score
        assert written[0].tolist() == best + [0] * (written.shape[1] - len(best))
        found.add(len(best))
    assert len(found) > 1 or min_length > 1


def test_captions_really_use_the_cache(model, monkeypatch):
    words, looked = [], []
    monkeypatch.setattr(model.qformer, "continue_text", watched(model.qformer.continue_text, words))
    monkeypatch.setattr(model.qformer, "look", watched(model.qformer.look, looked))
    generate_captions(model, BATCH, end_id=SEP, num_beams=2, max_length=7, min_length=7)
    assert [ids.shape for ids in words] == [(6, 1)] * 6  # two beams of three pictures, one word a step
    assert len(looked) == 1


def watched(method, seen):
    """A method that notes what it is called with first."""

    def call(first, *rest, **options):
        seen.append(first)
        return method(first, *rest, **options)

    return call


def test_a_caption_ends_at_sep_then_padding(model):
    """A head that always says [SEP] once it may."""
    bias = model.qformer.language_head.bias
    with torch.no_grad():
        before = bias[SEP].item()
        bias[SEP] = 100
        written = generate_captions(model, BATCH, end_id=SEP, num_beams=1, max_length=9, min_length=4)
        bias[SEP] = before
    assert written.shape == (3, 4)
    assert written[:, 3].tolist() == [SEP] * 3
    assert (written[:, :3] != SEP).all()
