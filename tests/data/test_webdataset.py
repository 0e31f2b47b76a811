"""Tars: every way samples are written down is read, every sample can be reached directly, hostile tars are refused."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightbridge.config.data import DataSettings
from sightbridge.data.readers import load_records, read_sources
from sightbridge.data.readers.patterns import expand_pattern
from sightbridge.data.readers.tar_index import read_tar_index
from sightbridge.errors import DataError, ImageError
from sightbridge.images.load import image_key, load_image
from sightbridge.text.turns import Turn


def picture(shade, kind="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, shade, shade)).save(file, kind)
    return file.getvalue()


def make_tar(path, files, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in files:
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1.5  # webdataset's own writer gives a time with a fraction, and so every file a pax header
            tar.addfile(info, io.BytesIO(content))
    return path


def conversation(question, answer):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def test_every_kind_of_sample(tmp_path):
    path = make_tar(
        tmp_path / "shard.tar",
        [
            ("a/1.jpg", picture(10)),
            ("a/1.txt", b"A red bus.\n"),
            ("a/2.json", {"caption": "A cat.", "url": "http://x", "similarity": None}),
            ("a/2.txt", b"not this"),
            ("a/2.jpg", picture(20)),
            ("a/3.PNG", picture(30, "PNG")),
            ("a/3.json", {"id": 3, **conversation("<image>\nWhat?", "A dog.")}),
            ("a/4.1.jpg", picture(40)),
            ("a/4.2.webp", picture(41, "WEBP")),
            ("a/4.json", conversation("<image> or <image>?", "The first.")),
            ("a/5.jpg", picture(50)),
            ("a/5.cls", b"7"),
            ("a/6.jpg", picture(60)),
            ("a/6.json", {"question": "How many?", "answer": ["2", "two", "2"]}),
            ("a/6.txt", b"not this"),
            ("a/7.jpg", picture(70)),
            ("a/7.json", {"caption": None, "width": 8}),
            ("a/7.txt", b"From the txt."),
            ("a/.hidden.txt", b"?"),
            ("README", b"?"),
            ("8.json", conversation("Hi", "Hello")),
        ],
    )
    records = load_records("webdataset", path)
    assert len(records) == 8
    answers = [record.turns[-1].text for record in records]
    assert answers == ["A red bus.", "A cat.", "A dog.", "The first.", "7", "2", "From the txt.", "Hello"]
    shades = [[load_image(source).getpixel((0, 0))[0] for source in record.images] for record in records]
    assert shades == [[10], [20], [30], [40, 41], [50], [60], [70], []]
    assert records[1].meta == {"url": "http://x"}
    assert [record.id for record in records][:4] == ["a/1", "a/2", "3", "a/4"]
    assert records[0].where == f"{path}, sample 'a/1'"
    assert records[4].meta == {"class": "7"}
    assert records[6].meta == {"width": 8}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_index_equals_tarfile(tmp_path, format):
    """Long and non-Latin names, directories and links included."""
    long = "folder/" * 12 + "x" * 60 if format == tarfile.USTAR_FORMAT else "folder/" * 40 + "x" * 150
    names = ["a.jpg", long + ".jpg", "b.txt", "ein Bär.txt", "c.txt"]
    path = make_tar(tmp_path / "a.tar", [(name, name.encode() * 100) for name in names], format)
    with tarfile.open(path, "a", format=format) as tar:
        for name, kind in [("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, long[-90:]
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("empty.txt"))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
    assert [tuple(member) for member in read_tar_index(path)] == expected
    assert len(expected) == len(names) + 1


def test_several_tars_are_one_list_read_in_any_order(tmp_path):
    for shard in range(3):
        files = []
        for n in range(4):
            files += [(f"{shard}{n}.jpg", picture(20 * shard + n)), (f"{shard}{n}.txt", f"{shard}{n}".encode())]
        make_tar(tmp_path / f"s-{shard:03d}.tar", files)
    source = {"format": "webdataset", "path": "s-{000..002}.tar"}
    records = read_sources(DataSettings.model_validate({"root": str(tmp_path), "train": [source]}), "train")
    by_glob = load_records("webdataset", tmp_path / "s-*.tar")
    assert [record.id for record in records] == [f"{s}{n}" for s in range(3) for n in range(4)]
    for index in (11, 0, 5, -1, -12):
        assert records[index] == by_glob[index]
        assert records[index].turns[1].text == records[index].id
    assert [record.id for record in records[3:6]] == ["03", "10", "11"]
    with pytest.raises(IndexError):
        records[12]
    copy = pickle.loads(pickle.dumps(records))  # what a worker process that is spawned gets
    assert load_image(copy[7].images[0]).getpixel((0, 0))[0] == 23
    limited = DataSettings.model_validate({"root": str(tmp_path), "train": [source | {"limit": 5}, source]})
    assert [record.id for record in read_sources(limited, "train")][4:6] == ["10", "00"]


def test_keys_of_pictures_tell_them_apart(tmp_path):
    files = [("a.jpg", picture(1)), ("a.txt", b"A"), ("b.jpg", picture(1)), ("b.txt", b"B")]
    one = load_records("webdataset", make_tar(tmp_path / "1.tar", files))
    other = load_records("webdataset", make_tar(tmp_path / "2.tar", files))
    keys = {image_key(record.images[0]) for records in (one, other) for record in records}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.jpg", b"x")], r"sample 'a': expected one of 'conversations', .* 'text'. The row has: -"),
        ([("a.txt", b"A")], "sample 'a': has no picture"),
        ([("a.jpg", b"x"), ("a.json", b"{")], "sample 'a', 'json', line 1: broken JSON"),
        ([("a.jpg", b"x"), ("a.json", b"[" * 100_000)], "sample 'a', 'json': broken JSON: maximum recursion depth"),
        ([("a.jpg", b"x"), ("a.json", b"9" * 5000)], "sample 'a', 'json': broken JSON: Exceeds the limit"),
        ([("a.jpg", b"x"), ("a.json", b"[]")], "'json': expected an object"),
        ([("a.jpg", b"x"), ("a.txt", b"\xff")], "sample 'a', 'txt': is not UTF-8"),
        ([("a.jpg", b"x"), ("a.json", conversation("What?", "That."))], "pictures in 'image' is 1"),
        ([("a.jpg", b"x"), ("a.txt", b" " * 5_000_000)], "5,000,000 bytes, more than the limit"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path, files, message):
    records = load_records("webdataset", make_tar(tmp_path / "a.tar", files))
    with pytest.raises(DataError, match=message):
        list(records)


def patched(path, offset, data):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def with_checksum(header):
    header = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def test_tars_that_are_refused(tmp_path):
    files = [("a.jpg", picture(1)), ("a.txt", b"A" * 2000), ("b.jpg", picture(2)), ("b.txt", b"B")]
    path = make_tar(tmp_path / "a.tar", files, tarfile.USTAR_FORMAT)
    whole = path.read_bytes()
    headers = [member.offset - 512 for member in read_tar_index(path)]

    def refuses(content, message):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_records("webdataset", path)

    refuses(whole[: headers[1] + 900], r"'a.txt' should have 2000 bytes, but the file ends after 388 .* cut off")
    refuses(whole[: headers[2]], "without an end mark: the tar was cut off")
    refuses(whole[: headers[2] + 100], "without an end mark: the tar was cut off")
    refuses(b"", "without an end mark")
    refuses(whole[: headers[2]] + b"\1" * 512 + whole[headers[2] + 512 :], f"byte {headers[2]}: the tar is damaged")
    refuses(b"{}" * 600, "not a tar file")
    refuses(gzip.compress(whole), "is compressed.*gunzip 'a.tar'")
    refuses(b"\0" * 10240, "holds no samples")
    negative = whole[:124] + b"\xff" * 11 + b"\0" + whole[136:512]  # the binary form of -256
    refuses(with_checksum(negative) + whole[512:], "should have -256 bytes")
    long_name = tarfile.TarInfo("x" * 5000)
    header = long_name.tobuf(tarfile.GNU_FORMAT)[:512]
    huge = with_checksum(header[:124] + b"%011o\0" % 70_000 + header[136:])
    refuses(huge + b"y" * 70_144 + whole, "extended header of 70000 bytes")
    twice = make_tar(tmp_path / "twice.tar", [("a.jpg", b"1"), ("a.JPG", b"2")])
    with pytest.raises(DataError, match="two files 'jpg'"):
        load_records("webdataset", twice)
    with pytest.raises(DataError, match=r"no file fits.*\*\.tgz"):
        load_records("webdataset", tmp_path / "*.tgz")
    with pytest.raises(DataError, match=r"of 4 files these are missing: .*s0\.tar and 3 more"):
        load_records("webdataset", tmp_path / "s{0..3}.tar")


def test_names_in_a_tar_are_no_paths(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    files = [("../secret.jpg", picture(9)), ("../secret.txt", b"mine"), ("/etc/passwd.jpg", picture(8))]
    records = load_records("webdataset", make_tar(tmp_path / "a.tar", [*files, ("/etc/passwd.txt", b"theirs")]))
    assert [record.turns[1] for record in records] == [Turn("assistant", "mine"), Turn("assistant", "theirs")]
    assert load_image(records[1].images[0]).getpixel((0, 0))[0] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "secret.txt"]


def test_pictures_in_a_tar_are_bounded_and_checked(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("a.jpg", picture(9)), ("a.txt", b"A"), ("b.jpg", b""), ("b.txt", b"B")])
    one, empty = (record.images[0] for record in load_records("webdataset", path))
    with pytest.raises(ImageError, match=r"'a.jpg' at byte .* larger than the limit of 100 bytes"):
        load_image(one, max_bytes=100)
    with pytest.raises(ImageError, match=r"'b.jpg' at byte .* empty"):
        load_image(empty)
    path.write_bytes(path.read_bytes()[: one.offset + 10])
    with pytest.raises(ImageError, match=r"'a.jpg' at byte .* ends inside of it"):
        load_image(one)
    path.unlink()
    with pytest.raises(ImageError, match="cannot read the picture file: No such file"):
        load_image(one)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{08..11}.tar", ["08", "09", "10", "11"]),
        ("{9..10}.tar", ["9", "10"]),
        ("{a,b}{1,2}.tar", ["a1", "a2", "b1", "b2"]),
        ("*.tar", ["x", "y"]),
        ("plain.tar", ["plain"]),
        ("odd[1]{x}.tar", ["odd[1]{x}"]),
    ],
)
def test_patterns(tmp_path, pattern, names):
    for name in reversed(names):
        (tmp_path / f"{name}.tar").touch()
    assert expand_pattern(tmp_path / pattern) == [Path(tmp_path / f"{name}.tar") for name in names]


def test_a_pattern_of_too_many_names_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"\{0\.\.99999999999\} names more than 1,000,000 files"):
        expand_pattern(tmp_path / "{0..99999999999}.tar")


def test_pixels_survive(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    records = load_records("webdataset", make_tar(tmp_path / "a.tar", [("a.png", file.getvalue()), ("a.txt", b"A")]))
    assert np.array_equal(np.asarray(load_image(records[0].images[0])), pixels)
