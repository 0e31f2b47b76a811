"""Captions and pictures of the first stage: tokens as BERT's tokenizer makes them, a picture in a batch once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from sightbridge.config.model import ImageSettings
from sightbridge.config.qformer_recipe import CaptionTextSettings
from sightbridge.data.feature_store import keep_in_memory
from sightbridge.data.qformer_processor import QFormerProcessor, load_caption_tokenizer, stable_id
from sightbridge.data.record import Record
from sightbridge.errors import CheckpointError, DataError, ImageError
from sightbridge.text.encode import NoTargetError
from sightbridge.text.turns import Turn

LLAMA = Path(__file__).parents[1] / "golden" / "llava" / "tokenizers" / "llama"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "blue",
    "circle",
    "square",
    "at",
    "the",
    "top",
    "and",
    "##s",
    ",",
    "left",
]


@pytest.fixture
def bert(tmp_path):
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    BertTokenizer(vocab=vocabulary, do_lower_case=True).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def make_processor(source, max_length=8, augment="none"):
    text = CaptionTextSettings(tokenizer=str(source), max_length=max_length)
    return QFormerProcessor(load_caption_tokenizer(str(source)), text, ImageSettings(size=16, augment=augment), seed=3)


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def caption(name, text, pictures=(0,), **meta):
    turns = (Turn("user", "<image>" * len(pictures)), Turn("assistant", text))
    return Record(name, tuple(picture(n) for n in pictures), turns, meta=meta)


def test_captions_are_what_berts_own_tokenizer_makes(bert):
    processor = make_processor(bert, max_length=6)
    own = BertTokenizer.from_pretrained(bert)
    for text in ("A red circle", "a red circle and a blue square at the top", "circles"):
        assert processor.encode(caption("x", text)) == own(text, truncation=True, max_length=6)["input_ids"]


def test_the_generating_token_is_the_last_one_also_when_read_again(bert, tmp_path):
    tokenizer = load_caption_tokenizer(str(bert))
    assert len(tokenizer) == len(WORDS) + 1
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_caption_tokenizer(str(tmp_path / "saved"))
    assert again.convert_tokens_to_ids("[DEC]") == again.bos_token_id == len(again) - 1 == len(WORDS)


def test_a_language_models_tokenizer_lends_its_ends(tmp_path):
    tokenizer = load_caption_tokenizer(str(LLAMA))
    bos, eos = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    ids = make_processor(LLAMA).encode(caption("x", "a red circle"))
    assert (ids[0], ids[-1]) == (bos, eos) and bos not in ids[1:]
    tokenizer.save_pretrained(tmp_path)  # <s> is no longer its bos_token, but still its [CLS]
    assert make_processor(tmp_path).encode(caption("x", "a red circle")) == ids


def test_a_token_for_generating_that_is_not_the_last_is_refused(bert, tmp_path):
    tokenizer = load_caption_tokenizer(str(bert))
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(tmp_path / "odd")
    with pytest.raises(CheckpointError, match=r"has \[DEC\], but not as the last"):
        load_caption_tokenizer(str(tmp_path / "odd"))


def test_a_picture_of_several_captions_is_in_a_batch_once(bert):
    processor = make_processor(bert)
    records = [
        caption("a", "a red circle", pictures=[1], image_id="coco_7"),
        caption("b", "a blue square at the left", pictures=[2], image_id="coco_8"),
        caption("c", "red", pictures=[1], image_id="coco_7"),
    ]
    batch = processor(records)
    assert batch.pixel_values.shape == (2, 3, 16, 16)
    assert batch.image_index.tolist() == [0, 1, 0]
    assert batch.image_ids.tolist() == [stable_id("coco_7"), stable_id("coco_8"), stable_id("coco_7")]
    alone = processor(records[1:2])
    assert torch.equal(batch.pixel_values[1], alone.pixel_values[0])
    assert batch.text_mask.sum(1).tolist() == [5, 8, 3]
    assert batch.text_ids[2, 3:].eq(processor.tokenizer.pad_token_id).all()
    assert batch.loss_counts == {"itc": 3, "itm": 9, "itg": 4 + 7 + 2}
    moved = batch.to("cpu", torch.float64)
    assert moved.pixel_values.dtype == torch.float64 and moved.text_ids.dtype == torch.int64
    assert moved.ids == ("a", "b", "c")


def test_crops_are_drawn_for_each_record_and_epoch(bert):
    processor = make_processor(bert, augment="crop_flip")
    records = [caption("a", "red"), caption("b", "red")]
    assert len(processor(records).pixel_values) == 1
    first = processor(records, training=True)
    assert first.image_index.tolist() == [0, 1] and first.image_ids[0] == first.image_ids[1]
    assert torch.equal(first.pixel_values, processor(records, training=True).pixel_values)
    assert not torch.equal(first.pixel_values, processor(records, training=True, epoch=1).pixel_values)


def test_features_take_the_place_of_pictures(bert):
    processor = make_processor(bert)
    records = [caption("a", "red", [1]), caption("b", "blue", [1]), caption("c", "blue", [2])]
    features = keep_in_memory(records, processor.image_settings, lambda pixels: pixels.flatten(2).transpose(1, 2))
    rows = [processor.prepare(record, training=True, features=features) for record in records]
    batch = processor.collate(rows)
    assert batch.pixel_values is None
    assert batch.image_index.tolist() == [0, 0, 1]
    pixels = processor(records).pixel_values
    assert torch.equal(batch.image_features, pixels.flatten(2).transpose(1, 2))


def test_numbers_of_pictures_fit_into_64_bits_and_do_not_change():
    assert stable_id("coco_522418") == 7755963015488710879
    assert min(stable_id(str(n)) for n in range(999)) >= 0 and max(stable_id(str(n)) for n in range(999)) < 2**63


def test_records_that_cannot_be_used_are_named(bert):
    processor = make_processor(bert)
    with pytest.raises(DataError, match=r"two: has 2 pictures; the first stage learns from captions of one picture"):
        processor([caption("two", "red", [1, 2])])
    for empty in ("", None, "  "):
        with pytest.raises(NoTargetError, match="empty: nothing to learn"):
            processor.encode(caption("empty", empty))
    with pytest.raises(ImageError, match="gone: "):
        processor([Record("gone", (Path("no.png"),), caption("x", "red").turns)])


def test_decoding_stops_at_the_end(bert):
    processor = make_processor(bert)
    ids, mask = processor.texts(["a red circle", "blue"])
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert processor.decode(ids[:, 1:]) == ["a red circle", "blue"]
