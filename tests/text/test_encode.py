"""Encoding: slots, BOS and EOS, lengths, tokenizers without offsets, and properties that hold for any conversation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import GOLDEN, MARKS, golden_tokenizer, trained_tokenizer
from transformers import BertGenerationTokenizer, ByT5Tokenizer

from sightbridge.batch import IGNORE_INDEX as BATCH_IGNORE_INDEX
from sightbridge.errors import DataError
from sightbridge.text.alignment import tokenise_with_mask
from sightbridge.text.encode import IGNORE_INDEX, NoTargetError, encode
from sightbridge.text.render import render
from sightbridge.text.template import load_template, template_names
from sightbridge.text.turns import Turn

DECODER_ONLY = [n for n in template_names() if n != "hf" and not load_template(n).encoder_decoder]
ANSWERS_ONLY = [n for n in DECODER_ONLY if not load_template(n).resolve()["learn_markup"]]
ENCODER_DECODER = [n for n in template_names() if load_template(n).encoder_decoder]
LOSSLESS = ["bpe", "bpe-trimmed", "bpe-bos", "llama", "llama_nonlegacy", "llama3", "llama3_autobos"]
ALL = [*LOSSLESS, "unigram", "unigram-eos", "wordpiece", "t5"]
TOKENS = 3


def tokenizer_named(name: str) -> Any:
    return golden_tokenizer(name) if name.startswith(("llama", "t5")) else trained_tokenizer(name)


def turns_of(*texts: str | None) -> list[Turn]:
    return [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]


def targets(encoded: Any, tokenizer: Any) -> str:
    ids = [label for label in encoded.labels if label != IGNORE_INDEX]
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def squeeze(text: str) -> str:
    return "".join(text.split())


# No angle brackets by chance: what becomes of marks in somebody's text is tested on its own.
words = st.text(alphabet="abcdeT .,:?!0#é好 \n", max_size=12)
# blip2_plain writes the answer right behind the question: without the space one token could hold the end of the one and
# the beginning of the other, and is then a target as a whole.
questions = st.lists(words, min_size=1, max_size=3).map(lambda texts: "<image>".join(texts) + " ")
conversations = st.lists(st.tuples(questions, words), min_size=1, max_size=3).map(
    lambda pairs: turns_of(*(text for pair in pairs for text in pair))
)


@settings(max_examples=120, deadline=None)
@given(turns=conversations, template=st.sampled_from(ANSWERS_ONLY), name=st.sampled_from(LOSSLESS))
def test_targets_decode_to_the_answers(turns: list[Turn], template: str, name: str) -> None:
    tokenizer = tokenizer_named(name)
    rendered = render(load_template(template), turns, system="Sys.")
    encoded = encode(rendered, tokenizer, TOKENS)
    images = sum((turn.text or "").count("<image>") for turn in turns)
    assert sum(encoded.image_slots) == images * TOKENS and encoded.images == images
    assert len(encoded.input_ids) == len(encoded.image_slots) == len(encoded.labels)
    for i, label, slot in zip(encoded.input_ids, encoded.labels, encoded.image_slots, strict=True):
        assert label in (i, IGNORE_INDEX) and not (slot and label != IGNORE_INDEX)
    form = load_template(template).assistant
    answers = "".join((turn.text or "") + form.end for turn in turns if turn.role == "assistant")
    assert squeeze(targets(encoded, tokenizer)) == squeeze(answers)


@settings(max_examples=80, deadline=None)
@given(turns=conversations, template=st.sampled_from(["chatml", "vicuna_v1"]))
def test_targets_of_a_lossy_tokenizer_are_the_ids_of_the_answers(turns: list[Turn], template: str) -> None:
    """WordPiece lowers case, drops white space and accents, so only the ids can be compared."""
    tokenizer = tokenizer_named("wordpiece")
    form = load_template(template).assistant
    encoded = encode(render(load_template(template), turns), tokenizer, TOKENS)
    expected = []
    for turn in turns:
        if turn.role == "assistant":
            expected += tokenizer((turn.text or "") + form.end, add_special_tokens=False)["input_ids"]
    assert [label for label in encoded.labels if label != IGNORE_INDEX] == expected


@settings(max_examples=60, deadline=None)
@given(turns=conversations, template=st.sampled_from(["chatml", "vicuna_v1", "llama_3"]))
def test_targets_of_a_unigram_tokenizer_cover_the_answers(turns: list[Turn], template: str) -> None:
    tokenizer = tokenizer_named("unigram")
    turns = [Turn(turn.role, "".join(c for c in turn.text or "" if c not in "0#é好!?:")) for turn in turns]
    encoded = encode(render(load_template(template), turns), tokenizer, TOKENS)
    end = load_template(template).assistant.end
    answers = "".join((turn.text or "") + end for turn in turns if turn.role == "assistant")
    assert squeeze(targets(encoded, tokenizer)) == squeeze(answers)


@settings(max_examples=60, deadline=None)
@given(answer=words.filter(str.strip), question=questions, name=st.sampled_from(ALL))
def test_encoder_decoder_labels_are_the_tokenizers_own(answer: str, question: str, name: str) -> None:
    tokenizer = tokenizer_named(name)
    rendered = render(load_template("blip2_plain_t5"), turns_of(question, answer))
    encoded = encode(rendered, tokenizer, TOKENS)
    own = tokenizer(answer)["input_ids"]
    eos = [] if own[-1:] == [tokenizer.eos_token_id] else [tokenizer.eos_token_id]
    assert encoded.labels == own + eos
    assert [i for i, slot in zip(encoded.input_ids, encoded.image_slots, strict=True) if not slot] == tokenizer(
        "".join(piece.text or "" for piece in rendered.pieces)
    )["input_ids"]


@settings(max_examples=80, deadline=None)
@given(
    turns=conversations,
    template=st.sampled_from(["vicuna_v1", "llama_3", "chatml", "llava_v0"]),
    name=st.sampled_from(ALL),
)
def test_rows_without_pictures_are_what_the_tokenizer_makes_of_the_text(
    turns: list[Turn], template: str, name: str
) -> None:
    tokenizer = tokenizer_named(name)
    turns = [Turn(turn.role, (turn.text or "").replace("<image>", "")) for turn in turns]
    rendered = render(load_template(template), turns)
    expected = tokenizer(rendered.text)["input_ids"]
    begins_twice = (
        template == "llama_3" and name == "llama3_autobos"
    )  # the template wrote BOS and so does the tokenizer
    ends = expected[-1:] == [tokenizer.eos_token_id] and name in ("t5", "unigram-eos")
    expected = expected[begins_twice : len(expected) - ends]
    try:
        assert encode(rendered, tokenizer, TOKENS).input_ids == expected
    except NoTargetError:
        assert not any(turn.text for turn in turns if turn.role == "assistant")


@pytest.mark.parametrize("name", ["bpe", "bpe-trimmed", "llama", "llama_nonlegacy", "unigram"])
def test_the_prompt_is_the_beginning_of_the_row_up_to_its_first_target(name: str) -> None:
    """A model trained on the row meets, when asked, exactly what it saw before its first target."""
    tokenizer = tokenizer_named(name)
    for template in ("vicuna_v1", "llava_v0", "chatml", "blip2_caption", "llama_2"):
        question, form = "<image>\nis the cup red?", load_template(template)
        row = encode(render(form, turns_of(question, "the cup is red")), tokenizer, TOKENS)
        prompt = encode(render(form, turns_of(question, None)), tokenizer, TOKENS)
        first = next(i for i, label in enumerate(row.labels) if label != IGNORE_INDEX)
        assert row.input_ids[:first] == prompt.input_ids
        assert prompt.n_target_tokens == 0


def test_trimmed_offsets_give_the_same_mask_as_whole_ones() -> None:
    """Answers that begin or end with spaces: the trimmed tokenizer reports empty spans for tokens of spaces alone."""
    trimmed, whole = tokenizer_named("bpe-trimmed"), tokenizer_named("bpe")
    for template in ("vicuna_v1", "llava_v0", "plain", "phi_3"):
        for answer in (" ", "  ", "  red", "red  ", " a  b ", "\n red", ""):
            rendered = render(load_template(template), turns_of("what? ", answer, " and ", answer))
            assert encode(rendered, trimmed, 1) == encode(rendered, whole, 1)


def test_a_word_that_took_over_the_space_counts_with_the_word() -> None:
    tokenizer = tokenizer_named("bpe")
    word = tokenizer(" a", add_special_tokens=False)["input_ids"]
    assert len(word) == 1
    for parts in ([("the ", False), ("a", True)], [("the", False), (" a", True)]):
        ids, mask = tokenise_with_mask(tokenizer, parts, "r")
        assert ids[-1:] == word and mask == [False] * (len(ids) - 1) + [True]
    ids, mask = tokenise_with_mask(tokenizer, [("the ", True), ("a", False)], "r")
    assert mask == [True] * (len(ids) - 1) + [False]


def test_bos_and_eos_of_the_tokenizer() -> None:
    turns = turns_of("<image>red", "cup")
    for name, template, begins in (
        ("bpe", "plain", False),
        ("bpe-bos", "plain", True),
        ("unigram-eos", "plain", False),
    ):
        tokenizer = tokenizer_named(name)
        row = encode(render(load_template(template), turns), tokenizer, 2)
        assert (row.input_ids[0] == tokenizer.bos_token_id) == begins
        assert row.image_slots[begins : begins + 2] == [True, True]
        assert row.input_ids[-1] != tokenizer.eos_token_id  # 'plain' ends with a newline, not with EOS
    front = encode(render(load_template("blip2_plain"), turns), tokenizer_named("bpe-bos"), 2)
    assert front.image_slots[:2] == [True, True] and front.input_ids[2] == tokenizer_named("bpe-bos").bos_token_id


def test_text_tokenised_apart() -> None:
    tokenizer = tokenizer_named("bpe")
    turns = turns_of("<image>on a ", "table")
    apart = encode(render(load_template("mblip_bloomz"), turns), tokenizer, 1)
    together = encode(render(load_template("mblip_bloomz"), turns, switches={"separate_text": False}), tokenizer, 1)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    pad = tokenizer.pad_token_id
    assert apart.input_ids == [pad, *ids("on a "), *ids("table"), tokenizer.eos_token_id]
    assert apart.labels == [IGNORE_INDEX] * (1 + len(ids("on a "))) + ids("table") + [tokenizer.eos_token_id]
    assert together.input_ids == [pad, *ids("on a table</s>")] != apart.input_ids


def test_chatml_mask_of_qwen() -> None:
    """Per turn: the opening mark, the closing mark and the newline are learned, of answers the text too."""
    tokenizer = tokenizer_named("bpe")
    start, end = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>"))

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def off(text: str) -> list[int]:
        return [IGNORE_INDEX] * len(ids(text))

    newline = ids("\n")
    switches = {"learn_markup": True, "separate_text": True}
    rendered = render(load_template("chatml"), turns_of("q<image>", "a"), system="s", switches=switches)
    encoded = encode(rendered, tokenizer, 2)
    assert encoded.labels == [
        *(start, *off("system\ns"), end, *newline),
        *(start, *off("user\nq"), IGNORE_INDEX, IGNORE_INDEX, end, *newline),
        *(start, *off("assistant\n"), *ids("a"), end, *newline),
    ]
    default = encode(render(load_template("chatml"), turns_of("q<image>", "a"), system="s"), tokenizer, 2)
    assert [label for label in default.labels if label >= 0] == [*ids("a"), end]


def test_eos_before_image_is_a_switch() -> None:
    t5 = golden_tokenizer("t5")
    rendered = render(load_template("t5_v1"), turns_of("a<image>b", None), system="")
    with_eos = encode(rendered, t5, 1)
    without = encode(rendered, t5, 1, switches={"eos_before_image": False})
    assert with_eos.input_ids.count(1) == 2 and without.input_ids.count(1) == 1
    assert without.input_ids[-1] == 1 and without.labels == []


def test_length_limit_cuts_text_at_the_right() -> None:
    tokenizer = tokenizer_named("bpe-bos")
    rendered = render(load_template("vicuna_v1"), turns_of("<image>red", "a cup on a table"), system="")
    whole = encode(rendered, tokenizer, 4)
    length = len(whole.input_ids)
    cut = encode(rendered, tokenizer, 4, max_length=length - 2)
    assert cut.input_ids == whole.input_ids[:-2] and cut.labels == whole.labels[:-2]
    assert cut.truncated == 2 and whole.truncated == 0
    assert cut.n_target_tokens == whole.n_target_tokens - 2
    assert encode(rendered, tokenizer, 4, max_length=length) == whole


def test_length_limit_keeps_the_eos_of_an_encoder_decoder() -> None:
    t5 = golden_tokenizer("t5")
    rendered = render(load_template("mblip"), turns_of("<image>the large table and a bus", "a cup on a table"))
    whole = encode(rendered, t5, 2)
    cut = encode(rendered, t5, 2, max_length=6)
    assert cut.input_ids == [*whole.input_ids[:5], 1] and cut.labels == [*whole.labels[:5], 1]
    assert cut.truncated == len(whole.input_ids) - 6 + len(whole.labels) - 6


def test_length_limit_never_cuts_a_picture() -> None:
    tokenizer = tokenizer_named("bpe")
    rendered = render(load_template("plain"), turns_of("<image>", "a", "<image>", "b"), record_id="r7")
    first = encode(render(load_template("plain"), turns_of("<image>", "a")), tokenizer, 4)
    for limit in range(len(first.input_ids), len(first.input_ids) + 4):
        with pytest.raises(DataError, match=r"record 'r7': its 2 picture\(s\) of 4 tokens each do not fit"):
            encode(rendered, tokenizer, 4, max_length=limit)
        cut = encode(rendered, tokenizer, 4, max_length=limit, switches={"drop_cut_images": True})
        assert cut.input_ids == first.input_ids and cut.images == 1
        assert cut.truncated == len(encode(rendered, tokenizer, 4).input_ids) - len(first.input_ids)


@settings(max_examples=150, deadline=None)
@given(
    turns=conversations,
    template=st.sampled_from([*ANSWERS_ONLY, *ENCODER_DECODER]),
    name=st.sampled_from(["bpe-bos", "llama", "t5", "unigram-eos"]),
    limit=st.integers(1, 60),
    drop=st.booleans(),
)
def test_a_cut_row_is_the_front_of_the_whole_one_and_has_whole_pictures(
    turns: list[Turn], template: str, name: str, limit: int, drop: bool
) -> None:
    """Several pictures anywhere, or none: a limit takes text away, and pictures only whole and only if it may."""
    tokenizer, rendered = tokenizer_named(name), render(load_template(template), turns, system="")
    switches = {"drop_cut_images": drop}
    try:
        whole = encode(rendered, tokenizer, TOKENS)
        cut = encode(rendered, tokenizer, TOKENS, max_length=limit, max_answer_length=1000, switches=switches)
    except NoTargetError:
        return
    except DataError as error:
        assert not drop and "picture(s) of 3 tokens each do not fit" in str(error)
        return
    assert len(cut.input_ids) <= limit or cut == whole
    assert cut.images == whole.images or (drop and cut.images < whole.images)
    slots = "".join("#" if slot else " " for slot in cut.image_slots).split()
    assert all(len(run) % TOKENS == 0 for run in slots) and sum(map(len, slots)) == cut.images * TOKENS
    kept = len(cut.input_ids) - (1 if cut.truncated and rendered.template.encoder_decoder else 0)
    assert cut.input_ids[:kept] == whole.input_ids[:kept]
    assert cut.image_slots[:kept] == whole.image_slots[:kept]
    assert len(cut.input_ids) + cut.truncated == len(whole.input_ids)


def test_length_limit_never_cuts_a_prompt() -> None:
    rendered = render(load_template("vicuna_v1"), turns_of("is the cup red?", None), record_id="r7")
    with pytest.raises(DataError, match=r"record 'r7': the prompt takes \d+ positions, max_length is 5"):
        encode(rendered, tokenizer_named("bpe"), 1, max_length=5)


@pytest.mark.parametrize("text", ["\ud83d", "not \udce9 UTF-8", "</s>\ud83d"])
def test_half_a_character_is_refused(text: str) -> None:
    rendered = render(load_template("vicuna_v1"), turns_of(text, "yes"), record_id="r7")
    with pytest.raises(DataError, match=r"record 'r7': the text .* holds half a character \('.ud"):
        encode(rendered, tokenizer_named("bpe"), 1)


def test_a_row_without_a_target_is_an_error() -> None:
    bpe = tokenizer_named("bpe")
    with pytest.raises(NoTargetError, match="record 'r7': nothing to learn in it: it has no answer"):
        encode(render(load_template("vicuna_v1"), turns_of("q"), record_id="r7"), bpe, 1)
    with pytest.raises(NoTargetError, match=r"record 'r7': .*it has no answer"):
        encode(render(load_template("t5_v1"), turns_of("q"), record_id="r7"), golden_tokenizer("t5"), 1)
    rendered = render(load_template("vicuna_v1"), turns_of("is the cup red?", "yes"), record_id="r7")
    with pytest.raises(NoTargetError, match=r"record 'r7': .*no target is left of it within max_length 6"):
        encode(rendered, bpe, 1, max_length=6)


def test_a_target_at_the_first_position_has_no_prediction() -> None:
    row = encode(render(load_template("plain"), turns_of("", "red")), tokenizer_named("bpe"), 1)
    assert all(label != IGNORE_INDEX for label in row.labels)
    assert row.n_target_tokens == len(row.labels) - 1
    assert IGNORE_INDEX == BATCH_IGNORE_INDEX


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v0", "plain"])
def test_tokenizer_without_offsets_is_aligned_by_decoding(template: str) -> None:
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    for answer in ("a café", " 你好", "x"):
        rendered = render(load_template(template), turns_of("<image>é", answer))
        encoded = encode(rendered, tokenizer, 2)
        pieces = [piece for piece in rendered.pieces if piece.is_target]
        assert squeeze(targets(encoded, tokenizer)) == squeeze("".join(piece.text or "" for piece in pieces))
        spaces = tokenizer.convert_tokens_to_ids(" ")
        assert encoded.labels.count(spaces) == sum((piece.text or "").count(" ") for piece in pieces)


def test_slow_sentencepiece_tokenizer_is_aligned_by_decoding() -> None:
    slow = BertGenerationTokenizer(str(GOLDEN / "tokenizers" / "llama_nonlegacy" / "tokenizer.model"))
    assert not slow.is_fast
    rendered = render(load_template("vicuna_v1"), turns_of("<image>the dog", "a large red bus", "a man", "horses"))
    encoded = encode(rendered, slow, 1)
    assert slow.convert_ids_to_tokens([label for label in encoded.labels if label >= 0])[0] == "\u2581a"
    assert squeeze(targets(encoded, slow)) == squeeze("a large red bus</s>horses</s>")
    with pytest.raises(DataError, match="does not decode to the text"):  # it decodes a newline to <0x0A>
        encode(render(load_template("plain"), turns_of("the dog", "a bus")), slow, 1)


def test_a_tokenizer_that_cannot_be_aligned_is_refused() -> None:
    class Shouting(ByT5Tokenizer):
        def decode(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
            return super().decode(*args, **kwargs).upper()

    rendered = render(load_template("plain"), turns_of("a b", "c"), record_id="r7")
    with pytest.raises(DataError, match="record 'r7': this tokenizer gives no character offsets"):
        encode(rendered, Shouting(), 1)


def test_trained_tokenizers_know_the_marks() -> None:
    for name in ("bpe", "unigram", "wordpiece"):
        assert all(len(tokenizer_named(name)(mark, add_special_tokens=False)["input_ids"]) == 1 for mark in MARKS)
