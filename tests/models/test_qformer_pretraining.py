"""The first-stage model: same losses however it is computed, and what it does in corner cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import widest_difference
from qformer_models import captions, means, rows_of, tiny_pretraining
from torch.nn import functional as F


def losses_and_gradients(model, batch):
    model.zero_grad()
    losses = means(model(batch))
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def assert_same(first, second, tolerance=1e-5):
    assert first[0] == pytest.approx(second[0], abs=tolerance)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        assert widest_difference(gradient, second[1][name]) <= tolerance * max(1.0, gradient.abs().max().item()), name


@pytest.mark.parametrize("train_tower", [False, True])
def test_sharing_keys_and_values_changes_nothing(train_tower):
    batch = captions(5)
    shared = tiny_pretraining(train_tower=train_tower)
    apart = tiny_pretraining(train_tower=train_tower, share_cross_attention=False)
    first = losses_and_gradients(shared, batch)
    assert_same(first, losses_and_gradients(apart, batch))
    assert any("vision_tower" in name for name in first[1]) == train_tower
    trained = {name for name, parameter in shared.named_parameters() if parameter.requires_grad}
    assert set(first[1]) == trained  # nothing that trains is left out


def test_counts_are_those_known_before_the_forward_pass():
    batch = captions(4, pictures=3)
    with torch.no_grad():
        losses = tiny_pretraining()(batch)
    assert {name: loss.count for name, loss in losses.items()} == batch.loss_counts


def test_captions_that_share_a_picture():
    """As if the picture came once for every caption, with an id that says that it is the same."""
    batch = captions(6, pictures=3)
    repeated = replace(
        batch,
        image_index=torch.arange(6),
        pixel_values=batch.pixel_values[batch.image_index],
        image_ids=torch.tensor([11, 5, 7, 11, 5, 7]),
    )
    model = tiny_pretraining()
    assert_same(losses_and_gradients(model, batch), losses_and_gradients(model, repeated))
    # Without the ids the contrastive loss stays what it was (equal pictures have equal logits), but a picture's other
    # caption is taken for its hardest false one.
    apart = losses_and_gradients(model, replace(repeated, image_ids=None))[0]
    assert abs(apart["itm"] - losses_and_gradients(model, batch)[0]["itm"]) > 1e-3


@torch.no_grad()
def test_padding_and_features_made_beforehand_change_nothing():
    model, batch = tiny_pretraining(), captions(4)
    expected = means(model(batch))
    padded = replace(batch, text_ids=F.pad(batch.text_ids, (0, 3), value=9), text_mask=F.pad(batch.text_mask, (0, 3)))
    features = replace(batch, pixel_values=None, image_features=model.encode_images(batch))
    for other in (padded, features):
        for name, loss in means(model(other)).items():
            assert abs(loss - expected[name]) < 1e-5, name


def test_one_row_has_no_negatives():
    model, batch = tiny_pretraining(hard_negatives="sample"), rows_of(captions(3), [1])
    losses, gradients = losses_and_gradients(model, batch)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    with torch.no_grad():
        look = model.qformer.look(model.encode_images(batch))
        logits = model.qformer.match_logits(look, batch.text_ids, batch.text_mask)
        true_pair = F.cross_entropy(logits, torch.tensor([1]))
    assert losses["itc"] == pytest.approx(0, abs=1e-6)  # one text to choose from
    assert losses["itm"] == pytest.approx(true_pair.item() / 3, abs=1e-6)
    one_picture = replace(captions(3), image_ids=torch.zeros(3, dtype=torch.long))
    assert all(loss == loss for loss in losses_and_gradients(model, one_picture)[0].values())


def test_false_pairs_never_have_the_same_picture(monkeypatch):
    from sightbridge.models import qformer_pretraining

    drawn = []
    draw = qformer_pretraining.draw_negatives

    def watch(logits, same, hardest):
        chosen, exists = draw(logits, same, hardest)
        drawn.append(chosen)
        return chosen, exists

    monkeypatch.setattr(qformer_pretraining, "draw_negatives", watch)
    model = tiny_pretraining(hard_negatives="sample")
    ids = torch.tensor([1, 2, 1, 1, 2])
    batch = replace(captions(5), image_ids=ids)
    with torch.no_grad():
        for _ in range(10):
            model(batch)
    assert all((ids[chosen] != ids).all() for chosen in drawn)
    assert len({tuple(chosen.tolist()) for chosen in drawn}) > 5


def test_gradient_checkpointing_keeps_every_loss_and_gradient():
    """Also the captioning loss, which needs the queries' keys and values; and with the same dropout."""
    batch = captions(4)
    model = tiny_pretraining(dropout=0.2, hard_negatives="sample").train()
    torch.manual_seed(5)
    plain = losses_and_gradients(model, batch)
    torch.manual_seed(6)
    assert losses_and_gradients(model, batch)[0]["itg"] != pytest.approx(plain[0]["itg"], abs=1e-4)
    model.qformer.qformer.activation_checkpointing_enable()
    calls = []
    layer = model.qformer.qformer.encoder.layer[0]
    layer.attention.register_forward_hook(lambda *_: calls.append(1))
    layer.intermediate.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(5)
    assert_same(plain, losses_and_gradients(model, batch))
    assert len(calls) == 6  # text, pairs and captions pass the text's feed-forward, each once more backward


def test_weights_of_the_losses():
    batch = captions(4)
    with torch.no_grad():
        plain = means(tiny_pretraining()(batch))
        weighted = means(tiny_pretraining(itc_weight=2.0, itm_weight=0.5, itg_weight=0.0)(batch))
    assert [(weighted[name] / plain[name]).item() for name in plain] == pytest.approx([2.0, 0.5, 0.0])


def test_frozen_tower_stays_in_evaluation_mode():
    model = tiny_pretraining().train()
    assert model.qformer.training and not model.vision_tower.training
    assert model.frozen_prefix() == "tower"
    assert tiny_pretraining(train_tower=True).frozen_prefix() is None


def test_bfloat16_autocast_keeps_the_losses_near():
    model, batch = tiny_pretraining(), captions(4)
    with torch.no_grad():
        exact = means(model(batch))
        with torch.autocast("cpu", torch.bfloat16):
            near = means(model(batch))
    for name, loss in near.items():
        assert loss.dtype == torch.float32, name
        assert abs(loss - exact[name]) < 0.2, name
