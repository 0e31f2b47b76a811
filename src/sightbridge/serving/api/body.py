"""What a client may send as JSON. Unknown fields are errors, unless they ask for nothing."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from sightbridge.scoring.settings import Kind, Reduction

UNASKED: dict[str, list[Any]] = {
    "response_format": [{"type": "text"}],
    "tool_choice": ["none", "auto"],
    "service_tier": ["auto", "default"],
    "modalities": [["text"]],
}
"""Values of fields of OpenAI's that ask for nothing we do not do anyway."""
TEXT_FORM, OTHER_FORM = "(text)", "(other)"
"""Names of branches in the locations of errors, where no client should read them."""
UNUSED = ("user", "metadata", "safety_identifier", "prompt_cache_key", "name", "parallel_tool_calls")
"""Fields of OpenAI's that never change an answer."""
TOLD_UNKNOWN = 8
"""Unknown fields of which a client is told. Each problem takes some kilobytes and there is room for millions of them in
a body, which is why lists end at their first wrong item, too."""

Item = TypeVar("Item")
Items = Annotated[list[Item], Field(fail_fast=True)]


class Body(BaseModel):
    """A group of fields. Strict: ``"3"`` is no number.

    Clients send many fields that ask for nothing (``"tools": []``, ``"frequency_penalty": 0``, ``"refusal": null``):
    these may stand there. One that asks for something we do not do is an error.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        known = {name: value for name, value in fields.items() if name in cls.model_fields}
        unknown = (name for name in fields if name not in known and _asks(name, fields[name]))
        return known | {name: fields[name] for name in islice(unknown, TOLD_UNKNOWN)}


def _asks(name: str, value: Any) -> bool:
    return bool(value) and name not in UNUSED and value not in UNASKED.get(name, [])


def _form(value: Any) -> str:
    """Which branch of a union of text and something else is meant, so that errors are told of that one alone."""
    return TEXT_FORM if isinstance(value, str) else OTHER_FORM


MAX_NUMBERS = 4096
"""Numbers of an outline, or of all lines that were drawn for a region."""


class RegionBody(Body):
    """A region of a picture that is to be marked: a box, an outline, or lines that somebody drew on it."""

    bbox: Annotated[Items[float], Field(min_length=4, max_length=4)] | None = Field(
        default=None, description="left, top, right, bottom in pixels of the picture"
    )
    polygon: Annotated[Items[float], Field(min_length=6, max_length=MAX_NUMBERS)] | None = Field(
        default=None, description="x1, y1, x2, y2, ... in pixels of the picture"
    )
    strokes: Annotated[Items[Annotated[Items[float], Field(min_length=2)]], Field(min_length=1)] | None = Field(
        default=None,
        description="lines drawn by hand, x1, y1, x2, y2, ... each: a scribble shows them, an arrow runs along the "
        "first from tail to tip, a triangle has its three points as corners",
    )
    shape: str = Field(
        default="rectangle",
        description="rectangle, ellipse, triangle, point, scribble, mask contour, mask, arrow; of strokes scribble",
    )
    color: str | None = Field(
        default=None,
        description="a name, #rrggbb or r,g,b; by default red, or the next colour for another mark of the same shape",
    )
    width: float | None = Field(
        default=None, gt=0, description="of lines, in pixels of the picture as the model sees it"
    )
    alpha: float = Field(default=0.5, ge=0, le=1, description="opacity")

    @model_validator(mode="before")
    @classmethod
    def _strokes_are_scribbles(cls, fields: Any) -> Any:
        has_strokes = isinstance(fields, dict) and fields.get("strokes") is not None
        return {"shape": "scribble"} | fields if has_strokes else fields

    @model_validator(mode="after")
    def _somewhere(self) -> RegionBody:
        if self.bbox is None and self.polygon is None and self.strokes is None:
            raise ValueError("a region needs a bbox, a polygon or strokes")
        if self.polygon is not None and self.strokes is not None:
            raise ValueError("a region has a polygon or strokes, not both")
        for stroke in self.strokes or ():
            if len(stroke) % 2:
                raise ValueError(f"a stroke of {len(stroke)} numbers; expected pairs: x1, y1, x2, y2, ...")
        if sum(map(len, self.strokes or ())) > MAX_NUMBERS:
            raise ValueError(f"strokes of more than {MAX_NUMBERS:,} numbers")
        if self.polygon is not None and len(self.polygon) % 2:
            raise ValueError(f"a polygon of {len(self.polygon)} numbers; expected pairs: x1, y1, x2, y2, ...")
        return self


Regions = Annotated[Items[RegionBody], Field(max_length=1024, description="marks drawn on this picture")]


class ImageUrl(Body):
    """Where a picture is: a ``data:`` URL, the id of an uploaded file, or a URL of a host that is allowed."""

    url: str
    detail: Literal["auto", "low", "high"] | None = Field(
        default=None, description="changes nothing: a model sees every picture at its own size"
    )


class FileReference(Body):
    """An uploaded file."""

    file_id: str


class TextPart(Body):
    """Words."""

    type: Literal["text"]
    text: str


class ImagePart(Body):
    """A picture, and marks on it."""

    type: Literal["image_url"]
    image_url: ImageUrl
    regions: Regions = Field(default=[])

    @property
    def source(self) -> str:
        """The address or the id."""
        return self.image_url.url


class FilePart(Body):
    """An uploaded picture, and marks on it."""

    type: Literal["file"]
    file: FileReference
    regions: Regions = Field(default=[])

    @property
    def source(self) -> str:
        """The id."""
        return self.file.file_id


PicturePart = ImagePart | FilePart
Part = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Annotated[str, Tag(TEXT_FORM)] | Annotated[Items[Part], Tag(OTHER_FORM)], Discriminator(_form)]

    @property
    def parts(self) -> list[TextPart | ImagePart | FilePart]:
        """The content as parts."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


StopText = Annotated[str, Field(max_length=200)]
"""Every step of an answer looks for all beginnings of a stop text, so it cannot be of any length."""


class StreamOptions(Body):
    """What a stream holds besides the answer."""

    include_usage: bool = False


class ChatBody(Body):
    """A request for ``/v1/chat/completions``."""

    model: str | None = Field(default=None, description="may be left out if there is only one")
    messages: Items[Message] = Field(min_length=1, max_length=1024)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, description="answers; each next one is drawn with the next seed")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0, or nothing here nor in top_p: the likeliest token each time"
    )
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: StopText | Annotated[Items[StopText], Field(max_length=16)] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    num_beams: int | None = Field(
        default=None, ge=1, description="above 1: a beam search, whose answer comes at its end"
    )
    length_penalty: float | None = Field(
        default=None, ge=-100, le=100, description="of a beam search: above 1 favours long, below favours short answers"
    )
    repetition_penalty: float | None = Field(
        default=None, ge=0.01, le=100, description="above 1 makes tokens already written less likely"
    )
    top_k: int | None = Field(default=None, ge=0, le=2**31, description="sampling: from so many; 0 = no limit")
    min_tokens: int | None = Field(
        default=None, ge=0, description="an answer does not end before so many tokens, unless by a stop text"
    )

    @model_validator(mode="after")
    def _possible(self) -> ChatBody:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens say the same thing; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.stream_options and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if "" in self.stops:
            raise ValueError("a text in 'stop' is empty, so every answer would be")
        if self.searches and self.samples:
            raise ValueError("num_beams searches the likeliest answer, temperature and top_p draw one; choose one")
        if self.searches and (self.n or 1) > 1:
            raise ValueError("a beam search gives one answer, the best; leave out n")
        if self.searches and self.logprobs:
            raise ValueError("log-probabilities are not told of a beam search; leave out one of logprobs and num_beams")
        if self.length_penalty not in (None, 1) and not self.searches:
            raise ValueError("length_penalty is one of a beam search; set num_beams above 1")
        if self.top_k and not self.samples:
            raise ValueError("top_k is one of sampling; set a temperature above 0")
        if self.min_tokens and self.longest and self.min_tokens > self.longest:
            raise ValueError(f"min_tokens ({self.min_tokens}) is above max_tokens ({self.longest})")
        return self

    @property
    def searches(self) -> bool:
        """Whether a beam search is asked for."""
        return (self.num_beams or 1) > 1

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn: with a temperature above 0, or a top_p alone."""
        return self.temperature != 0 and (self.temperature is not None or self.top_p is not None)

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def longest(self) -> int | None:
        """Tokens that an answer may have, if the request says so."""
        return self.max_completion_tokens or self.max_tokens


class PictureBody(Body):
    """A picture with marks on it."""

    url: str
    regions: Regions = Field(default=[])

    @property
    def source(self) -> str:
        """The address or the id."""
        return self.url


Picture = Annotated[Annotated[str, Tag(TEXT_FORM)] | Annotated[PictureBody, Tag(OTHER_FORM)], Discriminator(_form)]


class _PicturesAndTexts(Body):
    model: str | None = Field(default=None, description="may be left out if there is only one")
    images: Items[Picture] = Field(default=[], max_length=4096)
    texts: Items[str] = Field(default=[], max_length=65536)

    @property
    def pictures(self) -> list[PictureBody]:
        """The pictures, all in the same form."""
        return [PictureBody(url=image) if isinstance(image, str) else image for image in self.images]

    @property
    def characters(self) -> int:
        """Of all texts."""
        return sum(map(len, self.texts))


class ScoreBody(_PicturesAndTexts):
    """A request for ``/score``: every picture with every text."""

    kind: Kind | None = Field(
        default=None, description="by default vqascore, of a first-stage model itm, of a CLIP clip"
    )
    question_template: str | None = Field(default=None, description="what is asked; {} is the text")
    answer_template: str | None = Field(default=None, description="whose probability is taken; {} is the text")
    other_answer: str | None = Field(default=None, description="what yes_no weighs the answer against")
    reduction: Reduction | None = None
    answer_eos: bool | None = None
    trace: bool = Field(default=False, description="also the tokens that every score was made of")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the kind of score that are given."""
        names = ("question_template", "answer_template", "other_answer", "reduction", "answer_eos")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def characters(self) -> int:
        """Of all texts, each in the templates that the request gives."""
        given = [text for text in (self.question_template, self.answer_template, self.other_answer) if text]
        times = max(1, sum(text.count("{}") for text in given))
        return sum(map(len, self.texts)) * times + len(self.texts) * sum(map(len, given))


class FeaturesBody(_PicturesAndTexts):
    """A request for ``/features``: of pictures, of texts, or of pairs."""

    names: Items[str] | None = Field(default=None, max_length=16, description="only these; by default all")
