"""A Q-Former that starts as a BERT."""

import pytest
import torch
from builders import widest_difference
from qformer_models import options
from transformers import BertConfig, BertForMaskedLM, BertModel, LlamaConfig, LlamaForCausalLM

from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.qformer import key_mask
from sightbridge.models.qformer_bert import load_bert
from sightbridge.models.qformer_pretraining import QFormerForPretraining

CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    initializer_range=0.2,
)


def fresh(**changes):
    return QFormerForPretraining(options(**changes), in_channels=24).eval()


@pytest.fixture
def bert(tmp_path):
    model = BertForMaskedLM(CONFIG).eval()
    with torch.no_grad():  # token types are the one thing that a Q-Former has not
        model.bert.embeddings.token_type_embeddings.weight.zero_()
        model.cls.predictions.bias.normal_()
    model.save_pretrained(tmp_path / "bert")
    return model, str(tmp_path / "bert")


@torch.no_grad()
def test_parity_text_branch_and_head_are_berts(bert):
    model, folder = bert
    ours = fresh()
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    report = load_bert(ours, folder)
    ids, mask = torch.randint(0, 40, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    hidden, _ = ours.qformer(ours.embeddings(ids), 0, key_mask(mask))
    expected = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    gap = widest_difference(ours.word_logits(hidden)[..., :40][mask.bool()], expected)
    print(f"parity BertForMaskedLM: {gap:.1e} of {expected.abs().max():.1f}")
    assert gap <= 1e-5

    after = ours.state_dict()
    for name in report.copied:
        assert torch.equal(after[name], after[name.replace("_query.", ".")])
    assert {name for name in before if not torch.equal(before[name], after[name])} <= {*report.taken, *report.copied}
    assert report.unused == ["bert.embeddings.token_type_embeddings.weight"]
    assert {*report.taken, *report.copied, *report.fresh} == {name for name, _ in ours.named_parameters()}
    fresh_kinds = {"crossattention" if "crossattention" in name else name.split(".")[0] for name in report.fresh}
    rest = {"queries", "input_norm", "vision_projection", "text_projection", "itm_head", "temperature"}
    assert fresh_kinds == rest | {"crossattention"}


@torch.no_grad()
def test_the_word_that_bert_has_not(bert):
    model, folder = bert
    ours = fresh()
    dec = ours.embeddings.word_embeddings.weight[-1].clone()
    load_bert(ours, folder)
    words = ours.embeddings.word_embeddings.weight
    assert torch.equal(words[:40], model.bert.embeddings.word_embeddings.weight)
    assert torch.equal(words[-1], dec)
    assert 0.005 < dec.std() < 0.05
    assert torch.equal(ours.language_head.bias, torch.cat([model.cls.predictions.bias, torch.zeros(1)]))


@pytest.mark.parametrize(
    ("changes", "message", "key"),
    [
        ({"text_vocabulary": 40}, r"text_vocabulary 40 \(BERT needs 41\)", "model.qformer.text_vocabulary"),
        ({"num_layers": 2}, r"num_layers 2 \(BERT needs 4\)", "model.qformer.num_layers"),
        ({"text_positions": 128}, r"text_positions 128 \(BERT needs 64\)", "model.qformer.text_positions"),
    ],
)
def test_other_sizes_are_refused(bert, changes, message, key):
    with pytest.raises(SettingsError, match=message) as caught:
        load_bert(fresh(**changes), bert[1])
    assert caught.value.key == key


def test_other_models_are_refused(tmp_path):
    LlamaForCausalLM(
        LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    ).save_pretrained(tmp_path / "llama")
    with pytest.raises(SettingsError, match="is a 'llama'"):
        load_bert(fresh(), str(tmp_path / "llama"))
    BertModel(CONFIG).save_pretrained(tmp_path / "headless")
    with pytest.raises(CheckpointError, match=r"lacks .* masked-language-model head"):
        load_bert(fresh(), str(tmp_path / "headless"))
    with pytest.raises(CheckpointError, match="no folder here"):
        load_bert(fresh(), str(tmp_path / "nowhere"))
