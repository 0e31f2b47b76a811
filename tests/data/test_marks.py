"""Marks on pictures: text and picture come from one draw, whichever way a picture is opened, stored or looked up."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from sightbridge.config.model import ImageSettings, PromptSettings
from sightbridge.data.bad_samples import BadSamples
from sightbridge.data.dataset import RecordDataset, TrainingBatches, evaluation_batches
from sightbridge.data.feature_store import MemoryFeatures, Views, keep_in_memory
from sightbridge.data.marks import realise
from sightbridge.data.order import RecordOrder
from sightbridge.data.processor import Processor
from sightbridge.data.readers import load_records
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import DataError, SettingsError
from sightbridge.images.transforms import normalise
from sightbridge.visual_prompts import COLOURS

TOKENIZER = Path(__file__).parents[1] / "golden" / "llava" / "tokenizers" / "llama"
SIZE = 24
BOX = [4, 4, 20, 20]
IMAGE = ImageSettings(size=SIZE, fit="squash", mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TOKENIZER)


def make_processor(tokenizer, image=IMAGE, **options):
    prompt = PromptSettings(template="vicuna_v1")
    return Processor(tokenizer, prompt, image, tokens_per_image=2, encoder_decoder=False, **options)


@pytest.fixture
def records(tmp_path):
    """Two black pictures and one record of both, marked with solid rectangles of colours that are drawn."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / name)
    said = {"shape": "rectangle", "width": 2, "alpha": 255}
    rows = [
        {"id": "one", "image": "a.png", "bboxes": [BOX], **said},
        {"id": "two", "image": ["a.png", "b.png"], "bboxes": [BOX, BOX], "bbox_image": [0, 1], **said},
        {"id": "none", "image": "a.png"},
    ]
    for row in rows:
        texts = "".join(f"<image>\n<bbox{n}>" for n in range(len(row.get("bboxes", [])))) or "<image>\nWhat?"
        row["conversations"] = [{"from": "human", "value": texts}, {"from": "gpt", "value": "A bus."}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return list(load_records("vip_llava", tmp_path / "rows.json"))


def colour_in_text(processor, row):
    ids = [token for token, slot in zip(row.encoded.input_ids, row.encoded.image_slots, strict=True) if not slot]
    text = processor.tokenizer.decode(ids)
    return next((name for name in COLOURS if f"{name} rectangle" in text), None)


def colour_in_picture(pixels):
    """The name of the colour on the box's left edge, if it has one."""
    found = tuple(round(float(channel) * 255) for channel in pixels[:, 12, BOX[0]])
    assert found != (0, 0, 0), "nothing is drawn"
    return next((name for name, colour in COLOURS.items() if colour == found), None)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_words_say_what_is_on_the_picture_in_every_epoch(tokenizer, records, decode):
    processor, seen = make_processor(tokenizer, decode=decode), set()
    for epoch in range(12):
        row = processor.prepare(records[0], training=True, epoch=epoch)
        assert row.pixels is not None
        pixels = normalise(row.pixels, IMAGE.mean, IMAGE.std) if row.pixels.dtype == torch.uint8 else row.pixels
        colour = colour_in_text(processor, row)
        assert colour_in_picture(pixels[0]) == colour
        assert processor.encode(records[0], training=True, epoch=epoch) == row.encoded
        seen.add(colour)
    assert len(seen) > 3


def test_marks_are_on_the_pictures_they_belong_to(tokenizer, records):
    processor = make_processor(tokenizer)
    for epoch in range(3):
        seen = realise(records[1], 0, epoch)
        pixels = processor.prepare(records[1], training=True, epoch=epoch).pixels
        assert pixels is not None
        assert [colour_in_picture(one) for one in pixels] == [mark.colour_name for mark in seen.marks]
    plain = processor.prepare(records[2], training=True).pixels
    assert plain is not None and plain.count_nonzero() == 0


def test_fast_and_exact_draw_the_same(tokenizer, records):
    exact, fast = (make_processor(tokenizer, decode=decode).prepare(records[0], training=True, epoch=5) for decode in
                   ("exact", "fast"))  # fmt: skip
    assert exact.encoded == fast.encoded and exact.pixels is not None and fast.pixels is not None
    assert torch.allclose(exact.pixels, normalise(fast.pixels, IMAGE.mean, IMAGE.std), atol=1e-6)


def test_evaluation_depends_on_the_record_alone(tokenizer, records):
    batches = [make_processor(tokenizer, seed=seed)(records, for_generation=True, epoch=seed) for seed in (0, 7)]
    assert torch.equal(batches[0].input_ids, batches[1].input_ids)
    assert batches[0].pixel_values is not None and batches[1].pixel_values is not None
    assert torch.equal(batches[0].pixel_values, batches[1].pixel_values)
    names = [colour_in_picture(pixels) for pixels in batches[0].pixel_values[:3]]
    assert names == [mark.colour_name for record in records for mark in record.marks]


def training(processor, data, features=None, workers=0):
    dataset = RecordDataset(data, processor, training=True, replace_bad=True, features=features)
    bad = BadSamples(len(data), 0.9)
    return TrainingBatches(dataset, 3, order=RecordOrder([len(data)], 0), bad_samples=bad, workers=workers)


def test_workers_draw_the_same(tokenizer, records):
    processor = make_processor(tokenizer)
    alone, with_workers = (next(training(processor, records, workers=workers).epoch(1)) for workers in (0, 1))
    assert torch.equal(alone.input_ids, with_workers.input_ids)
    assert torch.equal(alone.pixel_values, with_workers.pixel_values)


def encode(pixels):
    return pixels.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_stored_views_are_what_would_have_been_drawn(tokenizer, records, augment, decode):
    image = IMAGE.model_copy(update={"augment": augment})
    processor = make_processor(tokenizer, image, decode=decode)
    views = Views(image, stored=2, decode=decode)
    store = MemoryFeatures(views.of(records, training=True), views, encode)
    plain_views = 2 if augment == "crop_flip" else 1
    assert len(store) == 2 * 3 + plain_views
    for record in records:
        rows = [processor.prepare(record, training=True, epoch=epoch, features=store) for epoch in range(4)]
        for epoch, row in enumerate(rows):
            drawn = processor.prepare(record, training=True, epoch=epoch % 2)
            assert row.encoded == drawn.encoded and drawn.pixels is not None and row.features is not None
            pixels = drawn.pixels if decode == "exact" else normalise(drawn.pixels, image.mean, image.std)
            assert torch.equal(row.features, encode(pixels))


def test_features_kept_for_evaluation_are_those_of_the_marked_picture(tokenizer, records):
    processor, store = make_processor(tokenizer), keep_in_memory(records, IMAGE, encode)
    assert len(store) == 4
    dataset = [RecordDataset(records, processor, features=features) for features in (None, store)]
    bad = BadSamples(3)
    plain, kept = (next(evaluation_batches(one, 3, bad_samples=bad)) for one in dataset)
    assert plain.pixel_values is not None and kept.image_features is not None
    assert torch.equal(encode(plain.pixel_values), kept.image_features)


def test_a_store_without_a_number_of_views_refuses_marks_that_change(records):
    with pytest.raises(SettingsError, match=r"rows\.json, row 1: marks a part .* anew in every epoch.*cache_views=4"):
        list(Views(IMAGE).of(records, training=True))
    assert len(list(Views(IMAGE).of(records, training=False))) == 4
    assert len(list(Views(IMAGE).of(records[2:], training=True))) == 1


def test_other_marks_and_other_seeds_are_other_entries(records):
    views = [view for seed in (0, 1) for view in Views(IMAGE, seed, 3).of(records[:2], training=True)]
    assert len({(view.source, view.name) for view in views}) == len(views) == 2 * 3 * 3
    (unmarked,) = Views(IMAGE).of(records[2:], training=False)
    assert unmarked.name == ""


def test_a_box_outside_of_its_picture_makes_a_bad_sample(tokenizer, tmp_path, records):
    rows = json.loads((tmp_path / "rows.json").read_text())
    rows[0]["bboxes"] = [[400, 4, 500, 20]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    batches = training(make_processor(tokenizer), list(load_records("vip_llava", tmp_path / "rows.json")))
    assert "one" not in next(batches.epoch(0)).ids
    (bad,) = batches.bad_samples.samples
    assert "row 1, picture 1: the box 400,4,500,20 lies outside of the picture, which has 24 x 24 pixels" in bad.reason


def test_the_first_stage_refuses_marks(tokenizer, records):
    from sightbridge.config.qformer_recipe import CaptionTextSettings
    from sightbridge.data.qformer_processor import QFormerProcessor, load_caption_tokenizer

    processor = QFormerProcessor(load_caption_tokenizer(str(TOKENIZER)), CaptionTextSettings(), IMAGE)
    with pytest.raises(
        DataError, match=r"row 1: marks a part of its picture, but the first stage learns from captions"
    ):
        processor.encode(records[0])
