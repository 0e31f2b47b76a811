"""What must not change the result: batch size, padding, cache; and what must not change at all: frozen parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import DECODERS, LANGUAGE_MODELS, QFORMER, make_batch, tiny_model, widest_difference

from sightbridge.batch import IGNORE_INDEX
from sightbridge.config.training import PartsSettings
from sightbridge.errors import DataError
from sightbridge.models.build import part_summary
from sightbridge.models.parts import set_trainable

ROWS = [(1, 1, 6), (2, 2, 4), (3, 0, 9), (4, 1, 4)]
"""Seed, pictures and text tokens of each row."""


def parts(**trained: bool) -> PartsSettings:
    """Settings that train exactly the named parts."""
    names = ("vision_tower", "connector", "language_model")
    return PartsSettings.model_validate(
        {name: {"train": "full" if trained.get(name) else "frozen"} for name in names},
    )


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_rows_do_not_see_each_other(family: str) -> None:
    model = tiny_model(family)
    with torch.no_grad():
        together = model(make_batch(model, ROWS))["lm"]
        alone = [model(make_batch(model, [row]))["lm"] for row in ROWS]
    assert together.count == sum(loss.count for loss in alone) == 12
    assert together.sum.item() == pytest.approx(sum(loss.sum.item() for loss in alone), rel=1e-5)


@pytest.mark.parametrize("family", [family for family in LANGUAGE_MODELS if family != "bart"])  # it counts columns
def test_the_padding_side_does_not_matter(family: str) -> None:
    model = tiny_model(family)
    right, left = (make_batch(model, ROWS, padding, width=30) for padding in ("right", "left"))
    with torch.no_grad():
        logits = [model.logits(batch) for batch in (right, left)]
        sums = [model(batch)["lm"].sum.item() for batch in (right, left)]
    if family in DECODERS:
        logits = [rows[batch.attention_mask.bool()] for rows, batch in zip(logits, (right, left), strict=True)]
    assert widest_difference(*logits) <= 1e-5 * logits[0].abs().max()
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def test_cached_features_equal_pictures() -> None:
    model = tiny_model()
    batch = make_batch(model, ROWS)
    with torch.no_grad():
        features = model.encode_images(batch.pixel_values)
        cached = replace(batch, pixel_values=None, image_features=features)
        assert model(batch)["lm"].sum.item() == model(cached)["lm"].sum.item()


def test_the_right_picture_is_read() -> None:
    model = tiny_model()
    batch = make_batch(model, [(1, 2, 6)])
    with torch.no_grad():
        swapped = model(replace(batch, pixel_values=batch.pixel_values.flip(0)))["lm"]
        assert abs(model(batch)["lm"].sum.item() - swapped.sum.item()) > 1e-4


def test_labels_are_shifted_once() -> None:
    model = tiny_model()
    batch = make_batch(model, ROWS)
    with torch.no_grad():
        logits, loss = model.logits(batch), model(batch)["lm"]
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    assert loss.sum.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_only_the_trained_part_changes(family: str) -> None:
    model = tiny_model(family, connector={"kind": "qformer", **QFORMER})
    set_trainable(model, PartsSettings())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    model(make_batch(model, ROWS))["lm"].sum.backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"connector"}


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    model = tiny_model(connector={"kind": "qformer", **QFORMER})
    set_trainable(model, PartsSettings())
    assert not any(module.training for module in model.modules())
    model.train()
    assert [model.vision_tower.training, model.connector.training, model.language_model.training] == [
        False,
        True,
        False,
    ]
    assert not any(module.training for module in model.language_model.modules())
    set_trainable(model, parts(language_model=True))
    assert [model.vision_tower.training, model.connector.training, model.language_model.training] == [
        False,
        False,
        True,
    ]


def test_summary_counts_what_trains() -> None:
    model = tiny_model("t5")
    set_trainable(model, PartsSettings())
    tower, connector, language_model = part_summary(model)
    assert (tower.what, tower.trained) == ("CLIPVisionModel", 0)
    assert (connector.what, connector.trained) == ("MLPConnector", 32 * 16 + 16 + 16 * 16 + 16)
    assert (language_model.what, language_model.trained) == ("T5ForConditionalGeneration", 0)
    assert connector.parameters == connector.trained
    # One shared embedding table and one head of 61 x 16, counted once each.
    assert language_model.parameters == sum(p.numel() for p in model.language_model.parameters())


def test_a_frozen_tower_leaves_no_graph() -> None:
    model = tiny_model()
    pictures = torch.randn(1, 3, 28, 28)
    assert model.encode_images(pictures).requires_grad
    set_trainable(model, PartsSettings())
    assert not model.encode_images(pictures).requires_grad


@pytest.mark.parametrize("trained", [("connector",), ("vision_tower", "connector"), ("vision_tower", "language_model")])
def test_text_alone_still_touches_all_that_trains(trained: tuple[str, ...]) -> None:
    model = tiny_model()
    set_trainable(model, parts(**dict.fromkeys(trained, True)))
    model.train()
    batch = make_batch(model, [(3, 0, 9)])
    loss = model(batch)["lm"]
    loss.sum.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None and not name.startswith("language_model"):
            assert parameter.grad.abs().max() == 0, name
    with torch.no_grad():
        assert model.eval()(batch)["lm"].sum.item() == pytest.approx(loss.sum.item(), abs=1e-6)


def test_a_wrong_count_names_the_record() -> None:
    model = tiny_model()
    batch = make_batch(model, ROWS)
    with pytest.raises(DataError, match="Record 'record-2' has 10 image slots, but its 1 picture"):
        model(replace(batch, images_per_row=torch.tensor([1, 1, 0, 1])))


@pytest.mark.parametrize("vision", ["blip_2_vision_model", "siglip_vision_model", "dinov2", "vit"])
def test_every_tower_bridges_to_every_kind_of_language_model(vision: str) -> None:
    for family in ("opt", "mt5"):
        model = tiny_model(family, vision=vision, connector={"kind": "qformer", **QFORMER}, layers=[-2])
        loss = model(make_batch(model, ROWS))["lm"]
        assert torch.isfinite(loss.sum)
        loss.sum.backward()
        assert model.connector.queries.grad.abs().sum() > 0


def test_half_precision_parts_around_a_float32_bridge() -> None:
    model = tiny_model()
    model.vision_tower.bfloat16()
    model.language_model.bfloat16()
    loss = model(make_batch(model, ROWS))["lm"]
    assert loss.sum.dtype == torch.float32
    loss.sum.backward()
    assert next(model.connector.parameters()).grad.dtype == torch.float32
