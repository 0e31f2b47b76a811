"""HTML pages that load nothing from anywhere else: one look for all of them, pictures inside."""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL.Image import Image

THUMBNAIL = 320
"""Longest side of a picture on a page, in pixels."""


def render(package: str, template: str, **values: Any) -> str:
    """Fill the template of a package; ``{% include "style.css" %}`` in it is the look that all pages share."""
    loaders = ChoiceLoader([PackageLoader(package, "."), PackageLoader("sightbridge.pages", ".")])
    environment = Environment(loader=loaders, autoescape=True, undefined=StrictUndefined)
    environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\u202f")
    return environment.get_template(template).render(**values)


def data_url(picture: Image, side: int = THUMBNAIL) -> str:
    """A picture, made smaller, as an address that is the picture itself."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
