"""Turns to pieces: text and image slots in order, every piece knowing whether the model must learn to write it.

Markers of pictures are recognised in turns only, before the template's own text is put around them: neither a
template nor a replaced system text can open an image slot, and no text can by naming some token.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sightbridge.errors import DataError, SettingsError
from sightbridge.text.chat_template import Span, spans_of_chat_template
from sightbridge.text.template import PromptTemplate, RoleFormat
from sightbridge.text.turns import IMAGE_MARKER, LITERAL_MARKER, Turn


@dataclass(frozen=True)
class Piece:
    """A stretch of text, or an image slot if ``text`` is ``None``.

    ``is_target``: the model must learn to write it. ``apart``: it is tokenised on its own. ``literal``: somebody wrote
    it, not the template, so the name of a control token in it is text.
    """

    text: str | None
    is_target: bool = False
    apart: bool = False
    literal: bool = False


@dataclass(frozen=True)
class Rendered:
    """A conversation as pieces.

    ``decoder_pieces`` holds the last answer of an encoder-decoder template (``None`` if there is no answer), and
    ``pieces`` what the encoder reads. ``is_open``: the last turn waits for the model's answer. ``token_split``: a
    number from [0, 1) that decides how many of the answer's tokens the encoder gets, if ``split_answer_tokens`` is on.
    """

    pieces: tuple[Piece, ...]
    decoder_pieces: tuple[Piece, ...] | None
    template: PromptTemplate
    switches: dict[str, bool]
    is_open: bool
    record_id: str = ""
    token_split: float | None = None

    @property
    def text(self) -> str:
        """The pieces as one string, ``<image>`` in every slot."""
        return "".join(IMAGE_MARKER if piece.text is None else piece.text for piece in self.pieces)

    @property
    def target_text(self) -> str:
        """What the model must learn to write, as one string."""
        pieces = self.decoder_pieces if self.template.encoder_decoder else self.pieces
        return "".join(piece.text or "" for piece in pieces or () if piece.is_target)

    @property
    def images(self) -> int:
        """Number of image slots."""
        return sum(piece.text is None for piece in self.pieces)


def render(
    template: PromptTemplate,
    turns: Sequence[Turn],
    *,
    images: int | Sequence[Any] | None = None,
    switches: dict[str, bool] | None = None,
    system: str | None = None,
    seed: int = 0,
    record_id: str = "",
    tokenizer: Any = None,
) -> Rendered:
    """Write ``turns`` the way ``template`` says.

    ``images``: the record's pictures or their number, checked against the markers if given. ``system`` stands in for
    the template's own system text; a system turn at the front of ``turns`` wins over both. ``seed`` and ``record_id``
    fix the cut of ``split_answer`` and ``split_answer_tokens``. ``tokenizer`` is needed by the ``hf`` template only.

    Raises ``DataError`` naming the record for turns that cannot be written, ``SettingsError`` for unknown switches.
    """
    where = f"record '{record_id}'" if record_id else "this record"
    resolved = template.resolve(switches)
    turns = _prepare_turns(turns, resolved, where)
    _check_images(turns, images, where)
    is_open = turns[-1].text is None
    system_turn, turns = _take_system(template, turns, system)
    if template.image_place == "front":
        slots, turns = _lift_images(turns)
    else:
        slots = []
    generator = random.Random(f"{seed}/{record_id}")
    if resolved["split_answer_tokens"] and (resolved["split_answer"] or not template.encoder_decoder):
        raise SettingsError(
            "prompt.switches.split_answer_tokens: only for encoder-decoder templates, and not beside split_answer",
            key="prompt.switches.split_answer_tokens",
        )
    token_split = generator.random() if resolved["split_answer_tokens"] else None
    writer = _Writer(template, resolved, generator, where)
    if template.from_tokenizer:
        if tokenizer is None:
            raise SettingsError("the template 'hf' is the tokenizer's own: hand render() a tokenizer")
        for name in ("learn_markup", "split_answer"):
            if resolved[name]:
                raise SettingsError(f"prompt.switches.{name}: not possible with the template 'hf'")
        conversation = [system_turn, *turns] if system_turn else turns
        pieces, decoder_pieces = writer.write_spans(spans_of_chat_template(tokenizer, conversation, where)), None
    else:
        pieces, decoder_pieces = writer.write(system_turn, turns)
    return Rendered(tuple(slots + pieces), decoder_pieces, template, resolved, is_open, record_id, token_split)


def as_written(
    template: PromptTemplate, prompt: str, *, images: int, switches: dict[str, bool] | None = None
) -> Rendered:
    """Take a prompt that somebody wrote with all that a template puts around turns, ``<image>`` for every picture.

    Names of control tokens in it are these tokens, as between the turns of a template.

    Raises ``DataError`` if markers and pictures disagree.
    """
    words = prompt.split(IMAGE_MARKER)
    if len(words) - 1 != images:
        raise DataError(f"the prompt has {len(words) - 1} {IMAGE_MARKER} marker(s), and there are {images} picture(s)")
    pieces = [piece for text in words for piece in (Piece(None), Piece(text))][1:]
    filled = tuple(piece for piece in pieces if piece.text != "")
    return Rendered(filled, None, template, template.resolve(switches), is_open=True)


def split_point(text: str, generator: random.Random) -> int:
    """How many leading characters of an answer are given away: 1 to half of them, 0 of a single one (CLIP-FlanT5)."""
    return generator.randint(1, len(text) // 2) if len(text) >= 2 else 0


def _prepare_turns(turns: Sequence[Turn], switches: dict[str, bool], where: str) -> list[Turn]:
    """Check the order of the turns and apply the switches that change their texts."""
    turns = list(turns)
    for i, turn in enumerate(turns):
        if turn.role == "system" and i > 0:
            raise DataError(f"{where}: turn {i} is a system turn; only the first turn may be one")
        if turn.text is None and (turn.role != "assistant" or i < len(turns) - 1):
            raise DataError(f"{where}: turn {i} ({turn.role}) has no text; only a last assistant turn may be open")
    if switches["drop_leading_assistant"]:
        first = 1 if turns and turns[0].role == "system" else 0
        if len(turns) > first + 1 and turns[first].role == "assistant":
            del turns[first]
    if not any(turn.role != "system" for turn in turns):
        raise DataError(f"{where}: it has no user or assistant turn")
    if switches["drop_user_text"]:
        turns = [_keep_images_only(turn) if turn.role == "user" else turn for turn in turns]
    if switches["image_first"]:
        turns = [_images_first(turn) for turn in turns]
    return turns


def _keep_images_only(turn: Turn) -> Turn:
    return replace(turn, text=IMAGE_MARKER * (turn.text or "").count(IMAGE_MARKER))


def _images_first(turn: Turn) -> Turn:
    count = (turn.text or "").count(IMAGE_MARKER)
    if not count:
        return turn
    words = (turn.text or "").replace(IMAGE_MARKER, "").strip()
    return replace(turn, text=(f"{IMAGE_MARKER}\n" * count + words).strip())


def _check_images(turns: list[Turn], images: int | Sequence[Any] | None, where: str) -> None:
    if images is None:
        return
    expected = images if isinstance(images, int) else len(images)
    found = sum((turn.text or "").count(IMAGE_MARKER) for turn in turns)
    if found != expected:
        raise DataError(
            f"{where}: it has {expected} picture(s), but its turns hold {found} '{IMAGE_MARKER}' marker(s); "
            "there must be one marker per picture"
        )


def _take_system(template: PromptTemplate, turns: list[Turn], system: str | None) -> tuple[Turn | None, list[Turn]]:
    """Split off the system turn: the record's own, else the caller's text, else the template's."""
    if turns[0].role == "system":
        return turns[0], turns[1:]
    text = template.default_system if system is None else system
    # Not a turn somebody wrote about pictures: a marker in it stays text, see _Writer.system.
    return (_SystemText("system", text) if text else None), turns


class _SystemText(Turn):
    """A system text from the template or the settings, in which ``<image>`` is nothing but text."""


def _lift_images(turns: list[Turn]) -> tuple[list[Piece], list[Turn]]:
    """Take the pictures out of the turns, with the newline that set each of them off."""
    count = sum((turn.text or "").count(IMAGE_MARKER) for turn in turns)
    marker = re.compile(f"{IMAGE_MARKER}\n|\n{IMAGE_MARKER}|{IMAGE_MARKER}")
    plain = [turn if turn.text is None else replace(turn, text=marker.sub("", turn.text)) for turn in turns]
    return [Piece(None)] * count, plain


@dataclass(frozen=True)
class _Writer:
    """Writes one conversation; holds what every step of that needs."""

    template: PromptTemplate
    switches: dict[str, bool]
    generator: random.Random
    where: str

    def write(self, system: Turn | None, turns: list[Turn]) -> tuple[list[Piece], tuple[Piece, ...] | None]:
        """The pieces of the row (of the encoder), and those of the decoder if it has any."""
        pieces = [Piece(self.template.start)]
        if system and self.template.system_place == "front":
            pieces += self.turn(system)
            system = None
        decoder_pieces = None
        for i, turn in enumerate(turns):
            is_last = i == len(turns) - 1
            inside: list[Piece] = []
            if turn.role == "user":
                if any(earlier.role == "user" for earlier in turns[:i]):
                    pieces.append(Piece(self.template.between))
                if system:
                    inside, system = self.turn(system), None
            if self.template.encoder_decoder and is_last and turn.role == "assistant":
                encoder, decoder_pieces = self.answer_of_decoder(turn)
                pieces += encoder
            else:
                pieces += self.turn(turn, inside, is_last)
        if system:
            name = self.template.name
            raise DataError(f"{self.where}: '{name}' writes the system text into the first user turn; there is none")
        return _without_empty(pieces), decoder_pieces

    def turn(self, turn: Turn, inside: Sequence[Piece] = (), is_last: bool = False) -> list[Piece]:
        """One turn. ``inside`` is written after its header."""
        form = self.template.format_of(turn.role)
        learn = self.switches["learn_markup"]
        head = [Piece(form.open, learn), Piece(form.header), *inside]
        if turn.text is None:
            return head
        # An earlier answer in front of an encoder-decoder's last one is context: no decoder writes it.
        is_target = turn.role == "assistant" and not self.template.encoder_decoder
        content = self.content(turn, form, is_target, is_last)
        return [
            *head,
            Piece(form.lead, is_target),
            *content,
            Piece(form.end, is_target or learn),
            Piece(form.after, learn),
        ]

    def content(self, turn: Turn, form: RoleFormat, is_target: bool, is_last: bool) -> list[Piece]:
        """Text and image slots of a turn."""
        text = turn.text or form.default
        apart = self.switches["separate_text"]
        if isinstance(turn, _SystemText):
            return [Piece(text, is_target, apart, literal=True)]
        if is_target and is_last and self.switches["split_answer"]:
            cut = split_point(text, self.generator)
            return [*self.split(text[:cut], False, apart), *self.split(text[cut:], True, apart)]
        return self.split(text, is_target, apart)

    def split(self, text: str, is_target: bool, apart: bool) -> list[Piece]:
        """Divide a text at its image markers."""
        pieces: list[Piece] = []
        for i, part in enumerate(text.split(IMAGE_MARKER)):
            written = part.replace(LITERAL_MARKER, IMAGE_MARKER)
            pieces += [Piece(None)] * (i > 0) + [Piece(written, is_target, apart, literal=True)] * bool(part)
        return pieces

    def answer_of_decoder(self, turn: Turn) -> tuple[list[Piece], tuple[Piece, ...] | None]:
        """The last assistant turn of an encoder-decoder template: what the encoder reads, what the decoder writes."""
        form = self.template.assistant
        head = [Piece(form.open), Piece(form.header)]
        if turn.text is None:
            return head, None
        if IMAGE_MARKER in turn.text:
            raise DataError(f"{self.where}: the last answer holds a picture, but a decoder has no place for one")
        cut = split_point(turn.text, self.generator) if self.switches["split_answer"] else 0
        target = [*self.split(turn.text[cut:], True, apart=False), Piece(form.end, True)]
        return [*head, *self.split(turn.text[:cut], False, apart=False)], tuple(_without_empty(target))

    def write_spans(self, spans: list[Span]) -> list[Piece]:
        """Pieces of what a tokenizer's chat template wrote."""
        pieces: list[Piece] = []
        for text, is_target, turn in spans:
            has_slots = turn is not None and not isinstance(turn, _SystemText)
            apart = turn is not None and self.switches["separate_text"]
            literal = turn is not None
            pieces += self.split(text, is_target, apart) if has_slots else [Piece(text, is_target, apart, literal)]
        return _without_empty(pieces)


def _without_empty(pieces: Sequence[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.text != ""]
