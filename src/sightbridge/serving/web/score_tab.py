"""The page's table of scores: pictures x texts."""

from __future__ import annotations

import gradio as gr

from sightbridge.serving.state import State


def score_tab(state: State) -> None:
    """Put the table into the ``gr.Blocks`` (a tab of them) that is being made."""
    gr.Markdown(f"Scores of {', '.join(state.models.by_name)}")
