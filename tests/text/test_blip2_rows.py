"""Ids and labels of BLIP-2's second stage, captions and questions, position by position as LAVIS makes them.

The tokenizers are made the way the released ones are: OPT's is GPT-2's byte-level BPE that writes ``</s>`` in front and
nothing behind, FlanT5's is a unigram model that writes ``</s>`` behind.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from text_tokenizers import golden_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from sightbridge.errors import SettingsError
from sightbridge.text.encode import Encoded, encode
from sightbridge.text.render import render
from sightbridge.text.template import load_template
from sightbridge.text.turns import Turn

QUERIES = 3
CAPTION = "a red cup on a table"


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("opt")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["a photo of a red cup on a table\n", "Question: what is it? Answer: Short answer: a cup\n"]
    tokenizer.train_from_iterator(texts * 5, trainer)
    tokenizer.model.save(str(folder))
    marks = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    config = {**marks, "add_prefix_space": False, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


def row(tokenizer: Any, template: str, user: str, answer: str | None = CAPTION, **options: Any) -> Encoded:
    turns = [Turn("user", f"<image>{user}"), Turn("assistant", answer)]
    limits = {name: options.pop(name) for name in ("max_length", "max_answer_length") if name in options}
    return encode(render(load_template(template), turns, **options), tokenizer, QUERIES, **limits)


def shown(tokenizer: Any, encoded: Encoded, *, labels: bool = False) -> list[str]:
    """Tokens by name: Q for an image slot, - for a position without a target."""
    if labels:
        return [tokenizer.convert_ids_to_tokens(i) if i >= 0 else "-" for i in encoded.labels]
    pairs = zip(encoded.input_ids, encoded.image_slots, strict=True)
    return ["Q" if slot else tokenizer.convert_ids_to_tokens(i) for i, slot in pairs]


def test_stage_2_with_opt(opt: Any) -> None:
    """[queries][BOS caption newline]; all but the queries is a target, the BOS too if asked for, as in LAVIS."""
    words = ["a", "Ġred", "Ġcup", "Ġon", "Ġa", "Ġtable", "Ċ"]
    plain = row(opt, "blip2_plain", "")
    assert shown(opt, plain) == ["Q", "Q", "Q", "</s>", *words]
    assert shown(opt, plain, labels=True) == ["-", "-", "-", "-", *words]
    lavis = row(opt, "blip2_plain", "", switches={"bos_target": True})
    assert lavis.input_ids == plain.input_ids
    assert shown(opt, lavis, labels=True) == ["-", "-", "-", "</s>", *words]
    assert shown(opt, row(opt, "blip2_plain", "", None)) == ["Q", "Q", "Q", "</s>"]


def test_the_newline_ends_an_answer_of_opt(opt: Any) -> None:
    assert load_template("blip2_plain").stop == ("\n",)
    assert opt("\n", add_special_tokens=False)["input_ids"] == [opt.convert_tokens_to_ids("Ċ")]


def test_the_prompt_of_opt_is_masked(opt: Any) -> None:
    """LAVIS: the prompt's tokens, BOS included, are no targets, and no token spans its end."""
    encoded = row(opt, "blip2_caption", "")
    assert shown(opt, encoded)[3:] == ["</s>", "a", "Ġphoto", "Ġof", "Ġa", "Ġred", "Ġcup", "Ġon", "Ġa", "Ġtable", "Ċ"]
    assert shown(opt, encoded, labels=True)[3:7] == ["-"] * 4
    assert encoded.labels[7:] == encoded.input_ids[7:]
    assert encoded.input_ids[3:] == opt(f"a photo of {CAPTION}\n")["input_ids"]
    prompt = row(opt, "blip2_caption", "", None)
    assert prompt.input_ids[3:] == opt("a photo of")["input_ids"]


@pytest.mark.parametrize(("template", "end"), [("blip2_question", "Short answer:"), ("blip2_answer", "Answer:")])
def test_questions_with_opt(opt: Any, template: str, end: str) -> None:
    encoded = row(opt, template, "what is it?", "a cup")
    assert encoded.input_ids[3:] == opt(f"Question: what is it? {end} a cup\n")["input_ids"]
    assert [label for label in encoded.labels if label >= 0] == opt(" a cup\n", add_special_tokens=False)["input_ids"]
    assert row(opt, template, "what is it?", None).input_ids[3:] == opt(f"Question: what is it? {end}")["input_ids"]


def test_stage_2_with_flan_t5() -> None:
    """[queries][prompt </s>] for the encoder, [answer </s>] for the decoder: empty and fixed prompts, and questions."""
    t5 = golden_tokenizer("t5")
    answer = t5(CAPTION)["input_ids"]
    for template, user, prompt in (
        ("blip2_plain_t5", "", ""),
        ("blip2_caption_t5", "", "a photo of"),
        ("blip2_question_t5", "what is it?", "Question: what is it? Short answer:"),
        ("blip2_answer_t5", "what is it?", "Question: what is it? Answer:"),
    ):
        encoded = row(t5, template, user)
        assert encoded.image_slots == [True] * QUERIES + [False] * (len(encoded.input_ids) - QUERIES)
        assert encoded.input_ids[QUERIES:] == t5(prompt)["input_ids"], template
        assert encoded.labels == answer
        assert row(t5, template, user, None).input_ids == encoded.input_ids


def test_prefix_split_is_uniform_over_the_first_half_of_the_tokens() -> None:
    t5 = golden_tokenizer("t5")
    end = t5.eos_token_id
    tokens = t5(CAPTION, add_special_tokens=False)["input_ids"]
    middle = len(tokens) // 2
    counts: Counter[int] = Counter()
    for seed in range(1500):
        encoded = row(t5, "blip2_prefix_t5", "", seed=seed)
        given, answer = encoded.input_ids[QUERIES:-1], encoded.labels[:-1]
        assert encoded.input_ids[-1] == encoded.labels[-1] == end
        assert [*given, *answer] == tokens  # cut between tokens, nothing tokenised a second time
        counts[len(given)] += 1
    assert sorted(counts) == list(range(1, middle + 1))
    expected = 1500 / middle
    # chi-squared with middle - 1 degrees of freedom; 30 is beyond 1 in 1000 for up to 10 of them
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 30


def test_prefix_split_is_drawn_by_seed_and_record() -> None:
    t5 = golden_tokenizer("t5")

    def length(seed: int, record: str) -> int:
        return len(row(t5, "blip2_prefix_t5", "", seed=seed, record_id=record).labels)

    assert length(1, "r") == length(1, "r")
    assert len({length(seed, "r") for seed in range(20)}) > 1
    assert len({length(1, str(record)) for record in range(20)}) > 1


def test_prefix_split_leaves_prompts_and_single_tokens_alone() -> None:
    t5 = golden_tokenizer("t5")
    single = row(t5, "blip2_prefix_t5", "", t5.decode(t5("a", add_special_tokens=False)["input_ids"][:1]))
    assert len(single.labels) == 2 and single.input_ids[QUERIES:] == [t5.eos_token_id]
    assert row(t5, "blip2_prefix_t5", "", None).input_ids[QUERIES:] == [t5.eos_token_id]


def test_prefix_split_is_for_encoder_decoders(opt: Any) -> None:
    with pytest.raises(SettingsError, match="split_answer_tokens: only for encoder-decoder templates"):
        row(opt, "blip2_plain", "", switches={"split_answer_tokens": True})


def test_the_decoder_may_have_a_limit_of_its_own() -> None:
    t5 = golden_tokenizer("t5")
    encoded = row(t5, "blip2_caption_t5", "", max_length=20, max_answer_length=4)
    assert len(encoded.labels) == 4 and encoded.labels[-1] == t5.eos_token_id
    assert encoded.input_ids == row(t5, "blip2_caption_t5", "").input_ids
