"""From a client's messages to a conversation: where pictures stand in it, and which words stand for their marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sightbridge.data.regions.plans import PLACEHOLDER
from sightbridge.generation.pointing import point_at
from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.body import Message, PicturePart, RegionBody, TextPart
from sightbridge.text.turns import IMAGE_MARKER, Turn, as_text
from sightbridge.visual_prompts import COLOURS, Mark, Region, parse_colour, region_from_polygons, region_from_strokes


@dataclass(frozen=True)
class Conversation:
    """Turns with a marker for every picture, where these come from, and what is drawn on them."""

    turns: tuple[Turn, ...]
    sources: tuple[str, ...]
    marks: tuple[Mark, ...]


def read_conversation(messages: Sequence[Message], *, takes_system: bool, remembers: bool) -> Conversation:
    """Make a conversation of ``messages``, whose last turn is open for the answer.

    Pictures of a message that all stand behind its words come in front of them, as models have learnt it; pictures
    between words stay there. ``<bbox0>``, ``<bbox1>`` in a user's words become the words for the marks of all pictures
    up to that message, counted from 0; ``<bbox>`` is an only one. ``<image>`` in a text is text.

    Args:
        messages: of the request.
        takes_system: whether the model's template has a place for a system text.
        remembers: whether it tells turns apart. If not, the model is shown the last question and all pictures, as in
            ``sightbridge chat``.

    Raises:
        ApiError: the roles do not alternate, or a picture is where none may be.
        DataError: a mark is none, or the words speak of one that there is not.
    """
    _check_roles(messages, takes_system)
    if not takes_system and messages[0].role != "user":  # an empty one
        messages = messages[1:]
    turns: list[Turn] = []
    sources: list[str] = []
    marks: list[Mark] = []
    for message in messages:
        for picture in _pictures(message):
            marks += read_marks(picture.regions, image=len(sources))
            sources.append(picture.source)
        turns.append(_read_turn(message, marks))
    if not remembers:
        turns = _last_question(turns, len(sources))
    return Conversation((*turns, Turn("assistant", None)), tuple(sources), tuple(marks))


def read_marks(regions: Sequence[RegionBody], image: int) -> list[Mark]:
    """The marks of picture ``image``, drawn as ``sightbridge ask`` draws them: fixed widths, half transparent.

    Colours that are not given tell marks of one shape apart, or their words would be the same. Raises ``DataError``.
    """
    given = {(_shape(region), parse_colour(region.color)[1]) for region in regions if region.color}
    marks: list[Mark] = []
    for region in regions:
        taken = given | {(mark.shape, mark.colour_name) for mark in marks}
        free = next((name for name in COLOURS if (_shape(region), name) not in taken), "red")
        colour, name = parse_colour(region.color or free)
        where = _read_region(region, image)
        marks.append(
            Mark(where, _shape(region), colour, name, region.width, round(region.alpha * 255), constant=True)  # pyright: ignore
        )
    return marks


def _read_region(region: RegionBody, image: int) -> Region:
    box = tuple(region.bbox) if region.bbox else None
    if region.polygon is None and region.strokes is None:
        assert box is not None, "a region that is nowhere is refused"
        return Region(box, image=image)  # pyright: ignore
    outlined = (
        region_from_polygons([region.polygon], image=image)
        if region.polygon
        else region_from_strokes(region.strokes or [], image=image)
    )
    return replace(outlined, box=box) if box else outlined


def _shape(region: RegionBody) -> str:
    return region.shape.lower().replace("-", " ").replace("_", " ")


def _check_roles(messages: Sequence[Message], takes_system: bool) -> None:
    """A system message first if there is one, then user and assistant in turns, the user last."""
    rest = list(enumerate(messages))
    if messages[0].role in ("system", "developer"):
        if not takes_system and "".join(part.text for part in _texts(messages[0])).strip():
            raise ApiError(
                400, "This model's prompt template has no place for a system message; leave it out.", param="messages.0"
            )
        rest = rest[1:]
    for expected, (number, message) in zip(["user", "assistant"] * len(rest), rest, strict=False):
        if message.role != expected:
            raise ApiError(
                400,
                f"Message {number} is of the {message.role}, expected one of the {expected}: after a system message, "
                "if there is one, user and assistant take turns, beginning with the user.",
                param=f"messages.{number}.role",
            )
    if not rest or rest[-1][1].role != "user":
        raise ApiError(400, "The last message must be the user's: it is what gets answered.", param="messages")
    for number, message in enumerate(messages):
        if message.role != "user" and _pictures(message):
            raise ApiError(400, "Only a user's message may hold pictures.", param=f"messages.{number}.content")


def _read_turn(message: Message, marks: Sequence[Mark]) -> Turn:
    """A message as a turn; ``marks`` are those that it may speak of."""
    role = "system" if message.role == "developer" else message.role
    if role != "user":
        return Turn(role, as_text("\n".join(part.text for part in _texts(message))))
    written = [_read_words(part.text, marks) if isinstance(part, TextPart) else IMAGE_MARKER for part in message.parts]
    words_end = max((i for i, part in enumerate(written) if part != IMAGE_MARKER), default=-1)
    if IMAGE_MARKER not in written[: words_end + 1]:  # all pictures stand behind the words
        written = written[words_end + 1 :] + written[: words_end + 1]
    return Turn("user", "\n".join(written))


def _read_words(text: str, marks: Sequence[Mark]) -> str:
    if not marks and (found := PLACEHOLDER.search(text)):
        raise ApiError(
            400,
            f"The text says '{found[0]}', but nothing is marked on a picture up to this message: give 'regions' "
            "beside its URL; on the page, draw on it.",
            code="no_region",
        )
    return point_at(as_text(text), marks)


def _last_question(turns: list[Turn], pictures: int) -> list[Turn]:
    """A system turn and the last question, with the pictures of earlier ones in front of it."""
    question = turns[-1].text or ""
    earlier = pictures - question.count(IMAGE_MARKER)
    system = [turn for turn in turns[:1] if turn.role == "system"]
    return [*system, Turn("user", f"{IMAGE_MARKER}\n" * earlier + question)]


def _pictures(message: Message) -> list[PicturePart]:
    return [part for part in message.parts if not isinstance(part, TextPart)]


def _texts(message: Message) -> list[TextPart]:
    return [part for part in message.parts if isinstance(part, TextPart)]
