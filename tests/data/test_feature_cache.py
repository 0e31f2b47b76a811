"""Stored features: those computed, found by content, whole after a kill, and never those of something else."""

import json
import os
import pickle
import signal
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightbridge.config.model import ImageSettings, PromptSettings
from sightbridge.data import picture_hashes
from sightbridge.data.bad_samples import BadSamples
from sightbridge.data.dataset import RecordDataset, evaluation_batches
from sightbridge.data.feature_cache import CacheKey, FeatureCache, open_cache, read_key, write_key
from sightbridge.data.feature_cache_build import build_entries
from sightbridge.data.feature_shards import is_intact, pictures_per_shard
from sightbridge.data.feature_store import MemoryFeatures, Views, entry_bytes, from_dtype, to_dtype
from sightbridge.data.picture_hashes import PictureHashes
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import DataError, ImageError, SettingsError
from sightbridge.images.load import FileSlice
from sightbridge.text.turns import Turn

TOKENIZER = Path(__file__).parents[1] / "golden" / "llava" / "tokenizers" / "llama"
IMAGE = ImageSettings(size=8)
AUGMENTED = ImageSettings(size=8, augment="crop_flip")


def make_key(**changes):
    weights, parts = {"vision_tower": "0" * 64}, {"vision_tower": {"layers": [-1]}}
    settings = {"prefix": "tower", "weights": weights, "parts": parts, "image": {"size": 8}}
    return CacheKey(**settings | {"precision": "fp32", "dtype": "float32"} | changes)


def encode(pixels):
    return pixels.flatten(2).transpose(1, 2) * 2  # (n, 64, 3)


@pytest.fixture
def pictures(tmp_path):
    """Seven files, the last a copy of the first."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "6.png").write_bytes((folder / "0.png").read_bytes())
    return [folder / f"{number}.png" for number in range(7)]


def records_of(pictures):
    turns = (Turn("user", "<image>"), Turn("assistant", "A bus."))
    return [Record(path.stem, (path,), turns, where=f"rows.json, row {path.stem}") for path in pictures]


def build(folder, pictures, image=IMAGE, key=None, views=None, encode=encode, **options):
    key = key or make_key()
    views = views or Views(image)
    inner = write_key(folder, key, {})
    cache = FeatureCache(folder, key, views)
    wanted = list(views.of(records_of(pictures), training=True))
    cache.hashes.learn(view.source for view in wanted)
    missing = cache.missing(cache.entries(wanted))
    bad = build_entries(inner, missing, views, encode, key.dtype, **({"batch_size": 2, "per_shard": 3} | options))
    return len(missing), bad


def test_stored_features_are_the_computed_ones(tmp_path, pictures):
    assert build(tmp_path / "cache", pictures) == (6, {})
    views = Views(IMAGE)
    wanted = list(views.of(records_of(pictures), True))
    cache = open_cache(tmp_path / "cache", make_key(), views, wanted, "make it")
    memory = MemoryFeatures(wanted, views, encode)
    assert len(cache) == 6 and len(memory) == 7
    for view in wanted:
        computed = encode(views.open(view)[None])[0]
        assert torch.equal(cache[view], computed) and torch.equal(memory[view], computed)
    names = {path.name for path in cache.folder.iterdir()}
    assert len([name for name in names if name.endswith(".safetensors")]) == 2 and not any("tmp" in n for n in names)


def test_a_second_build_makes_and_reads_nothing(tmp_path, pictures, monkeypatch):
    build(tmp_path / "cache", pictures)
    monkeypatch.setattr(picture_hashes, "read_bytes", None)
    assert build(tmp_path / "cache", pictures)[0] == 0


def test_pictures_inside_a_larger_file_are_remembered_too(tmp_path, pictures, monkeypatch):
    contents = [path.read_bytes() for path in pictures]
    (tmp_path / "all.tar").write_bytes(b"".join(contents))
    ends = list(accumulate(map(len, contents)))
    slices = [
        FileSlice(tmp_path / "all.tar", end - len(data), len(data)) for end, data in zip(ends, contents, strict=True)
    ]
    hashes = PictureHashes(tmp_path)
    hashes.learn(slices)
    assert [hashes.of(part) for part in slices] == [hashes.of(path) for path in pictures]
    monkeypatch.setattr(picture_hashes, "read_bytes", None)
    assert PictureHashes(tmp_path).of(slices[3]) == hashes.of(pictures[3])
    (tmp_path / "all.tar").write_bytes(b"")
    monkeypatch.undo()
    with pytest.raises(ImageError, match=r"all\.tar.*ends inside"):
        PictureHashes(tmp_path).of(slices[3])


def test_a_changed_picture_is_another(tmp_path, pictures):
    build(tmp_path / "cache", pictures)
    Image.new("RGB", (9, 9), "red").save(pictures[2])
    wanted = list(Views(IMAGE).of(records_of(pictures), True))
    with pytest.raises(DataError, match=r"features of 1 pictures are missing, such as .*2\.png\. Make them: make it"):
        open_cache(tmp_path / "cache", make_key(), Views(IMAGE), wanted, "make it")
    assert build(tmp_path / "cache", pictures)[0] == 1
    open_cache(tmp_path / "cache", make_key(), Views(IMAGE), wanted, "make it")


def test_killed_anywhere_it_keeps_finished_shards(tmp_path, pictures):
    calls = []

    def killed_at_the_third(pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(pixels)

    child = os.fork()
    if child == 0:
        build(tmp_path / "cache", pictures, encode=killed_at_the_third)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    with (tmp_path / "cache" / "hashes-0.jsonl").open("a") as file:
        file.write('{"key": "file:cut sho')
    assert build(tmp_path / "cache", pictures)[0] == 3
    wanted = Views(IMAGE).of(records_of(pictures), True)
    assert len(open_cache(tmp_path / "cache", make_key(), Views(IMAGE), wanted, "")) == 6


def test_processes_build_their_shares_together(tmp_path, pictures):
    views, key = Views(IMAGE), make_key()
    inner = write_key(tmp_path, key, {})
    cache = FeatureCache(tmp_path, key, views)
    missing = cache.missing(cache.entries(views.of(records_of(pictures), True)))
    for process in range(2):
        share = dict(islice(missing.items(), process, None, 2))
        build_entries(inner, share, views, encode, "float32", process=process, per_shard=2)
    assert len(FeatureCache(tmp_path, key, views)) == 6


def test_pictures_that_cannot_be_opened_are_listed_and_stay_bad_samples(tmp_path, pictures):
    pictures[3].write_bytes(pictures[3].read_bytes()[:60])
    pictures[5].unlink()
    count, bad = build(tmp_path / "cache", pictures)
    assert count == 5 and len(bad) == 1
    views = Views(IMAGE)
    wanted = list(views.of(records_of(pictures), True))
    cache = open_cache(tmp_path / "cache", make_key(), views, wanted, "")
    with pytest.raises(ImageError, match=r"3\.png: the picture is truncated or damaged"):
        cache[wanted[3]]
    with pytest.raises(ImageError, match=r"5\.png: no such picture file"):
        cache[wanted[5]]
    processor = make_processor(IMAGE)
    samples = [BadSamples(7, limit=1) for _ in range(2)]
    with_cache, without = (
        list(evaluation_batches(RecordDataset(records_of(pictures), processor, features=store), 7, bad_samples=bad))
        for store, bad in zip((cache, None), samples, strict=True)
    )
    assert with_cache[0].ids == without[0].ids
    assert samples[0].samples == samples[1].samples and len(samples[0].samples) == 2


def make_processor(image):
    prompt = PromptSettings(template="plain")
    return Processor(load_tokenizer(TOKENIZER), prompt, image, tokens_per_image=2, encoder_decoder=False, seed=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_look_up_what_training_would_have_drawn(tmp_path, pictures, workers):
    views = Views(AUGMENTED, seed=3, stored=2)
    build(tmp_path / "cache", pictures, views=views)
    records = records_of(pictures)
    cache = open_cache(tmp_path / "cache", make_key(), views, views.of(records, True), "")
    assert len(cache) == 14, "a copy of a picture in another record is drawn anew"
    processor = make_processor(AUGMENTED)
    stored, drawn = (RecordDataset(records, processor, training=True, features=store) for store in (cache, None))
    loader = torch.utils.data.DataLoader(
        stored, None, sampler=[[((epoch, i),) for i in range(7)] for epoch in range(3)], num_workers=workers,
        collate_fn=lambda fetched: fetched,
    )  # fmt: skip
    for fetched, epoch in zip(loader, (0, 1, 0), strict=True):
        expected = drawn[[((epoch, i),) for i in range(7)]].batch
        assert torch.equal(fetched.batch.image_features, encode(expected.pixel_values))


def test_open_files_stay_behind_when_a_store_travels(tmp_path, pictures):
    build(tmp_path / "cache", pictures)
    views = Views(IMAGE)
    wanted = list(views.of(records_of(pictures), True))
    cache = open_cache(tmp_path / "cache", make_key(), views, wanted, "")
    here = cache[wanted[0]]
    assert torch.equal(pickle.loads(pickle.dumps(cache))[wanted[0]], here)


def test_a_run_with_other_settings_is_told_what_differs(tmp_path, pictures):
    build(tmp_path / "cache", pictures)
    other = make_key(image={"size": 12}, dtype="bfloat16", weights={"vision_tower": "1" * 64})
    with pytest.raises(DataError) as error:
        open_cache(tmp_path / "cache", other, Views(IMAGE), [], "sightbridge cache mine")
    for text in ("image.size is 8, not 12", "dtype is float32, not bfloat16", "sightbridge cache mine"):
        assert text in str(error.value)
    assert "the weights of the vision tower are others" in str(error.value)
    with pytest.raises(DataError, match="no such feature cache"):
        open_cache(tmp_path / "none", other, Views(IMAGE), [], "")


def test_damage_is_found(tmp_path, pictures):
    build(tmp_path / "cache", pictures)
    key = make_key()
    shards = sorted((tmp_path / "cache" / key.folder).glob("*.safetensors"))
    assert all(map(is_intact, shards))
    content = bytearray(shards[0].read_bytes())
    content[-5] ^= 1
    shards[0].write_bytes(content)
    assert [is_intact(shard) for shard in shards] == [False, True]
    shards[0].write_bytes(content[:100])
    with pytest.raises(DataError, match=r"damaged .* Delete it and run 'sightbridge cache' again"):
        FeatureCache(tmp_path / "cache", key, Views(IMAGE))
    path = tmp_path / "cache" / key.folder / "key.json"
    assert read_key(path.parent) == key
    for damage in (json.dumps({"key": {"prefix": 1}}), "[" * 100_000):
        path.write_text(damage)
        with pytest.raises(DataError, match=r"key\.json: not the key"):
            read_key(path.parent)


ROUNDING = {"float32": 0.0, "float16": 3e-4, "bfloat16": 2e-3, "fp8": 0.027}


@pytest.mark.parametrize(("dtype", "largest"), ROUNDING.items())
def test_rounding_of_each_type(dtype, largest):
    features = torch.randn(4, 257, 704)
    features[..., 7] *= 200  # outlier channels, as ViT-g has
    features[:, 0] *= 50
    values, scales = to_dtype(features, dtype)
    back = from_dtype(values, scales).float()
    ordinary = [channel for channel in range(704) if channel != 7]
    error = float((back - features)[..., ordinary].norm() / features[..., ordinary].norm())
    worst = float(((back - features).norm(dim=-1) / features.norm(dim=-1)).max())
    print(f"{dtype}: relative error {error:.5f} beside outlier channels; of the worst token, with them, {worst:.5f}")
    assert error <= largest and worst <= 2.5 * largest
    size = 257 * 704 * values.element_size() + (257 * 4 if dtype == "fp8" else 0)
    assert entry_bytes(*to_dtype(features[0], dtype)) == size


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(SettingsError, match="cannot be stored as float16: they overflow"):
        to_dtype(torch.full((2, 3), 1e5), "float16")
    with pytest.raises(SettingsError, match="infinite or undefined"):
        to_dtype(torch.full((2, 3), torch.nan), "fp8")


def test_views_need_a_number_when_pictures_are_drawn():
    with pytest.raises(SettingsError, match=r"image\.augment is 'crop_flip'.*data\.cache_views"):
        Views(AUGMENTED)
    names = {Views(AUGMENTED, seed, 2).seen(Record("r", ("a.png",), ()), training=True, epoch=epoch).drawn
             for seed in (0, 1) for epoch in range(4)}  # fmt: skip
    assert len(names) == 4


def test_hashes_do_not_trust_a_changed_file(tmp_path, pictures):
    hashes = PictureHashes(tmp_path)
    hashes.learn(pictures)
    assert len(hashes.present()) == 6
    again = PictureHashes(tmp_path)
    assert again.of(pictures[0]) == hashes.of(pictures[0]) == again.of(pictures[0].read_bytes())
    pictures[1].write_bytes(b"other")
    assert PictureHashes(tmp_path).of(pictures[1]) != hashes.of(pictures[1])
    assert len(PictureHashes(tmp_path).present()) == 5
    (tmp_path / "hashes-1.jsonl").write_bytes(b"\x80\x04\n5\n" + b"[" * 100_000 + b"\n")  # damage costs time only
    assert len(PictureHashes(tmp_path).present()) == 5


def test_shards_hold_as_much_as_they_should():
    assert pictures_per_shard(257 * 1408 * 2) == 370
    assert pictures_per_shard(10) == 4096 and pictures_per_shard(2**30) == 1
