"""Parquet, Arrow and large JSON-lines files, through Hugging Face's ``datasets``: looked at where they lie on disk.

A row's pictures are in the column ``image`` or ``images``: the bytes of a file, the object ``{"bytes", "path"}`` that
``datasets`` writes, the name of a file in the images folder, or a list of any of these. What the row says is in the
columns ``conversations``, ``question`` and ``answer``, ``caption`` or ``text``. Other columns are kept in ``meta``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightbridge.data.readers.content import content_record
from sightbridge.data.readers.patterns import expand_pattern
from sightbridge.data.readers.rows import find_image
from sightbridge.data.record import Record
from sightbridge.data.records import LazyRecords
from sightbridge.errors import DataError
from sightbridge.images.load import ImageSource, StoredImage

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_COLUMNS = ("image", "images")


def read_parquet(path: Path, images_folder: Path) -> TableRecords:
    """Open Parquet files. ``datasets`` unpacks them once into its own cache folder (``HF_DATASETS_CACHE``), since
    single rows of a Parquet file cannot be reached.

    Raises ``DataError`` for files that are missing or of another kind, or if ``datasets`` is not installed.
    """
    return _open(path, images_folder, lambda files: _datasets().Dataset.from_parquet([str(file) for file in files]))


def read_arrow(path: Path, images_folder: Path) -> TableRecords:
    """Open Arrow files, or a folder written by ``save_to_disk``, where they lie. Errors as for ``read_parquet``."""
    return _open(path, images_folder, lambda files: _datasets().concatenate_datasets([_open_arrow(f) for f in files]))


def read_jsonl(path: Path, images_folder: Path) -> TableRecords:
    """Open JSON-lines files too large for the memory; unpacked as for ``read_parquet``, which has the errors too."""
    return _open(path, images_folder, lambda files: _datasets().Dataset.from_json([str(file) for file in files]))


class TableRecords(LazyRecords):
    """The rows of a table as records. Text is read when a record is looked at, a picture when it is opened."""

    def __init__(self, table: Dataset, images_folder: Path, name: str) -> None:
        self.table = table
        self.images_folder = images_folder
        self.name = name
        self.image_columns = [column for column in IMAGE_COLUMNS if column in table.column_names]
        self.texts = table.remove_columns(self.image_columns)

    def __len__(self) -> int:
        return len(self.table)

    def read(self, index: int) -> Record:
        """Make the record of row ``index``; raises ``DataError`` for a row that says nothing."""
        where = f"{self.name}, row {index + 1}"
        # A table has all columns in all rows; a row that does not use one has null there.
        row = {key: value for key, value in self.texts[index].items() if value is not None}
        images = [source for column in self.image_columns for source in self._find_images(column, index, where)]
        return content_record(row, images, f"{Path(self.name).stem}-{index + 1}", where)

    def _find_images(self, column: str, index: int, where: str) -> list[ImageSource]:
        cell = self.table.data.column(column)[index]
        if not cell.is_valid:
            return []
        places = range(len(cell)) if _is_list(cell) else [None]
        return [self._find_image(column, index, place, where) for place in places]

    def _find_image(self, column: str, index: int, place: int | None, where: str) -> ImageSource:
        """A stored picture, or a file's name; the bytes stay where they are."""
        position = "" if place is None else f", item {place + 1}"
        stored = TableImage(f"{where}, column '{column}'{position}", self.table, column, index, place)
        cell = stored.cell()
        if _is_struct(cell):
            kept = [key for key in ("bytes", "path") if key in cell and cell[key].is_valid]
            cell = cell[kept[0]] if kept else None
        if cell is None or not cell.is_valid:
            raise DataError(f"{stored.name}: expected the bytes or the name of a picture file, got nothing.")
        if _is_bytes(cell):
            return stored
        name = cell.as_py()
        if not isinstance(name, str):
            raise DataError(f"{stored.name}: expected the bytes or the name of a picture file, got {cell.type}.")
        return find_image(name, self.images_folder)


@dataclass(frozen=True)
class TableImage(StoredImage):
    """A picture's bytes in a cell of a table, or in item ``place`` of a list there."""

    where: str
    table: Dataset = field(compare=False, repr=False)
    column: str
    index: int
    place: int | None

    @property
    def name(self) -> str:
        """File, row and column."""
        return self.where

    def cell(self) -> Any:
        """The Arrow scalar, not yet copied out of the table."""
        cell = self.table.data.column(self.column)[self.index]
        return cell if self.place is None else cell[self.place]

    def read(self, limit: int) -> bytes:
        """Copy the bytes, or the first ``limit`` + 1 of them, out of the table."""
        cell = self.cell()
        buffer = (cell["bytes"] if _is_struct(cell) else cell).as_buffer()
        return buffer.slice(0, min(len(buffer), limit + 1)).to_pybytes()


def _open(path: Path, images_folder: Path, open_files: Callable[[list[Path]], Dataset]) -> TableRecords:
    files = expand_pattern(path)
    _datasets()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # it logs the errors that it raises
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    try:
        table = open_files(files)
    except DataError:
        raise
    except (DatasetGenerationError, ArrowException, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise DataError(
            f"{path}: cannot be opened as a table: {reason.rstrip('.')}. Is it empty, or not in the format "
            "that the source says?"
        ) from error
    return TableRecords(table, images_folder, str(path))


def _open_arrow(path: Path) -> Dataset:
    from datasets import Dataset, load_from_disk

    if not path.is_dir():
        return Dataset.from_file(str(path))
    table = load_from_disk(str(path))
    if not isinstance(table, Dataset):
        known = [str(name) for name in table]
        raise DataError(
            f"{path}: holds several tables ({', '.join(known)}). Give the folder of one, such as {path / known[0]}."
        )
    return table


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "tables are read with the package 'datasets', which is not installed: "
            'pip install -c constraints.txt -e ".[data]"'
        ) from error
    return datasets


def _is_list(cell: Any) -> bool:
    from pyarrow import types

    return types.is_list(cell.type) or types.is_large_list(cell.type) or types.is_fixed_size_list(cell.type)


def _is_struct(cell: Any) -> bool:
    from pyarrow import types

    return types.is_struct(cell.type)


def _is_bytes(cell: Any) -> bool:
    from pyarrow import types

    return types.is_binary(cell.type) or types.is_large_binary(cell.type)
