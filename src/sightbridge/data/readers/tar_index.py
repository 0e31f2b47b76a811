"""What lies where in a tar file: its headers are read, one after the other, and nothing is unpacked.

A tar is foreign data: no member's name is ever used as a path, sizes are checked against the file's, and what could
make a reader go round in circles or fill the memory (negative sizes, endless names) is refused.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sightbridge.errors import DataError

BLOCK = tarfile.BLOCKSIZE
MAX_NAME = 64 * 1024
"""Bound on an extended header, in bytes; it holds a long name."""
COMPRESSIONS = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}
"""First bytes of compressed files, and what unpacks them."""


class Member(NamedTuple):
    """A file inside a tar: ``size`` bytes from byte ``offset`` on."""

    name: str
    offset: int
    size: int


def read_tar_index(path: Path) -> Iterator[Member]:
    """Yield the ordinary files in a tar, in order; folders, links and devices are no samples and are passed over.

    Raises ``DataError`` for a file that is missing, compressed, damaged, or cut off.
    """
    try:
        with path.open("rb") as file:
            yield from _walk(file, path, path.stat().st_size)
    except OSError as error:
        raise DataError(f"{path}: cannot read the tar file: {error.strerror or error}.") from error


def _walk(file: BinaryIO, path: Path, total: int) -> Iterator[Member]:
    position, long_name = 0, None
    while True:
        file.seek(position)
        header = _read_header(file, path, position)
        if header is None:
            return
        data = position + BLOCK
        if not 0 <= header.size <= total - data:
            raise DataError(
                f"{path}, byte {position}: '{header.name[:100]}' should have {header.size} bytes, but the file ends "
                f"after {total - data} of them: the tar was cut off, in copying perhaps. Copy or make it again."
            )
        position = data + -(-header.size // BLOCK) * BLOCK
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            long_name = _read_long_name(file, header, path) or long_name
            continue
        if header.type in (tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE):
            raise DataError(f"{path}: '{header.name[:100]}' is stored with holes in it. Make the tar without --sparse.")
        if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield Member(long_name or header.name, data, header.size)
        if header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            long_name = None


def _read_header(file: BinaryIO, path: Path, position: int) -> tarfile.TarInfo | None:
    """Read the header at ``position``, or ``None`` where the block of zeros stands that ends every tar."""
    block = file.read(BLOCK)
    if block and not any(block):
        return None
    if len(block) < BLOCK:
        raise DataError(
            f"{path}: ends at byte {position + len(block)} without an end mark: the tar was cut off, in copying "
            "perhaps. Copy or make it again."
        )
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        program = COMPRESSIONS.get(block[:2]) if position == 0 else None
        if program:
            raise DataError(
                f"{path}: is compressed, so its samples cannot be reached one by one. Unpack it: {program} "
                f"'{path.name}' (pictures are compressed already; the tar hardly grows)."
            ) from error
        what = "not a tar file" if position == 0 else "the tar is damaged"
        raise DataError(f"{path}, byte {position}: {what} ({error}).") from error


def _read_long_name(file: BinaryIO, header: tarfile.TarInfo, path: Path) -> str | None:
    """Read the name that a GNU or pax header in front of a member gives it; pax headers may hold other things only."""
    if header.size > MAX_NAME:
        raise DataError(f"{path}: an extended header of {header.size} bytes, more than the limit of {MAX_NAME}.")
    content = file.read(header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape")
    if re.search(rb"(?:^|\n)\d+ (?:size|GNU\.sparse\.[^=]*)=", content):
        raise DataError(f"{path}: holds a file larger than 8 GB or with holes in it; samples are smaller.")
    name = re.search(rb"(?:^|\n)\d+ path=([^\n]*)\n", content)
    return name[1].decode("utf-8", "surrogateescape") if name else None
