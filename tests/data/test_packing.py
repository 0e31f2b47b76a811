"""Packing from records to the model's loss: rows that share a row are trained on as if each had one of its own."""

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch

from sightbridge.batch import IGNORE_INDEX
from sightbridge.data.bad_samples import BadSamples
from sightbridge.data.dataset import RecordDataset, TrainingBatches
from sightbridge.data.order import RecordOrder, RowRoom
from sightbridge.data.packing import pack_rows
from sightbridge.generation.generate import generate
from sightbridge.training.order import row_length
from small_models import SLOTS, make_processor, record, small_model

WORDS = [
    "a",
    "yellow",
    "dog",
    "chases",
    "the",
    "large",
    "red",
    "bus",
    "near",
    "a",
    "tree",
    "and",
    "a",
    "small",
    "house",
]


def some_records(number=12):
    """Records of many lengths with 0, 1 or 2 pictures; some begin with a target, having neither BOS nor prompt."""
    return [
        record(str(n), "<image>" * (n % 3), " ".join(WORDS[: 1 + (5 * n) % 11]), images=n % 3, where=f"row {n}")
        for n in range(number)
    ]


CASES = {
    "decoder": {"template": "plain", "tokenizer": "llama"},
    "decoder without BOS": {"template": "plain", "tokenizer": "llama3"},
    "encoder-decoder": {"template": "t5_plain_split_text", "tokenizer": "t5", "encoder_decoder": True},
}


def batches_of(processor, records, room, **options):
    lengths = [row_length(processor.encode(one, training=True), processor.encoder_decoder) for one in records]
    order = RecordOrder([len(records)], seed=1, lengths=lengths, pack_to=room)
    pack = partial(pack_rows, room=room, encoder_decoder=processor.encoder_decoder)
    dataset = RecordDataset(records, processor, training=True, replace_bad=True, pack=pack)
    return TrainingBatches(dataset, 2, order=order, bad_samples=BadSamples(len(records), 0.5), **options)


@pytest.mark.parametrize("case", CASES)
def test_parity_of_packed_batches_with_records_alone(case):
    processor = make_processor(**CASES[case])
    model = small_model("t5" if processor.encoder_decoder else "llama")
    records = some_records()
    by_id = {one.id: one for one in records}
    seen = Counter()
    for epoch in range(2):
        for batch in batches_of(processor, records, RowRoom(64, 40)).epoch(epoch):
            names = [name for row in batch.ids for name in row.split(", ")]
            alone = []
            for name in names:
                alone.append(processor([by_id[name]], training=True, epoch=seen[name]))
                seen[name] += 1
            assert len(batch) == len(alone) > len(batch.input_ids)
            assert batch.images_per_row.sum() == sum(len(by_id[name].images) for name in names)
            loss, losses = model(batch)["lm"], [model(one)["lm"] for one in alone]
            assert loss.count == batch.n_target_tokens == sum(one.count for one in losses)
            gradients = [
                torch.autograd.grad(
                    total, list(model.connector.parameters()), allow_unused=True, materialize_grads=True
                )
                for total in (loss.sum, torch.stack([one.sum for one in losses]).sum())
            ]
            difference = abs(loss.sum - sum(one.sum for one in losses)).item() / loss.count
            widest = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True))
            print(f"parity of packing, {case}: loss {difference:.1e} per token, gradients {widest:.1e}")
            assert difference < 1e-5 and widest < 1e-4
            leaking = model(replace(batch, segments=None, decoder_segments=None))["lm"]
            assert abs(loss.sum - leaking.sum) / loss.count > 1e-4, "this test would not notice a wrong segment"
    assert set(seen.values()) <= {2, 3}, "all records, and some of epoch 2 in the last step"


def test_first_labels_of_records_and_segments():
    processor = make_processor("plain", "llama3")
    rows = [processor.prepare(record(str(n), "", text)) for n, text in enumerate(["a red bus", "a dog"])]
    joined = pack_rows(rows, RowRoom(100, 100), encoder_decoder=False)
    assert len(joined) == 1 and joined[0].id == "0, 1"
    length = len(rows[0].encoded.input_ids)
    labels = joined[0].encoded.labels
    assert rows[0].encoded.labels[0] != IGNORE_INDEX, "it begins with a target"
    assert labels[0] == labels[length] == IGNORE_INDEX
    assert joined[0].segments == [1] * length + [2] * (len(labels) - length)
    assert joined[0].encoded.n_target_tokens == sum(label != IGNORE_INDEX for label in labels)


def test_a_row_that_grew_stays_whole_in_a_row_of_its_own():
    processor = make_processor("plain", "llama")
    rows = [processor.prepare(one) for one in some_records(9)]
    sizes = [len(row.encoded.input_ids) for row in rows]
    packed = pack_rows(rows, RowRoom(max(sizes) + min(sizes), 0), encoder_decoder=False)
    assert len(packed) > 1
    assert sorted(name for row in packed for name in row.id.split(", ")) == [str(n) for n in range(9)]
    assert sum(len(row.encoded.input_ids) for row in packed) == sum(sizes)
    batch = processor.collate(packed)
    assert batch.segments is not None and len(batch) == 9
    assert batch.image_slots.sum() == SLOTS * sum(n % 3 for n in range(9))
    decoders = make_processor("t5_v1", "t5", encoder_decoder=True)
    rows = [decoders.prepare(record(str(n), "What?", "a red bus")) for n in range(3)]
    targets = len(rows[0].encoded.labels)
    assert len(pack_rows(rows, RowRoom(1000, 2 * targets), encoder_decoder=True)) == 2, "its decoder's side is full"


def test_bad_records_are_replaced_in_packed_rows_too():
    processor = make_processor("plain", "llama")
    records = some_records()
    records[4] = record("4", "<image>", "a", images=1)
    records[4] = type(records[4])("4", (b"broken",), records[4].turns, where="row 4")
    batches = batches_of(processor, records, RowRoom(64, 0))
    names = [name for batch in batches.epoch(0) for row in batch.ids for name in row.split(", ")]
    assert "4" not in names and Counter(names)["5"] >= 2
    assert [sample.where for sample in batches.bad_samples.samples] == ["row 4"]


def test_processes_and_resuming_change_nothing():
    processor = make_processor("plain", "llama")
    records = some_records(30)
    whole = [batch.ids for batch in batches_of(processor, records, RowRoom(64, 0)).epoch(1)]
    rest = batches_of(processor, records, RowRoom(64, 0)).epoch(1, skip=2)
    assert [batch.ids for batch in rest] == whole[2:]
    shares = [
        [batch.ids for batch in batches_of(processor, records, RowRoom(64, 0), process=rank, processes=2).epoch(0)]
        for rank in range(2)
    ]
    one = batches_of(processor, records, RowRoom(64, 0), accumulation=2)
    assert [ids for pair in zip(*shares, strict=True) for ids in pair] == [batch.ids for batch in one.epoch(0)]


def test_packed_rows_cannot_be_continued():
    processor = make_processor("plain", "llama")
    batch = next(islice(batches_of(processor, some_records(), RowRoom(64, 0)).epoch(0), 1))
    with pytest.raises(AssertionError, match="without packing"):
        generate(small_model("llama"), batch, eos_ids=(2,), pad_id=0)
