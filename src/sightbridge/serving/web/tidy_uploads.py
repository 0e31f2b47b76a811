"""Uploads that are no forms leave no files behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradio import routes
from gradio.route_utils import GradioMultiPartParser


class TidyParser(GradioMultiPartParser):
    """Removes what it has written of a damaged form; gradio's own closes it, or forgets what has no end."""

    async def parse(self) -> Any:
        """The form. Raises ``MultiPartException``."""
        whole: list[Any] = []
        try:
            form = await super().parse()
            whole = [value.file for _, value in form.multi_items() if not isinstance(value, str)]
            return form
        finally:
            for file in self._files_to_close_on_error:
                if file not in whole:
                    file.close()
                    Path(file.name).unlink(missing_ok=True)


def use_tidy_parser() -> None:
    """Let gradio's routes read forms with it."""
    routes.GradioMultiPartParser = TidyParser  # pyright: ignore[reportPrivateImportUsage]
