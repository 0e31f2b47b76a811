"""Every family: our head and trunk give the model's own logits, and images may enter through embeddings."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import DECODERS, ENCODER_DECODERS, LANGUAGE_MODELS, VOCABULARY, make_batch, tiny_model, widest_difference

from sightbridge.config.model import LanguageModelSettings
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.build import build_language_model
from sightbridge.models.language_model import LanguageModel, check_head


def build(family: str, **changes) -> LanguageModel:
    options = {"model_type": family, **LANGUAGE_MODELS[family], **changes}
    return build_language_model(LanguageModelSettings(config=options))


@pytest.mark.parametrize("family", DECODERS)
def test_parity_decoder_logits(family: str) -> None:
    ours = build(family)
    ids = torch.randint(3, VOCABULARY, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        mine = ours.head(ours(ours.embed(ids), mask))
        theirs = ours.model(input_ids=ids, attention_mask=mask).logits
    difference = widest_difference(mine[mask.bool()], theirs[mask.bool()])
    print(f"parity {family}: {difference:.2e} of {theirs.abs().max():.2f}")
    assert difference <= 1e-5


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_parity_encoder_decoder_logits(family: str) -> None:
    ours = build(family)
    ids, labels = torch.randint(3, VOCABULARY, (2, 7)), torch.randint(3, VOCABULARY, (2, 4))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels[0, 2:] = -100
    with torch.no_grad():
        mine = ours.head(ours(ours.embed(ids), mask, ours.decoder_input_ids(labels)))
        theirs = ours.model(input_ids=ids, attention_mask=mask, labels=labels).logits
    difference = widest_difference(mine, theirs)
    print(f"parity {family}: {difference:.2e} of {theirs.abs().max():.2f}")
    assert difference <= 1e-5


def test_original_t5_is_tied_and_scaled() -> None:
    ours = build("t5", tie_word_embeddings=True)
    assert not ours.has_own_head
    hidden = torch.randn(3, 16)
    expected = (hidden * 16**-0.5) @ ours.model.shared.weight.T
    assert torch.allclose(ours.head(hidden), expected, atol=1e-6)
    ours.assert_heads_untied()


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
def test_a_random_t5_has_a_head_of_its_own_and_one_embedding_table(family: str) -> None:
    model = build(family).model
    assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
    assert model.encoder.embed_tokens.weight.data_ptr() == model.shared.weight.data_ptr()
    assert model.decoder.embed_tokens.weight.data_ptr() == model.shared.weight.data_ptr()


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_heads_stay_untied_through_state_dict_tie_weights_and_reload(family: str, tmp_path) -> None:
    first, second = build(family), build(family)
    torch.nn.init.normal_(first.model.lm_head.weight)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.model.tie_weights()
    second.model.save_pretrained(tmp_path)
    third = build_language_model(LanguageModelSettings(source=str(tmp_path)))
    for model in (second, third):
        model.assert_heads_untied()
        assert torch.equal(model.model.lm_head.weight, first.model.lm_head.weight)
        assert torch.equal(model.model.shared.weight, first.model.shared.weight)
        assert torch.equal(model.model.decoder.embed_tokens.weight, first.model.shared.weight)
    third.model.tie_weights()
    third.assert_heads_untied()
    third.model.save_pretrained(tmp_path / "again")
    fourth = build_language_model(LanguageModelSettings(source=str(tmp_path / "again")))
    assert torch.equal(fourth.model.lm_head.weight, first.model.lm_head.weight)


def test_an_overwritten_head_is_noticed() -> None:
    ours = build("mt5")
    ours.model.config.tie_word_embeddings = True
    ours.model.tie_weights()
    with pytest.raises(CheckpointError, match="overwritten by its input embeddings"):
        ours.assert_heads_untied()


def test_an_unknown_change_to_the_logits_is_refused(monkeypatch) -> None:
    ours = build("llama")
    check_head(ours)
    own_forward = ours.model.forward

    def doubled(**inputs):
        output = own_forward(**inputs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(ours.model, "forward", doubled)
    with pytest.raises(SettingsError, match="'llama' change their logits"):
        check_head(ours)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_gradients_reach_the_connector_through_every_family(family: str) -> None:
    model = tiny_model(family)
    model.language_model.requires_grad_(False)
    loss = model(make_batch(model, [(1, 1, 6), (2, 0, 5)]))["lm"]
    loss.sum.backward()
    assert loss.count == 6
    for name, parameter in model.connector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", ["gemma", "gemma2", "granite", "llama"])
def test_image_tokens_enter_the_first_layer_at_the_connectors_scale(family: str) -> None:
    model = tiny_model(family)
    batch = make_batch(model, [(1, 1, 6)])
    seen = []
    model.language_model.model.base_model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.logits(batch)
        tokens = model.connect(model.encode_images(batch.pixel_values))
    assert torch.allclose(seen[0][batch.image_slots], tokens[0], atol=1e-6)


def test_phases_of_positions_follow_the_mask() -> None:
    from sightbridge.models.language_model import positions_from_mask

    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions_from_mask(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
