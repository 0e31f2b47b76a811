"""Writing a parent as the small Hugging Face folder that the package ships."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers.utils import logging


def write_parent(model: Any, folder: Path) -> None:
    """Write a Hugging Face model with its weights in float16: half the size, and exact when read back as float32."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        copy.deepcopy(model).half().save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()
