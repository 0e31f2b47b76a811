"""Uploaded pictures, kept in memory until newer ones need the room."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from sightbridge.serving.api.api_error import ApiError


@dataclass(frozen=True)
class StoredFile:
    """A picture that was uploaded. Who knows its id may use it, so ids cannot be guessed."""

    data: bytes
    filename: str
    purpose: str
    id: str = field(default_factory=lambda: f"file-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def description(self) -> dict[str, Any]:
        """The file as OpenAI's API describes one."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.data),
            "created_at": self.created,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class Files:
    """Files by id, at most ``max_bytes`` of them together: the oldest make room for new ones."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._files: OrderedDict[str, StoredFile] = OrderedDict()

    def add(self, file: StoredFile) -> StoredFile:
        """Keep a file. Raises ``ApiError`` for one that is larger than the room for all."""
        if len(file.data) > self.max_bytes:
            raise ApiError(413, f"{len(file.data):,} bytes; all files together may have {self.max_bytes:,}.")
        self._files[file.id] = file
        self.bytes += len(file.data)
        while self.bytes > self.max_bytes:
            self.remove(next(iter(self._files)))
        return file

    def get(self, file_id: str) -> StoredFile:
        """Raises ``ApiError`` if there is no such file, or no longer."""
        if file_id not in self._files:
            raise ApiError(
                404,
                f"There is no file '{file_id[:80]}' (any more): files are kept in memory, and the oldest make room for "
                "new ones. Upload it again.",
                code="file_not_found",
            )
        return self._files[file_id]

    def remove(self, file_id: str) -> None:
        """Forget a file; errors as for ``get``."""
        self.bytes -= len(self.get(file_id).data)
        del self._files[file_id]
