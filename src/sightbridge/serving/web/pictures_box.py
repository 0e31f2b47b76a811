"""The pictures that a question is about, and what was drawn on them: one component of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from pydantic import Field, ValidationError

from sightbridge.serving.api.api_error import wrong_fields
from sightbridge.serving.api.body import Body, RegionBody, Regions
from sightbridge.serving.api.files import StoredFile
from sightbridge.serving.api.state import State
from sightbridge.serving.web.uploads import make_keeper, make_looker
from sightbridge.visual_prompts import COLOURS, PREPOSITIONS
from sightbridge.visual_prompts.shapes import WIDTHS

ROOM_FOR_FORM = 4096
"""Bytes of a body around the file in it."""


class _Picture(Body):
    file: Annotated[str, Field(max_length=100)]
    name: Annotated[str, Field(max_length=200)] = ""
    regions: Regions = Field(default=[])


class _Box(Body):
    pictures: list[_Picture] = Field(default=[], max_length=256)


@dataclass(frozen=True)
class ShownPicture:
    """A picture as it was uploaded, and the regions that are marked on it, as a request for the API has them."""

    file: str
    name: str
    data: bytes
    regions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def part(self) -> dict[str, Any]:
        """The picture as a part of a message of ``/v1/chat/completions``."""
        return {"type": "file", "file": {"file_id": self.file}, "regions": self.regions}

    @property
    def scored(self) -> dict[str, Any]:
        """The picture as one of those of ``/score``."""
        return {"url": self.file, "regions": self.regions}


class PicturesBox:
    """Pictures to upload, to choose from and to draw on. Make it inside of ``gr.Blocks``.

    Pictures go into ``state.files``, as by ``POST /v1/files``; the component's value is JSON that names them, and holds
    the marks. ``component.upload`` is the event of pictures that came or went, ``component.input`` that of marks.

    Args:
        state: of the server.
        question: ``elem_id`` of the text box into which a click puts ``<bbox0>``; empty if there is none.
        label: what the pictures are for.
        elem_id: on the page.
        draws: whether marks can be drawn.
        max_images: so many are taken; by default as many as a conversation may have.
        height: of the picture that is shown, at most, in pixels of the screen.
    """

    def __init__(
        self,
        state: State,
        *,
        question: str = "",
        label: str = "Pictures",
        elem_id: str = "pictures",
        draws: bool = True,
        max_images: int | None = None,
        height: int = 520,
    ) -> None:
        self.state, self.anchor = state, _anchor(state)
        settings = state.settings
        self.component = gr.HTML(
            value=self.value(),
            html_template="<div class='pictures-box'></div>",
            css_template=_read("pictures_box.css"),
            js_on_load=_read("drawing.js") + _read("pictures_box.js"),
            server_functions=[make_keeper(state), make_looker(state)],
            apply_default_css=False,
            elem_id=elem_id,
            label=label,
            question=question,
            draws=draws,
            words=PREPOSITIONS,
            widths={shape: constant for shape, (_, _, constant) in WIDTHS.items()},
            colors=list(COLOURS),
            anchor=self.anchor,
            max_bytes=min(settings.max_image_bytes, settings.max_body_bytes - ROOM_FOR_FORM),
            max_images=max_images or settings.max_images,
            height=height,
            max_regions=settings.max_regions,
        )

    def value(self, pictures: Sequence[tuple[str, bytes]] = ()) -> str:
        """What the component shows when an event's function returns this: (name, encoded picture) each, or nothing."""
        kept = [self.state.files.add(StoredFile(data, name, "vision")) for name, data in pictures]
        return _Box(pictures=[_Picture(file=file.id, name=file.filename) for file in kept]).model_dump_json()

    @staticmethod
    def read(value: Any, state: State) -> list[ShownPicture]:
        """The pictures of a value that a browser sent.

        Raises ``ApiError`` for a value that no component of ours would send, and for a picture that is gone.
        """
        try:
            box = _Box.model_validate_json(value or "{}")
        except ValidationError as error:
            raise wrong_fields(error.errors()) from None
        return [
            ShownPicture(
                picture.file, picture.name, state.files.get(picture.file).data, [*map(_fields, picture.regions)]
            )
            for picture in box.pictures
        ]


def _fields(region: RegionBody) -> dict[str, Any]:
    return region.model_dump(exclude_unset=True)


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _anchor(state: State) -> int:
    """The side that the first model sees pictures at, which widths of lines depend on."""
    processors = [model.processor for model in state.models.by_name.values() if model.processor is not None]
    return processors[0].image_settings.anchor if processors else 336
