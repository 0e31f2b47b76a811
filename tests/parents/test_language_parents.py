"""Language parents: phrases in slots, the mimetic start, accuracy, and a few steps of either recipe."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_parents import LANGUAGE_PARENTS, read_little, reader_of, small_recipe, texts_of, tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from sightbridge.batch import IGNORE_INDEX
from sightbridge.config.model import LanguageModelSettings
from sightbridge.models.build import build_language_model
from sightbridge.parents.language import (
    answer_accuracy,
    learn_dictionary,
    start_by_matching,
    train_language_parent,
)

AUTO = {"tiny/parent-decoder": AutoModelForCausalLM, "tiny/parent-encdec": AutoModelForSeq2SeqLM}
both = pytest.mark.parametrize("name", LANGUAGE_PARENTS)


@both
def test_a_slot_holds_the_sum_of_its_words(name):
    reader = reader_of(name)
    batch = texts_of(name).batch(random.Random(1), way="phrases")
    table = reader.language_model.model.get_input_embeddings().weight
    embedded, phrases = reader.embed(batch), iter(batch.image_features)
    for row in range(len(batch)):
        for place in range(batch.input_ids.shape[1]):
            if batch.image_slots[row, place]:
                expected = sum(table[word] for word in next(phrases)[0].tolist() if word != 0)
            else:
                expected = table[batch.input_ids[row, place]]
            assert torch.allclose(embedded[row, place], expected, atol=1e-5)
    assert next(phrases, None) is None


@both
def test_the_order_of_words_in_a_phrase_does_not_matter(name):
    reader = reader_of(name)
    batch = texts_of(name).batch(random.Random(1), way="phrases")
    turned = replace(batch, image_features=batch.image_features.flip(-1))
    assert torch.allclose(reader.embed(batch), reader.embed(turned), atol=1e-5)


@both
def test_text_without_phrases_is_ordinary_text(name):
    reader = reader_of(name)
    batch = texts_of(name).batch(random.Random(1), way="caption")
    assert torch.equal(reader.embed(batch), reader.language_model.embed(batch.input_ids))


@pytest.mark.parametrize(("name", "layers"), [("tiny/parent-decoder", 2), ("tiny/parent-encdec", 6)])
def test_every_attention_starts_by_matching(name, layers):
    model = reader_of(name).language_model.model
    random_start = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    start_by_matching(model)
    found = []
    for path, module in model.named_modules():
        weights = [getattr(module, n, None) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
        if weights[0] is None:
            weights = [getattr(module, n, None) for n in ("q", "k", "v", "o")]
        if not isinstance(weights[0], nn.Linear):
            continue
        found.append(path)
        query, key, value, output = (linear.weight for linear in weights)
        assert torch.equal(query, key) and torch.equal(output, 0.5 * value.T)
        square = query @ query.T if len(query) <= query.shape[1] else query.T @ query
        gain = square[0, 0].item()
        assert torch.allclose(square, gain * torch.eye(len(square)), atol=1e-5)
        assert gain == pytest.approx(1.0 if name == "tiny/parent-decoder" else query.shape[0] ** -0.25, rel=1e-4)
    assert len(found) == layers
    if name == "tiny/parent-encdec":
        kinds = [path.rpartition(".")[2] for path in found]
        assert (kinds.count("SelfAttention"), kinds.count("EncDecAttention")) == (4, 2)
    touched = {key for key, value in model.state_dict().items() if not torch.equal(value, random_start[key])}
    assert len(touched) == 4 * layers, "nothing else changes"


def test_words_for_the_same_start_alike():
    table = nn.Embedding(len(tokenizer()), 64)
    before = table.weight.detach().clone()
    learn_dictionary(table, tokenizer())

    def alike(one, other):
        tokens = [tokenizer()(" " + word, add_special_tokens=False).input_ids for word in (one, other)]
        first = [next(i for i in ids if tokenizer().decode([i]).strip()) for ids in tokens]
        assert first[0] != first[1]
        return torch.cosine_similarity(*table.weight[first], dim=0).item()

    for one, other in (("red", "rot"), ("blue", "azul"), ("circle", "Kreis"), ("left", "links"), ("yes", "ja")):
        assert alike(one, other) > 0.9, (one, other)
    for one, other in (("red", "blau"), ("circle", "Stern"), ("left", "rechts"), ("yes", "nein")):
        assert abs(alike(one, other)) < 0.6, (one, other)
    changed = (table.weight != before).any(dim=1)
    assert 30 < changed.sum() < 200 and not changed[:3].any()
    assert table.weight.norm(dim=1)[changed].mean().item() == pytest.approx(before.norm(dim=1).mean().item(), rel=0.2)


class Oracle(nn.Module):
    """A reader that knows every label but those it is told to miss."""

    def __init__(self, encoder_decoder, miss=lambda labels: labels != labels):
        super().__init__()
        self.language_model = SimpleNamespace(is_encoder_decoder=encoder_decoder)
        self.miss = miss

    def logits(self, batch):
        labels = torch.where(self.miss(batch.labels), batch.labels + 1, batch.labels)
        if not self.language_model.is_encoder_decoder:
            labels = torch.cat([labels[:, 1:], labels[:, :1]], dim=1)
        return nn.functional.one_hot(labels.clamp(min=0), len(tokenizer()) + 1).float()


@both
def test_accuracy_counts_whole_answers(name):
    texts, is_encdec = texts_of(name), name == "tiny/parent-encdec"
    ways = {"accuracy/phrases", "accuracy/caption", "accuracy/nothing"}
    assert answer_accuracy(Oracle(is_encdec), texts) == dict.fromkeys(ways, 1.0)
    # every answer ends with </s>: who misses that alone has no answer right
    assert answer_accuracy(Oracle(is_encdec, lambda labels: labels == 2), texts) == dict.fromkeys(ways, 0.0)
    answers = [
        answer
        for index in range(4)
        for row in texts.batch(random.Random(f"held out/phrases/{index}"), way="phrases").labels
        for answer in tokenizer().decode(row[row != IGNORE_INDEX]).split("</s>")[:-1]
    ]
    red = tokenizer()(" red", add_special_tokens=False).input_ids[0]
    missed = answer_accuracy(Oracle(is_encdec, lambda labels: labels == red), texts)["accuracy/phrases"]
    with_red = [red in tokenizer()(answer, add_special_tokens=False).input_ids for answer in answers]
    assert missed == pytest.approx(1 - sum(with_red) / len(answers))


@both
def test_a_recipe_trains_and_writes_an_ordinary_folder(name, tmp_path, monkeypatch):
    read_little(monkeypatch)
    recipe = small_recipe(name, "first_language_steps=2", "drill_steps=2")
    last = train_language_parent(recipe, tmp_path / "one")
    assert {key for key in last if key.startswith("accuracy/")} == {
        "accuracy/phrases",
        "accuracy/caption",
        "accuracy/nothing",
    }
    own = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert own.get_vocab() == tokenizer().get_vocab()
    assert own.decode(own("Where is the red circle?").input_ids) == "Where is the red circle?"
    model, report = AUTO[name].from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.vocab_size == len(own) and model.config.eos_token_id == own.eos_token_id
    source = LanguageModelSettings(source=str(tmp_path / "one"))  # type: ignore[call-arg]
    again = build_language_model(source)
    assert again.is_encoder_decoder == (name == "tiny/parent-encdec")
    assert all(torch.isfinite(parameter).all() for parameter in again.parameters())

    train_language_parent(recipe, tmp_path / "two")
    files = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert files[0] == files[1], "a recipe makes the same parent every time"
