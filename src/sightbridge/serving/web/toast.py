"""Short notices at the edge of the page."""

from __future__ import annotations

import html

import gradio as gr


def warn(message: str) -> None:
    """Say why something was not done. ``gr.Warning`` would show what others wrote, which is in messages, as markup."""
    gr.Warning(html.escape(message, quote=False))
