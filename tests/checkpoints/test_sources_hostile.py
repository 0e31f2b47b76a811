"""Files that are damaged, or made to harm: each is refused with one clear line, quickly, in little memory."""

import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.errors import CheckpointError

Make = Callable[[Path], Any]
GOOD = {"a.weight": torch.arange(600.0).reshape(20, 30), "b": torch.ones(3, dtype=torch.bfloat16)}


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path, *command: Any) -> None:
        self.call = command or (os.system, f"touch {mark}")

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call[0], tuple(self.call[1:])


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def table(entries: dict[str, Any], data: bytes = b"", notes: Any = None) -> bytes:
    """A safetensors file."""
    return raw_table(json.dumps(entries | ({"__metadata__": notes} if notes is not None else {})).encode()) + data


def raw_table(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def entry(shape: list[Any], begins: int, ends: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begins, ends]}


def torch_bytes(content: Any, new: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def rezipped(content: bytes, change: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED) -> bytes:
    """A torch archive whose members have been changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            if (data := change(name, old.read(name))) is not None:
                new.writestr(name, data)
    return buffer.getvalue()


def pickled(*opcodes: bytes) -> bytes:
    """A torch archive with a pickle of one's own."""
    return rezipped(torch_bytes(GOOD), lambda name, data: b"".join(opcodes) if name.endswith("data.pkl") else data)


def with_storage(count: int, shape: tuple[int | bytes, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """An archive of one tensor that looks as it is told at a storage of 600 numbers."""
    text = lambda value: b"X" + struct.pack("<I", len(value)) + value.encode()  # noqa: E731
    one = lambda value: value if isinstance(value, bytes) else b"I%d\n" % value  # noqa: E731
    numbers = lambda values: b"(" + b"".join(map(one, values)) + b"t"  # noqa: E731
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"I%d\ntQ" % count
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I%d\n" % offset + numbers(shape) + numbers(strides)
    return pickled(b"\x80\x02}", text("w"), tensor, b"\x89}tRs.")


def folder(path: Path, places: dict[str, Any], extra: dict[str, bytes] | None = None) -> Path:
    """A folder of one shard and an index."""
    path.mkdir()
    save_file(GOOD, path / "model-1.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for name, content in (extra or {}).items():
        (path / name).write_bytes(content)
    return path


def sparse(path: Path, start: bytes, size: int) -> Path:
    """A large file that takes no room."""
    path.write_bytes(start)
    os.truncate(path, size)
    return path


EXECUTING: dict[str, Make] = {
    "torch zip": lambda p: write(p, torch_bytes({"w": Evil(p.with_name("mark"))})),
    "torch zip, beside the weights": lambda p: write(p, torch_bytes({"model": GOOD, "x": Evil(p.with_name("mark"))})),
    "torch legacy": lambda p: write(p, torch_bytes({"w": Evil(p.with_name("mark"))}, new=False)),
    "pdparams": lambda p: write(p, pickle.dumps({"w": Evil(p.with_name("mark"))}, protocol=4)),
    "pdparams, protocol 2": lambda p: write(p, pickle.dumps({"w": Evil(p.with_name("mark"))}, protocol=2)),
    "object array": lambda p: write(
        p, pickle.dumps({"w": np.array([Evil(p.with_name("mark"))], dtype=object)}, protocol=4)
    ),
    "eval": lambda p: write(p, pickle.dumps({"w": Evil(p, eval, f"open({str(p.with_name('mark'))!r}, 'w')")})),
    "eval in a torch zip": lambda p: write(
        p, torch_bytes({"w": Evil(p, eval, f"open({str(p.with_name('mark'))!r}, 'w')")})
    ),
}

BOMBS: dict[str, Make] = {
    "compressed archive": lambda p: write(p, rezipped(torch_bytes(GOOD), lambda n, d: d, zipfile.ZIP_DEFLATED)),
    "compressed zeros": lambda p: write(
        p, rezipped(torch_bytes(GOOD), lambda n, d: bytes(1 << 26) if "data/0" in n else d, zipfile.ZIP_DEFLATED)
    ),
    "huge frame": lambda p: write(p, b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}."),
    "huge bytes": lambda p: write(p, b"\x80\x04}\x8e" + struct.pack("<Q", 1 << 60)),
    "huge text": lambda p: write(p, b"\x80\x04}\x8d" + struct.pack("<Q", 1 << 60)),
    "huge bytearray": lambda p: write(p, b"\x80\x04}\x96" + struct.pack("<Q", 1 << 33) + b"."),
    "huge memo": lambda p: write(p, b"\x80\x02}r\xff\xff\xff\x7f."),
    "many lists": lambda p: write(p, pickled(b"\x80\x02" + b"]" * (7 << 20) + b".")),
    "nested tuples as keys": lambda p: write(p, pickled(b"\x80\x02}N" + b"2\x86" * 200 + b"Ns.")),
    "nested tuples as keys of pairs": lambda p: write(
        p, b"\x80\x02ccollections\nOrderedDict\n(]((N" + b"2\x86" * 200 + b"NtatR."
    ),
    "nested lists as a type": lambda p: write(
        p,
        pickle.dumps({"w": np.zeros(600, "f4")}, protocol=3).replace(
            b"X\x02\x00\x00\x00f4", b"]" + b"q\xf0]h\xf0ah\xf0a" * 100
        ),
    ),
    "list as a length": lambda p: write(p, with_storage(600, (1 << 31, b"]Na"), (1, 1))),
    "billion laughs": lambda p: write(p, pickled(b"\x80\x02]" + b"q\x00]h\x00ah\x00a" * 100 + b".")),
    "deep nesting": lambda p: write(p, pickled(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")),
    "long number": lambda p: write(p, pickled(b"\x80\x02I" + b"9" * 100_000 + b"\n.")),
    "pickle of a gigabyte": lambda p: sparse(p, b"\x80\x02}", 1 << 30),
    "names without end, torch": lambda p: write(p, torch_bytes({"model": dict.fromkeys(map(str, range(10**6)), 1.5)})),
    "names without end, safetensors": lambda p: write(
        p, raw_table(b"{" + b",".join(b'"layers.%d":{"dtype":"F32","shape":[0]}' % i for i in range(10**6)) + b"}")
    ),
    "table of a terabyte": lambda p: write(p, struct.pack("<Q", 1 << 40) + b"{}"),
    "deep table": lambda p: write(p, raw_table(b'{"a":' * 100_000)),
    "huge shape": lambda p: write(p, table({"w": entry([1 << 40, 1 << 40], 0, 4)}, bytes(4))),
    "overflowing shape": lambda p: write(p, table({"w": entry([1 << 32, 1 << 32], 0, 0)})),
    "huge expanded tensor": lambda p: write(p, with_storage(600, (1 << 20, 1 << 20), (0, 0))),
    "huge config.json": lambda p: sparse(write(p, torch_bytes(GOOD)).with_name("config.json"), b"{", 1 << 30),
    "deep config.json": lambda p: write(write(p, torch_bytes(GOOD)).with_name("config.json"), b'{"a":' * 100_000),
    "huge index": lambda p: sparse(folder(p, {}) / "model.safetensors.index.json", b"{", 1 << 30),
    "long archive directory": lambda p: write(p, _archive_of_many(400_000)),
}

DAMAGED: dict[str, Make] = {
    "storage longer than the archive's": lambda p: write(p, with_storage(10**9, (600,), (1,))),
    "tensor beyond its storage": lambda p: write(p, with_storage(600, (600,), (1,), offset=1)),
    "negative offset": lambda p: write(p, with_storage(600, (10,), (1,), offset=-5)),
    "negative stride": lambda p: write(p, with_storage(600, (10,), (-1,))),
    "negative shape": lambda p: write(p, with_storage(600, (-10,), (1,))),
    "strides of other axes": lambda p: write(p, with_storage(600, (10, 2), (1,))),
    "storage missing": lambda p: write(
        p, rezipped(torch_bytes(GOOD), lambda n, d: None if n.endswith("data/0") else d)
    ),
    "shorter storage": lambda p: write(
        p, rezipped(torch_bytes(GOOD), lambda n, d: d[:-1] if n.endswith("data/0") else d)
    ),
    "big-endian": lambda p: write(
        p, rezipped(torch_bytes(GOOD), lambda n, d: b"big" if n.endswith("byteorder") else d)
    ),
    "any zip": lambda p: write(p, rezipped(torch_bytes(GOOD), lambda n, d: None if n.endswith("data.pkl") else d)),
    "torchscript": lambda p: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), p),
    "sparse": lambda p: torch.save({"w": torch.eye(3).to_sparse()}, p),
    "quantised": lambda p: torch.save({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)}, p),
    "a module": lambda p: torch.save(torch.nn.Linear(2, 2), p),
    "a list": lambda p: torch.save([torch.ones(2)], p),
    "no tensors": lambda p: torch.save({"epoch": 1}, p),
    "escape in a name": lambda p: torch.save({"\x1b]0;owned\x07": torch.ones(2)}, p),
    "number as a name": lambda p: torch.save({1: torch.ones(2)}, p),
    "overlapping tensors": lambda p: write(p, table({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, bytes(6))),
    "gap": lambda p: write(p, table({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12))),
    "wrong type": lambda p: write(p, table({"a": entry([1], 0, 4, "F64")}, bytes(4))),
    "unknown type": lambda p: write(p, table({"a": entry([1], 0, 4, "F4")}, bytes(4))),
    "offsets backwards": lambda p: write(p, table({"a": entry([1], 4, 0)}, bytes(4))),
    "text as a shape": lambda p: write(p, table({"a": entry(["1"], 0, 4)}, bytes(4))),
    "true as a length": lambda p: write(p, table({"a": entry([True], 0, 4)}, bytes(4))),
    "notes that are no texts": lambda p: write(p, table({"a": entry([1], 0, 4)}, bytes(4), notes={"x": [1]})),
    "the same name twice": lambda p: write(
        p, table({"a": entry([1], 0, 4)}, bytes(4)).replace(b'"a": ', b'"a":1,"a":')
    ),
    "entry that is a list": lambda p: write(p, raw_table(b'{"a":[]}')),
    "empty file": lambda p: write(p, b""),
    "git lfs pointer": lambda p: write(p, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "web page": lambda p: write(p, b"<!DOCTYPE html><html>404</html>"),
    "gguf": lambda p: write(p, b"GGUF" + bytes(100)),
    "text": lambda p: write(p, b"hello"),
    "missing": lambda p: None,
    "paddle array of wrong size": lambda p: write(
        p, pickle.dumps({"w": np.zeros(600, "f4")}, protocol=4).replace(b"M\x58\x02", b"M\x59\x02")
    ),
    "slices missing": lambda p: write(
        p,
        pickle.dumps({"UnpackBigParamInfor@@": {"w": {"OriginShape": (2,), "slices": ["w@@.0"]}}}, protocol=2),
    ),
    "big-endian array": lambda p: write(p, pickle.dumps({"w": np.zeros(600, ">f4")}, protocol=4)),
    "array of texts": lambda p: write(p, pickle.dumps({"w": np.array(["x"])}, protocol=4)),
    "empty folder": lambda p: p.mkdir(),
    "index out of the folder": lambda p: folder(p, {"a.weight": "../model-1.safetensors"}),
    "index with an absolute path": lambda p: folder(p, {"a.weight": "/etc/passwd"}),
    "index with a number": lambda p: folder(p, {"a.weight": 3}),
    "index with a list": lambda p: folder(p, {"a.weight": ["model-1.safetensors"]}),
    "named pipe": os.mkfifo,
    "index of a missing shard": lambda p: folder(p, {"a.weight": "model-2.safetensors"}),
    "index of renamed shards": lambda p: folder(
        p, {"a.weight": "model-1.safetensors", "c": "model-2.safetensors"}, {"model-2.safetensors": save(GOOD)}
    ),
    "index of nothing": lambda p: folder(p, {}),
    "latest out of the folder": lambda p: (p.mkdir(), write(p / "latest", b"../.."))[0],
}


def _archive_of_many(count: int) -> bytes:
    """A zip archive whose list of files is long."""
    name = b"a/data/" + b"0" * 60
    one = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    local = b"PK\x03\x04" + bytes(26)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, len(one) * count, len(local), 0)
    return local + one * count + end


def one_line(make: Make, tmp_path: Path) -> str:
    """Open and read what is made; returns the message, which must come soon and after little memory."""
    path = tmp_path / "file"
    make(path)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError) as raised:
        weights = open_weights(path)
        for name in weights.infos:
            weights.read(name)
    seconds = time.process_time() - start
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    message = str(raised.value)
    assert seconds < 15, f"took {seconds:.1f} s"
    assert megabytes < 700, f"took {megabytes:.0f} MB"
    assert str(tmp_path) in message
    assert "\n" not in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize("kind", EXECUTING)
def test_nothing_in_a_file_is_run(tmp_path: Path, kind: str) -> None:
    message = one_line(EXECUTING[kind], tmp_path)
    assert "nothing in it was run" in message or "object" in message or "names" in message
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_do_not_go_off(tmp_path: Path, kind: str) -> None:
    one_line(BOMBS[kind], tmp_path)


@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_found(tmp_path: Path, kind: str) -> None:
    one_line(DAMAGED[kind], tmp_path)


CONTAINERS = {
    "safetensors": save(GOOD),
    "torch": torch_bytes(GOOD),
    "legacy": torch_bytes(GOOD, new=False),
    "paddle": pickle.dumps({"a.weight": np.arange(600, dtype="f4").reshape(20, 30), "b": np.ones(3, "f2")}, protocol=4),
    "paddle, protocol 2": pickle.dumps({"a.weight": np.arange(600, dtype="f4")}, protocol=2),
}


def read_all(path: Path) -> dict[str, torch.Tensor]:
    weights = open_weights(path)
    return {name: weights.read(name) for name in weights.infos}


@pytest.mark.parametrize("kind", CONTAINERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = CONTAINERS[kind]
    length = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(CheckpointError):
        read_all(write(tmp_path / "cut", content[:length]))


@pytest.mark.parametrize("kind", CONTAINERS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_give_tensors_or_an_error_and_nothing_else(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    """Only torch's archives have checksums, so that every change of a number is found in these alone."""
    content = bytearray(CONTAINERS[kind])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4, unique=True)):
        content[place] ^= data.draw(st.integers(1, 255))
    expected = read_all(write(tmp_path / "whole", CONTAINERS[kind]))
    try:
        found = read_all(write(tmp_path / "flipped", bytes(content)))
    except CheckpointError:
        return
    assert all(tensor.is_contiguous() and name.isprintable() for name, tensor in found.items())
    if kind == "torch":
        for name in found.keys() & expected.keys():
            same = found[name].flatten().view(torch.uint8), expected[name].flatten().view(torch.uint8)
            assert found[name].dtype != expected[name].dtype or torch.equal(*same)
