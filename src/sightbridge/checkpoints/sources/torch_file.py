"""Files of ``torch.save``: the zip archives of today, and the one long stream that torch wrote before 1.6.

In both a pickle says of every tensor which storage it looks at, and how; the storages' bytes lie elsewhere in the file.
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from sightbridge.checkpoints.sources.stored import FilePart, FileTensor
from sightbridge.checkpoints.sources.unpickler import MAX_BYTES, ORDERED_DICT, Inert, Known, Stream, unpickle
from sightbridge.errors import CheckpointError

MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""torch's magic number 0x1950a86a20f9469cfc6c, pickled: the older files begin with it (torch/serialization.py)."""
MAX_DIRECTORY = 16 << 20
"""Bytes of a zip archive's list of files: 200,000 storages."""
LOCAL_HEADER = 30
"""Bytes of a zip archive's note before each file, without the name and what else may follow it."""
DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class Storage(NamedTuple):
    """Bytes, and the type of element that they are of unless a tensor says otherwise."""

    dtype: torch.dtype
    part: FilePart


def read_zip(path: Path) -> Any:
    """What was saved, with a ``FileTensor`` in place of each tensor and an ``Inert`` of whatever is none and not plain.

    Raises:
        CheckpointError: the file is damaged, or another kind of archive.
    """
    try:
        with path.open("rb") as file:
            return _read_archive(zipfile.ZipFile(_Directory(file, path)), file, path)  # pyright: ignore[reportArgumentType]
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path}: damaged: not the whole of a file that torch saved. Was it cut off?") from error


def is_legacy(start: bytes) -> bool:
    """Whether a file begins as torch's did before 1.6, in whatever protocol of pickle."""
    return start[:1] == b"\x80" and MAGIC in start[:32]


def read_legacy(path: Path) -> Any:
    """As ``read_zip``, of a file that ``is_legacy``."""
    with path.open("rb") as file:
        found: dict[str, Storage] = {}
        stream = _at_content(file, path)
        unpickle(stream, _known(path), lambda pid: _legacy_storage(pid, path, found, None))
        keys = unpickle(stream, {})
        parts = {}
        for key in keys if isinstance(keys, list) else []:
            if not isinstance(key, str) or key not in found:
                raise CheckpointError(f"{path}: damaged: a storage that no tensor is of.")
            expected = found[key].part.length
            elements = int.from_bytes(stream.read(8), "little")
            if elements * found[key].dtype.itemsize != expected:
                raise CheckpointError(f"{path}: damaged: a storage is not as long as was said.")
            parts[key] = stream.skip(expected)
        return unpickle(
            _at_content(file, path), _known(path), lambda pid: _legacy_storage(pid, path, {}, parts)
        )  # again, now that it is known where the storages lie


def _read_archive(archive: zipfile.ZipFile, file: BinaryIO, path: Path) -> Any:
    members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: a zip archive, but none that torch saved: no folder/data.pkl in it.")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in members:
        raise CheckpointError(
            f"{path}: a program of TorchScript with its weights, not weights alone. Load it with torch.jit.load and "
            "save its state_dict()."
        )
    pickled = _place(members[pickles[0]], file, path)
    if pickled.length > MAX_BYTES:
        raise CheckpointError(f"{path}: holds more names and values beside its tensors than any model does.")
    if order := members.get(f"{prefix}byteorder"):
        part = _place(order, file, path)
        if part.length > 10 or part.read(part.length).numpy().tobytes() != b"little":
            raise CheckpointError(f"{path}: written on a big-endian machine; its numbers are not read here.")

    def storage(pid: Any) -> Storage | Inert:
        kind, key, count = _reference(pid, path)
        if (member := members.get(f"{prefix}data/{key}")) is None:
            raise CheckpointError(f"{path}: damaged: the storage '{str(key)[:40]}' is not in the archive.")
        part = _place(member, file, path)
        if count * kind.itemsize > part.length:
            raise CheckpointError(f"{path}: damaged: the storage '{key}' is said to be longer than it is.")
        return Storage(kind, part)

    content = io.BytesIO(pickled.read(pickled.length).numpy().tobytes())
    return unpickle(Stream(content, path), _known(path), storage)


class _Directory:
    """A file from which nobody reads much at once, as ``zipfile`` would if the archive said so."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self.file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise CheckpointError(f"{self.path}: an archive of more files than any model has tensors.")
        return self.file.read(size if size >= 0 else MAX_DIRECTORY)


def _place(member: zipfile.ZipInfo, file: BinaryIO, path: Path) -> FilePart:
    """Where the bytes of a file in the archive lie; torch compresses none, so that no small file can be a large one."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.compress_size != member.file_size:
        raise CheckpointError(f"{path}: a compressed or encrypted archive; torch saves neither.")
    file.seek(member.header_offset)
    header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{path}: damaged: '{member.filename[:60]}' is not where the archive says.")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = member.header_offset + LOCAL_HEADER + names
    if offset + member.file_size > file.seek(0, io.SEEK_END):
        raise CheckpointError(f"{path}: damaged: it ends in the middle of '{member.filename[:60]}'. Was it cut off?")
    return FilePart(path, offset, member.file_size, member.CRC)


def _at_content(file: BinaryIO, path: Path) -> Stream:
    """Behind the magic number, the version and the notes on the machine, all pickles of their own."""
    stream = Stream(file, path)
    unpickle(stream, {})
    unpickle(stream, {})
    machine = unpickle(stream, {})
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(f"{path}: written on a big-endian machine, or damaged.")
    return stream


def _legacy_storage(pid: Any, path: Path, found: dict[str, Storage], parts: dict[str, FilePart] | None) -> Storage:
    """Note a storage in ``found``, or place it if it is known where all of them lie."""
    kind, key, count = _reference(pid, path)
    if len(pid) > 5 and pid[5] is not None:
        raise CheckpointError(
            f"{path}: saved by a torch of 2017 with views of storages. Save it anew with a later one."
        )
    if parts is not None and key not in parts:
        raise CheckpointError(f"{path}: damaged: a tensor of which no numbers are there.")
    storage = Storage(kind, parts[key] if parts else FilePart(path, 0, count * kind.itemsize))
    found[key] = storage
    return storage


def _reference(pid: Any, path: Path) -> tuple[torch.dtype, str, int]:
    """Type, key and number of elements of a storage that a pickle refers to."""
    match pid:
        case ("storage", torch.dtype() as kind, str() as key, _, int() as count, *_) if count >= 0:
            return kind, key, count
        case ("storage", Inert() as kind, *_):
            raise CheckpointError(
                f"{path}: holds numbers as {kind.what}: quantised, or of a type not known here. Save dense ones."
            )
    raise CheckpointError(f"{path}: damaged: it refers to something that is no storage.")


def _known(path: Path) -> dict[str, Any]:
    """What a file of tensors names: types, and what makes tensors (torch/_utils.py), here ``FileTensor``."""

    def tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> FileTensor:
        if not all(type(number) is int for number in (offset, *shape, *strides)):
            raise CheckpointError(f"{path}: damaged: a tensor whose shape is not of whole numbers.")
        dtype = next((value for value in rest if isinstance(value, torch.dtype)), storage.dtype)
        place = offset * dtype.itemsize
        return FileTensor(path, storage.part, tuple(shape), dtype, place, _plain_strides(shape, strides))

    def subclass(make: Any, kind: Any, arguments: Any, state: Any) -> Any:
        return make.call(*arguments) if isinstance(make, Known) else Inert(getattr(kind, "what", "a tensor"))

    first = Known(lambda value, *rest: value)
    known: dict[str, Any] = {
        "torch._utils._rebuild_tensor": Known(tensor),
        "torch._utils._rebuild_tensor_v2": Known(tensor),
        "torch._utils._rebuild_tensor_v3": Known(tensor),
        "torch._utils._rebuild_parameter": first,
        "torch._utils._rebuild_parameter_with_state": first,
        "torch._tensor._rebuild_from_type_v2": Known(subclass),
        "torch.Size": Known(lambda sizes=(): tuple(sizes)),
        "collections.OrderedDict": ORDERED_DICT,
        "torch.storage.UntypedStorage": torch.uint8,
        "torch.UntypedStorage": torch.uint8,
    }
    known |= DTYPES
    known |= {f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()}
    return known


STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
"""Classes of storages, and the type of their elements."""


def _plain_strides(shape: Any, strides: Any) -> tuple[int, ...] | None:
    """``None`` for elements one after another, so that they are not copied; an axis of length 1 may have any stride."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return tuple(strides)
        expected *= length
    return None
