"""Packed rows: every record gives the logits, loss and gradients that it gives in a row of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import LANGUAGE_MODELS, make_batch, tiny_model, widest_difference
from transformers import AutoConfig

from sightbridge.batch import IGNORE_INDEX, Batch
from sightbridge.errors import SettingsError
from sightbridge.models.segments import PACKABLE, block_mask, check_packing, positions_from_segments
from sightbridge.models.vlm import VisionLanguageModel

ROWS = [(1, 1, 6), (2, 0, 5), (3, 2, 9), (4, 1, 4), (5, 0, 12)]
BINS = [[0, 1], [2], [3, 4]]


def pack(batch: Batch, encoder_decoder: bool) -> Batch:
    """The rows of a right-padded batch joined as ``BINS`` says (pictures are in their order already)."""
    lengths = batch.attention_mask.sum(dim=1).tolist()
    labels = batch.labels
    assert labels is not None

    def join(rows: torch.Tensor, ends: list[int], padding: int) -> torch.Tensor:
        joined = [torch.cat([rows[r, : ends[r]] for r in members]) for members in BINS]
        return torch.nn.utils.rnn.pad_sequence(joined, batch_first=True, padding_value=padding)

    numbers = torch.zeros_like(batch.input_ids) + torch.tensor([1, 2, 1, 1, 2])[:, None]
    decoder_ends = (labels != IGNORE_INDEX).sum(dim=1).tolist() if encoder_decoder else lengths
    return replace(
        batch,
        input_ids=join(batch.input_ids, lengths, 0),
        attention_mask=join(batch.attention_mask, lengths, 0),
        image_slots=join(batch.image_slots.long(), lengths, 0).bool(),
        images_per_row=torch.tensor([1, 2, 1]),
        labels=join(labels, decoder_ends, IGNORE_INDEX),
        segments=join(numbers, lengths, 0),
        decoder_segments=join(numbers, decoder_ends, 0) if encoder_decoder else None,
    )


def lively_model(family: str) -> VisionLanguageModel:
    """A tiny model whose attention matters: some families start with weights so small that it does not."""
    model = tiny_model(family)
    if family in ("bart", "bloom", "gpt2", "opt"):
        for parameter in model.language_model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def with_uneven_answers(batch: Batch) -> Batch:
    """Answers of an encoder-decoder of different lengths: 3, 2, 3, 1, 3."""
    assert batch.labels is not None
    labels = batch.labels.clone()
    labels[1, 2:] = labels[3, 1:] = IGNORE_INDEX
    return replace(batch, labels=labels, n_target_tokens=12)


@pytest.mark.parametrize("family", PACKABLE)
def test_parity_packed_and_unpacked(family: str) -> None:
    model = lively_model(family)
    encoder_decoder = model.language_model.is_encoder_decoder
    alone = make_batch(model, ROWS)
    if encoder_decoder:
        alone = with_uneven_answers(alone)
    packed = pack(alone, encoder_decoder)
    assert alone.labels is not None and packed.labels is not None
    losses, gradients = [], []
    for batch in (alone, packed):
        model.zero_grad()
        loss = model(batch)["lm"]
        loss.sum.backward()
        losses.append(loss)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0].count == losses[1].count == packed.n_target_tokens
    assert len(packed) == len(alone) == 5
    with torch.no_grad():
        logits = model.logits(alone), model.logits(packed)
    real = [
        batch.labels != IGNORE_INDEX if encoder_decoder else batch.attention_mask.bool() for batch in (alone, packed)
    ]
    differences = {
        "logits": widest_difference(logits[0][real[0]], logits[1][real[1]]),
        "loss": abs(losses[0].sum - losses[1].sum).item() / losses[0].count,
        "gradients": max(widest_difference(gradients[0][name], gradients[1][name]) for name in gradients[0]),
    }
    with torch.no_grad():
        leaking = model.logits(replace(packed, segments=None, decoder_segments=None))
    leak = widest_difference(logits[1][real[1]], leaking[real[1]])
    told = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    print(f"parity of packed rows, {family}: {told} (without segments: logits {leak:.1e})")
    assert leak > 1e-2, "this test would not notice records that see each other"
    largest = max(gradient.abs().max().item() for gradient in gradients[0].values())
    assert gradients[0].keys() == gradients[1].keys()
    assert differences["logits"] <= 1e-5 and differences["loss"] <= 1e-5
    assert differences["gradients"] <= 1e-5 * max(1.0, largest)


@pytest.mark.parametrize("family", ["llama", "bloom", "t5"])
def test_packed_rows_train_in_bfloat16(family: str) -> None:
    model = tiny_model(family)
    batch = pack(make_batch(model, ROWS), model.language_model.is_encoder_decoder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(batch)["lm"]
    loss.sum.backward()
    assert all(p.grad.isfinite().all() for p in model.connector.parameters())
    assert (loss.sum - model(batch)["lm"].sum).abs() < 0.05 * loss.sum


def test_the_bias_of_bloom_is_its_own_again_afterwards() -> None:
    model = lively_model("bloom")
    alone = make_batch(model, ROWS)
    with torch.no_grad():
        before = model.logits(alone)
        model.logits(pack(alone, False))
        assert torch.equal(model.logits(alone), before)


def test_masks_and_positions_by_hand() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 2, 0, 0], [1, 2, 3, 3, 0, 0, 0]])
    assert positions_from_segments(segments).tolist() == [[0, 1, 0, 1, 2, 0, 1], [0, 0, 0, 1, 0, 1, 2]]
    sees = block_mask(segments[:1, :6], segments[:1, :6], torch.float32, causal=True)[0, 0] == 0
    expected = ["100000", "110000", "001000", "001100", "001110", "111111"]
    assert ["".join(str(int(s)) for s in row) for row in sees] == expected
    across = block_mask(torch.tensor([[1, 2, 0]]), torch.tensor([[1, 1, 2]]), torch.float32)[0, 0] == 0
    assert across.tolist() == [[True, True, False], [False, False, True], [True, True, True]]


def test_families_that_cannot_be_packed_are_refused() -> None:
    def config(family: str, **changes):
        return AutoConfig.for_model(family, **LANGUAGE_MODELS[family], **changes)

    with pytest.raises(SettingsError, match="type 'bart', which counts positions through the whole row") as error:
        check_packing(config("bart"), 128)
    assert error.value.key == "data.pack"
    check_packing(config("mistral", sliding_window=None), 100_000)
    check_packing(config("mistral", sliding_window=128), 128)
    with pytest.raises(SettingsError, match=r"130 positions .* longer than the 128 .*max_length=128"):
        check_packing(config("mistral", sliding_window=128), 130)


def test_bart_would_be_wrong() -> None:
    """Why it is refused: its stacks count columns, so a second record begins at a position that is not 0."""
    model = lively_model("bart")
    alone = with_uneven_answers(make_batch(model, ROWS))
    with torch.no_grad():
        losses = [model(batch)["lm"].sum for batch in (alone, pack(alone, True))]
    assert not torch.allclose(*losses, rtol=1e-3)
