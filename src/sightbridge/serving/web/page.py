"""The web page: a gradio application on the same server, for nobody else, that asks nothing from anywhere else."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fastapi import FastAPI

from sightbridge.serving.api.page_access import PREFIX, PageGuard, login_routes
from sightbridge.serving.api.state import State

HERE = Path(__file__).parent
SESSIONS = 1000
"""Open pages that are remembered; the ones that were used longest ago are forgotten first."""
FILE_SECONDS = 3600
"""So long a file that the page offered to download is kept."""


def mount_page(app: FastAPI, state: State) -> None:
    """Put the page under ``PREFIX``, its login beside it, and a redirect at ``/``. Needs gradio.

    Files that gradio writes go into a folder of this process alone, which ends with it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    os.environ["GRADIO_TEMP_DIR"] = folder = tempfile.mkdtemp(prefix="sightbridge-page-")
    os.environ["GRADIO_EXAMPLES_CACHE"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    import gradio as gr

    from sightbridge.serving.web.tidy_uploads import use_tidy_parser

    use_tidy_parser()
    app.include_router(login_routes(state.api_key))
    with _one_application():
        blocks = make_blocks(state)
    blocks.state_session_capacity = SESSIONS
    gr.mount_gradio_app(
        app,
        blocks,
        PREFIX,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=state.settings.max_image_bytes,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=make_theme(),
        css_paths=[HERE / "page.css"],
        js=(HERE / "page.js").read_text(encoding="utf-8"),
    )
    app.add_middleware(PageGuard)


def make_blocks(state: State):
    """All of the page."""
    import gradio as gr

    from sightbridge.serving.web.chat_tab import ChatTab
    from sightbridge.serving.web.plain_blocks import PlainBlocks
    from sightbridge.serving.web.score_tab import score_tab

    with PlainBlocks(
        title="sightbridge", analytics_enabled=False, fill_width=True, delete_cache=(FILE_SECONDS // 4, FILE_SECONDS)
    ) as blocks:
        gr.HTML("<h1>sightbridge</h1><p>Ask about pictures. Nothing leaves this server.</p>", elem_id="title")
        with gr.Tabs():
            if any(model.engine for model in state.models.by_name.values()):
                with gr.Tab("Chat"):
                    chat = ChatTab(state)
                quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
                blocks.load(chat.choose_by_address, None, chat.model, **quiet, api_visibility="private")
                blocks.unload(chat.leave)
            with gr.Tab("Scores"):
                score_tab(state)
    blocks.queue(default_concurrency_limit=None, api_open=False, max_size=state.settings.max_in_flight)
    return blocks


@contextmanager
def _one_application() -> Iterator[None]:
    """Keep blocks from building their web application, which takes most of their time, before they are mounted.

    Gradio does so when blocks begin, when they end and when they get a queue, and throws each one away for the next.
    """
    from gradio.routes import App

    with patch.object(App, "create_app"):
        yield


def make_theme():
    """Calm colours, and fonts that every system has."""
    from gradio import themes

    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    return themes.Default(
        primary_hue=themes.colors.blue,
        neutral_hue=themes.colors.slate,
        radius_size=themes.sizes.radius_md,
        font=fonts,
        font_mono=("ui-monospace", "Menlo", "monospace"),
    )
