"""Text about scenes: the tokenizer, and phrases that each fit one position."""

import random

import pytest
import torch
from small_parents import LANGUAGE_PARENTS, texts_of, tokenizer

from sightbridge.batch import IGNORE_INDEX
from sightbridge.data.scenes.language import (
    caption,
    colour_word,
    kind_word,
    language_codes,
    nothing,
    position_word,
    questions,
)
from sightbridge.data.scenes.world import COLOURS, DIGITS, POSITIONS, SHAPES, sample_scene
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.models.build import PARENTS
from sightbridge.parents.text import WORDS_PER_PHRASE

EVERY_OBJECT = [(kind, colour, cell) for kind in (*SHAPES, *DIGITS) for colour in COLOURS for cell in range(POSITIONS)]
SHIPPED = sorted(path.parent for path in PARENTS.glob("*/tokenizer.json"))


def test_the_tokenizer_gives_back_what_it_was_given():
    rng = random.Random(0)
    for code in language_codes():
        for object_set in ("shapes", "digits"):
            scene = sample_scene(rng, object_set)
            for text in [caption(scene, code), *(asked.text for asked in questions(scene, code, rng, 3))]:
                ids = tokenizer()(text, add_special_tokens=False).input_ids
                assert tokenizer().decode(ids) == text
    assert tokenizer()("naïve 漢字 🙂", add_special_tokens=False).input_ids, "any text at all"
    assert tokenizer().decode(tokenizer()("naïve 漢字 🙂", add_special_tokens=False).input_ids) == "naïve 漢字 🙂"


def test_special_tokens_have_the_first_ids():
    own = tokenizer()
    assert (own.pad_token_id, own.bos_token_id, own.eos_token_id) == (0, 1, 2)
    assert 300 < len(own) <= 1024
    assert own.convert_ids_to_tokens(own("a</s>", add_special_tokens=False).input_ids)[-1] == "</s>"


def test_chinese_characters_stand_alone():
    ids = tokenizer()("红色的圆形", add_special_tokens=False).input_ids
    assert [tokenizer().decode([i]) for i in ids] == list("红色的圆形")


@pytest.mark.parametrize("folder", [None, *SHIPPED], ids=lambda folder: folder.name if folder else "trained here")
def test_every_phrase_fits_in_all_languages_at_once(folder):
    own = load_tokenizer(folder) if folder else tokenizer()

    def length(text):
        return len(own(text, add_special_tokens=False).input_ids)

    codes = language_codes()
    objects = [
        sum(length(f" {colour_word(colour, c)} {kind_word(kind, c)} {position_word(cell, c)}") for c in codes)
        for kind, colour, cell in EVERY_OBJECT
    ]
    empty = [sum(length(" " + nothing(cell, c)) for c in codes) for cell in range(POSITIONS)]
    print(f"longest phrase: {max(objects)} tokens, of an empty cell {max(empty)}")
    assert max(*objects, *empty) <= WORDS_PER_PHRASE


@pytest.mark.parametrize("codes", [["en"], ["zh", "de"], ["en", "de", "es", "zh"]])
def test_phrases_tell_the_scene(codes):
    texts = texts_of("tiny/parent-decoder")
    for seed in range(20):
        rng = random.Random(seed)
        scene = sample_scene(rng, rng.choice(["shapes", "digits"]))
        words = texts._phrases(scene, codes, rng)
        assert words.shape[1:] == (1, WORDS_PER_PHRASE)
        said = [tokenizer().decode(row[row > 0]).strip() for row in words[:, 0]]
        objects = {
            " ".join(f"{colour_word(o.colour, c)} {kind_word(o.kind, c)} {position_word(o.position, c)}" for c in codes)
            for o in scene.objects
        }
        taken = {o.position for o in scene.objects}
        empty = {" ".join(nothing(cell, c) for c in codes) for cell in range(POSITIONS) if cell not in taken}
        assert len(set(said)) == len(said) and objects <= set(said) <= objects | empty


@pytest.mark.parametrize("name", LANGUAGE_PARENTS)
@pytest.mark.parametrize("way", ["phrases", "caption", "nothing"])
def test_batches_are_what_they_say(name, way):
    texts = texts_of(name)
    batch = texts.batch(random.Random(4), way=way)
    assert len(batch) == 4
    assert batch.n_target_tokens == (batch.labels != IGNORE_INDEX).sum() > 0
    assert int(batch.image_slots.sum()) == int(batch.images_per_row.sum())
    if way == "phrases":
        assert batch.image_features.shape == (int(batch.image_slots.sum()), 1, WORDS_PER_PHRASE)
        assert (batch.images_per_row > 0).all()
    else:
        assert batch.image_features is None and not batch.image_slots.any()
    targets = tokenizer().decode(batch.labels[batch.labels != IGNORE_INDEX])
    assert targets.count("</s>") >= 4 and "USER" not in targets


def test_batches_are_fixed_by_seed_and_step():
    first, same, later = (texts_of("tiny/parent-decoder").epoch(number) for number in (0, 0, 1))
    batches = [next(first), next(first), next(same), next(later)]
    assert torch.equal(batches[0].input_ids, batches[2].input_ids)
    for other in (batches[1], batches[3]):
        assert batches[0].input_ids.shape != other.input_ids.shape or (batches[0].input_ids != other.input_ids).any()
    reseeded = next(iter(texts_of("tiny/parent-decoder", "training.seed=2").epoch(0)))
    assert not torch.equal(batches[0].labels, reseeded.labels)
