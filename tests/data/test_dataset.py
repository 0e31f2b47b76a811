"""Order, workers, bad samples and kept features: none of them may change what is trained on."""

import json
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightbridge.config.model import ImageSettings, PromptSettings
from sightbridge.data.bad_samples import BadSample, BadSamples, check_images
from sightbridge.data.dataset import RecordDataset, TrainingBatches, evaluation_batches
from sightbridge.data.feature_store import Views, keep_in_memory
from sightbridge.data.order import RecordOrder
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.text.encode import NoTargetError
from sightbridge.text.turns import Turn

TOKENIZER = Path(__file__).parents[1] / "golden" / "llava" / "tokenizers" / "llama"
IMAGE = ImageSettings(size=8)
AUGMENTED = ImageSettings(size=8, augment="crop_flip")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TOKENIZER)


@pytest.fixture
def processor(tokenizer):
    return make_processor(tokenizer)


def make_processor(tokenizer, image=IMAGE):
    prompt = PromptSettings(template="plain")
    return Processor(tokenizer, prompt, image, tokens_per_image=2, encoder_decoder=False)


def record(name, image=None, answer="A bus."):
    image = np.full((10, 12, 3), int(name) % 256, dtype=np.uint8) if image is None else image
    turns = (Turn("user", "<image>"), Turn("assistant", answer))
    return Record(name, (image,), turns, where=f"rows.json, row {name}")


def records(number):
    return [record(str(n)) for n in range(number)]


def training(
    processor, data, batch_size=4, seed=0, bad_limit=0.5, path=None, no_target="error", features=None, **options
):
    dataset = RecordDataset(data, processor, training=True, replace_bad=True, no_target=no_target, features=features)
    options = {"order": RecordOrder([len(data)], seed), "bad_samples": BadSamples(len(data), bad_limit, path)} | options
    return TrainingBatches(dataset, batch_size, **options)


def ids(batches, number):
    stream = chain.from_iterable(batches.epoch(n) for n in range(1000))
    return [batch.ids for batch in islice(stream, number)]


def test_every_record_comes_once_per_epoch_and_the_order_changes(processor):
    seen = list(chain.from_iterable(ids(training(processor, records(10)), 5)))
    first, second = seen[:10], seen[10:]
    assert Counter(first) == Counter(second) == Counter(str(n) for n in range(10))
    assert first != second and first != sorted(first)


def test_order_depends_on_the_seed_alone(processor):
    assert ids(training(processor, records(10)), 4) == ids(training(processor, records(10)), 4)
    assert ids(training(processor, records(10), seed=1), 4) != ids(training(processor, records(10)), 4)


def test_epochs_join_without_gap_or_overlap(processor):
    batches = training(processor, records(10))
    per_epoch = [len(list(batches.epoch(n))) for n in range(4)]
    assert per_epoch == [3, 2, 3, 2] and batches.batches_per_epoch == 2.5
    assert [len(list(training(processor, records(3), 8).epoch(n))) for n in range(3)] == [1, 0, 1]


def test_processes_share_the_same_records_step_by_step(processor):
    one = ids(training(processor, records(10), 6), 5)
    shares = [ids(training(processor, records(10), 2, process=rank, processes=3), 5) for rank in range(3)]
    assert [tuple(chain.from_iterable(step)) for step in zip(*shares, strict=True)] == one


def test_skipping_goes_on_where_a_run_stopped(processor, monkeypatch):
    batches = training(processor, records(20))
    whole = [batch.ids for batch in batches.epoch(2)]
    prepared = []
    original = Processor.prepare
    monkeypatch.setattr(
        Processor,
        "prepare",
        lambda self, record, **options: prepared.append(record.id) or original(self, record, **options),
    )
    rest = [batch.ids for batch in batches.epoch(2, skip=3)]
    assert rest == whole[3:] and len(prepared) == 4 * len(rest)


def test_workers_change_nothing(tokenizer):
    processor = make_processor(tokenizer, AUGMENTED)
    state = torch.get_rng_state()
    data = records(9)
    data[4] = record("4", b"broken")
    alone, helped = (list(training(processor, data, workers=workers).epoch(1)) for workers in (0, 2))
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip(alone, helped, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.pixel_values, other.pixel_values)
        assert torch.equal(one.input_ids, other.input_ids)


def test_a_bad_record_is_replaced_by_the_next_good_one_counted_and_listed(processor, tmp_path):
    data = records(8)
    data[2], data[3] = record("2", b"not a picture"), record("3", "nowhere.png")
    batches = training(processor, data, path=tmp_path / "bad.jsonl")
    seen = Counter(chain.from_iterable(ids(batches, 4)))
    assert seen == Counter({"4": 6, **{str(n): 2 for n in (0, 1, 5, 6, 7)}})
    assert sorted(sample.id for sample in batches.bad_samples.samples) == ["2", "3"]
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert {line["id"]: line["where"] for line in lines} == {"2": "rows.json, row 2", "3": "rows.json, row 3"}
    assert any("nowhere.png: no such picture" in line["reason"] for line in lines)
    batch = next(training(processor, data).epoch(0))
    assert batch.pixel_values is not None and batch.pixel_values.flatten(1).std(dim=1).min() > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_records_stop_the_run_with_one_message(processor, workers):
    data = [record(str(n), b"broken") if n % 2 else record(str(n)) for n in range(8)]
    with pytest.raises(DataError, match=r"of 8 records cannot be used, more than the limit of 20.00%") as error:
        list(training(processor, data, bad_limit=0.2, workers=workers).epoch(0))
    assert "rows.json, row" in str(error.value) and "Traceback" not in str(error.value)


def test_nothing_usable_at_all(processor):
    with pytest.raises(DataError, match="none of the 3 records can be used"):
        list(training(processor, [record(str(n), b"broken") for n in range(3)], bad_limit=1).epoch(0))


def test_records_without_target_stop_or_are_listed(processor):
    data = records(6)
    data[1] = Record("1", data[1].images, data[1].turns[:1], where="rows.json, row 1")
    with pytest.raises(NoTargetError, match=r"rows\.json, row 1: .*nothing to learn"):
        list(training(processor, data, 6).epoch(0))
    batches = training(processor, data, 6, bad_limit=0, no_target="skip")
    assert Counter(next(batches.epoch(0)).ids)["2"] == 2
    assert [(sample.id, sample.counts) for sample in batches.bad_samples.samples] == [("1", False)]


def test_other_mistakes_are_never_skipped(processor):
    data = records(4)
    data[1] = Record("1", (), data[1].turns, where="rows.json, row 1")
    with pytest.raises(DataError, match=r"rows\.json, row 1"):
        list(training(processor, data, bad_limit=1, no_target="skip").epoch(0))


def test_evaluation_takes_every_good_record_once_in_order(processor):
    data = records(7)
    data[3] = record("3", b"broken")
    bad = BadSamples(7, limit=1)
    batches = list(evaluation_batches(RecordDataset(data, processor), 2, bad_samples=bad))
    assert [batch.ids for batch in batches] == [("0", "1"), ("2",), ("4", "5"), ("6",)]
    assert [sample.id for sample in bad.samples] == ["3"]
    shares = [
        evaluation_batches(RecordDataset(data, processor), 2, bad_samples=bad, process=rank, processes=2)
        for rank in range(2)
    ]
    seen = Counter(chain.from_iterable(batch.ids for share in shares for batch in share))
    assert seen == Counter(["0", "1", "2", "4", "5", "6"])


def test_check_images_finds_missing_files_without_opening_any(tmp_path):
    (tmp_path / "there.png").write_bytes(b"")
    data = [
        record("0", tmp_path / "there.png"),
        record("1", tmp_path / "missing.png"),
        record("2"),
        record("3", "data:image/png;base64,AAAA"),
        record("4", str(tmp_path / "missing.png")),
        record("5", tmp_path / ("too long" * 1000)),
    ]
    *found, too_long = check_images(data)
    assert [sample.id for sample in found] == ["1", "4"] and too_long.id == "5"
    assert str(tmp_path / "missing.png") in found[0].reason
    bad = BadSamples(len(data), limit=0.35, path=tmp_path / "bad.jsonl")
    bad.add(found)
    bad.add(found)
    assert len(bad.samples) == 2
    with pytest.raises(DataError, match=r"3 of 6 records.*35.00%"):
        bad.add([BadSample("9", "rows.json, row 9", "broken")])
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 3


class CountingTower:
    def __init__(self):
        self.pictures = 0

    def __call__(self, pixels):
        self.pictures += len(pixels)
        return pixels.flatten(2).transpose(1, 2) * 2  # (n, 64, 3)


def test_kept_features_equal_the_tower_and_run_it_once_per_picture(processor, tmp_path):
    Image.new("RGB", (5, 5), "red").save(tmp_path / "red.png")
    data = [*records(5), record("5", tmp_path / "red.png"), record("6", tmp_path / "red.png"), record("7")]
    data[7] = Record("7", data[0].images, data[0].turns)
    tower = CountingTower()
    store = keep_in_memory(data, IMAGE, tower, batch_size=4)
    assert tower.pictures == len(store) == 6
    assert store.nbytes == 6 * 64 * 3 * 4
    plain, kept = (next(training(processor, data, 8, features=features).epoch(0)) for features in (None, store))
    assert kept.pixel_values is None and plain.pixel_values is not None and kept.image_features is not None
    assert torch.equal(kept.image_features, tower(plain.pixel_values))
    assert tower.pictures == 6 + 8


def test_kept_features_refuse_augmentation_and_remember_bad_pictures(processor):
    with pytest.raises(SettingsError, match=r"image\.augment is 'crop_flip'"):
        Views(AUGMENTED)
    data = records(4)
    data[1] = record("1", "nowhere.png")
    store = keep_in_memory(data, IMAGE, CountingTower())
    with pytest.raises(ImageError, match=r"nowhere\.png: no such picture"):
        store[store.views.seen(data[1])]
    batches = training(processor, data, features=store)
    assert Counter(next(batches.epoch(0)).ids) == Counter({"0": 1, "2": 2, "3": 1})
    assert [sample.id for sample in batches.bad_samples.samples] == ["1"]
