"""``gr.Blocks`` of which nobody can ask for files."""

from __future__ import annotations

from typing import Any

import gradio as gr


class PlainBlocks(gr.Blocks):
    """Blocks whose inputs are words and numbers.

    Any input that looks like a file of gradio's (``{"path": "https://..."}``) would be fetched, from wherever it is and
    of whatever size, onto this machine's disk before a component sees it. Ours have none: pictures come as ids.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> Any:
        """What a function is called with. Raises ``gr.Error`` for an input that has parts."""
        if any(isinstance(value, dict | list) for value in inputs):
            raise gr.Error("Expected words and numbers.", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *rest, **options)
