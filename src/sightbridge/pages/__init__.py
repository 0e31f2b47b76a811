"""HTML pages that load nothing from anywhere else: one look for all of them, pictures inside."""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from sightbridge.errors import ImageError
from sightbridge.images.load import ImageSource, load_image

THUMBNAIL = 320
"""Longest side of a picture on a page, in pixels."""


def render(package: str, template: str, **values: Any) -> str:
    """Fill the template of a package; ``{% include "style.css" %}`` in it is the look that all pages share."""
    loaders = ChoiceLoader([PackageLoader(package, "."), PackageLoader("sightbridge.pages", ".")])
    environment = Environment(loader=loaders, autoescape=True, undefined=StrictUndefined)
    environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\u202f")
    return environment.get_template(template).render(**values)


def thumbnail(source: ImageSource, side: int = THUMBNAIL) -> str | None:
    """A picture, made smaller, as an address that is the picture itself; ``None`` if it cannot be opened."""
    try:
        picture = load_image(source)
    except ImageError:
        return None
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
