"""Stage 1 against values recorded with LAVIS: three losses, logits and every gradient."""

from __future__ import annotations

import pytest
import torch
from builders import widest_difference
from qformer_models import GOLDEN, golden_batch, golden_model, means, our_name

from sightbridge.models import qformer_pretraining
from sightbridge.models.qformer import causal_mask

LAVIS_LOSSES = {"itc": "loss_itc", "itm": "loss_itm", "itg": "loss_lm"}


@pytest.fixture(scope="module")
def golden():
    return torch.load(GOLDEN, weights_only=True)


@pytest.mark.parametrize("share", [True, False])
def test_parity_lavis_stage1(golden, share):
    model, batch = golden_model(golden, share_cross_attention=share), golden_batch(golden)
    losses = means(model(batch))
    off = {name: abs(losses[name].item() - golden[theirs].item()) for name, theirs in LAVIS_LOSSES.items()}
    total = sum(losses.values())
    off["total"] = abs(total.item() - golden["loss"].item())
    total.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    theirs = {our_name(key): norm for key, norm in golden["grad_norms"].items()}
    assert set(theirs) == set(ours)  # LAVIS trains exactly what we train
    # A key's bias shifts a row of scores evenly: its gradient is zero but for rounding, hence the floor.
    gradients = {name: abs(ours[name].norm().item() - norm) / max(norm, 0.05) for name, norm in theirs.items()}
    worst = max(gradients, key=gradients.__getitem__)
    print(f"parity LAVIS stage 1, shared={share}: {off}; gradient norms {gradients[worst]:.1e} ({worst})")
    assert max(off.values()) <= 2e-5
    assert gradients[worst] <= 2e-5


def test_parity_lavis_stage1_pairs_and_words(golden, monkeypatch):
    model, batch = golden_model(golden), golden_batch(golden)
    drawn, matched = [], []
    draw, head = qformer_pretraining.draw_negatives, model.qformer.itm_head
    monkeypatch.setattr(
        qformer_pretraining, "draw_negatives", lambda *given: drawn.append(draw(*given)[0].tolist()) or draw(*given)
    )
    head.register_forward_hook(lambda module, given, output: matched.append(output))
    with torch.no_grad():
        model(batch)
        pictures = model.qformer.read_pictures(model.encode_images(batch))
        ids = batch.text_ids.clone()
        ids[:, 0] = model.qformer.decoder_start_id
        hidden, _ = model.qformer.continue_text(ids, pictures.earlier, causal_mask(batch.text_mask, 6))
        words = model.qformer.word_logits(hidden)
    assert drawn == [golden["neg_image_idx_for_text"], golden["neg_text_idx_for_image"]]
    real = batch.text_mask.bool()
    gaps = (
        widest_difference(matched[0], golden["itm_tokens"]),
        widest_difference(words[real], golden["lm_logits"][real]),
    )
    print(f"parity LAVIS stage 1: matching logits {gaps[0]:.1e}, word logits {gaps[1]:.1e}")
    assert max(gaps) <= 2e-5
