"""Pieces to token ids, image slots and labels, in one pass: every stretch of text is tokenised exactly once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from sightbridge.errors import DataError, SettingsError
from sightbridge.text.alignment import tokenise_with_mask
from sightbridge.text.render import Piece, Rendered

IGNORE_INDEX = -100
"""Label of positions that are not a target. The same value as ``sightbridge.batch.IGNORE_INDEX``, which needs torch."""


class NoTargetError(DataError):
    """A record leaves the model nothing to learn. Skip it and count it, or stop; never train on it."""


@dataclass(frozen=True)
class Encoded:
    """One row, as plain lists of equal length where not said otherwise.

    - ``input_ids``: the row (the encoder's row of an encoder-decoder template). Image slots hold the padding id, or 0
      if there is none; they are never looked up.
    - ``image_slots``: true where an image token goes; every picture takes ``tokens_per_image`` slots in a row.
    - ``labels``: decoder-only: aligned with ``input_ids`` and not shifted, ``IGNORE_INDEX`` outside targets.
      Encoder-decoder: the ids the decoder must write, EOS included, a list of its own length (the model shifts them to
      get the decoder's input); empty for a prompt.
    - ``images``: pictures in the row. ``truncated``: positions cut off for the greatest length, labels included.
    - ``n_target_tokens``: targets that have a prediction (decoder-only: position 0 has none).
    """

    input_ids: list[int]
    image_slots: list[bool]
    labels: list[int]
    images: int
    truncated: int
    n_target_tokens: int
    record_id: str = ""


class _Token(NamedTuple):
    id: int
    is_target: bool = False
    is_slot: bool = False


class _Affixes(NamedTuple):
    """What a tokenizer puts around a text on its own (BOS, EOS)."""

    prefix: list[int]
    suffix: list[int]


def encode(
    rendered: Rendered,
    tokenizer: Any,
    tokens_per_image: int,
    *,
    max_length: int | None = None,
    max_answer_length: int | None = None,
    switches: dict[str, bool] | None = None,
) -> Encoded:
    """Turn pieces into ids, slots and labels.

    The tokenizer's automatic BOS is added unless the text begins with it already. Its automatic EOS is added for
    encoder-decoder templates only: decoder-only ones write their own end of turn, and an EOS after an open turn would
    end the answer before it began. ``switches`` go over those that ``rendered`` was made with.

    ``max_length`` cuts text off at the right of the row and of the decoder's labels, if those have no
    ``max_answer_length`` of their own (an automatic EOS is kept). A picture is never cut: one that does not fit is an
    error, unless ``drop_cut_images`` is on.

    Raises ``NoTargetError`` if a conversation with an answer (no open turn) has no target left, and ``DataError`` if
    the row cannot be cut to ``max_length`` or the tokens of the targets cannot be found for certain.
    """
    rendered.template.resolve(switches)  # refuses unknown names
    resolved = rendered.switches | (switches or {})
    encoder_decoder = rendered.template.encoder_decoder
    row = _RowEncoder(tokenizer, tokens_per_image, resolved, rendered)
    answer = row.section(rendered.decoder_pieces) if rendered.decoder_pieces else []
    given, answer = split_tokens(answer, rendered.token_split)
    tokens, truncated = row.cut(row.tokens(rendered.pieces, given), max_length, keep=row.suffix)
    if not encoder_decoder:
        labels = [token.id if token.is_target else IGNORE_INDEX for token in tokens]
        n_targets = sum(label != IGNORE_INDEX for label in labels[1:])
    elif rendered.decoder_pieces is None:
        labels, n_targets = [], 0
    else:
        longest = max_answer_length or max_length
        targets, cut_targets = row.cut(row.decoder_tokens(answer), longest, keep=row.decoder_suffix)
        labels, truncated = [token.id for token in targets], truncated + cut_targets
        n_targets = len(labels)
    if n_targets == 0 and not rendered.is_open:
        raise NoTargetError(
            f"{row.where}: nothing to learn in it: "
            + (f"no target is left of it within max_length {max_length}" if truncated else "it has no answer")
        )
    slots = [token.is_slot for token in tokens]
    images = sum(slots) // tokens_per_image
    return Encoded([token.id for token in tokens], slots, labels, images, truncated, n_targets, rendered.record_id)


def split_tokens(answer: list[_Token], split: float | None) -> tuple[list[_Token], list[_Token]]:
    """Cut an answer behind 1 to half of its tokens, all cuts alike for a uniform ``split`` in [0, 1).

    BLIP-2's authors: "randomly split the sequence", from position 1 to its middle (salesforce/LAVIS, issue 139). An
    answer of a single token is not cut, and without a ``split`` none is.
    """
    middle = len(answer) // 2
    cut = 0 if split is None or middle == 0 else 1 + int(split * middle)
    return [token._replace(is_target=False) for token in answer[:cut]], answer[cut:]


class _RowEncoder:
    """Encodes the pieces of one record; holds what every step of that needs."""

    def __init__(self, tokenizer: Any, tokens_per_image: int, switches: dict[str, bool], rendered: Rendered) -> None:
        self.tokenizer = tokenizer
        self.switches = switches
        self.rendered = rendered
        self.where = f"record '{rendered.record_id}'" if rendered.record_id else "this record"
        adds = (getattr(tokenizer, "add_bos_token", None), getattr(tokenizer, "add_eos_token", None))
        self.affixes = _automatic_tokens(tokenizer, adds)
        self.image = [_Token(getattr(tokenizer, "pad_token_id", None) or 0, is_slot=True)] * tokens_per_image
        is_encoder = rendered.template.encoder_decoder
        self.suffix = [_Token(i) for i in self.affixes.suffix] if is_encoder else []
        # A decoder must learn to stop, also with a tokenizer that adds no EOS by itself.
        eos = getattr(tokenizer, "eos_token_id", None)
        ends = self.affixes.suffix or ([] if eos is None else [eos])
        self.decoder_suffix = [_Token(i, is_target=True) for i in ends]

    def tokens(self, pieces: Sequence[Piece], given: list[_Token]) -> list[_Token]:
        """The row: sections of text with a picture between each two, BOS and EOS where they belong.

        ``given`` are the tokens of the answer that the encoder is given, behind everything else.
        """
        sections = [self.section(section) for section in _split_at_images(pieces)]
        sections[-1] += given
        if self.switches["lost_newline"] and not self.affixes.prefix and _starts_with_bos(sections[0], self.tokenizer):
            sections[1:] = [section[1:] for section in sections[1:]]
        first = next((i for i, section in enumerate(sections) if section), len(sections) - 1)
        first = first if self.switches["image_before_bos"] else 0
        sections[first] = self.bos(sections[first]) + sections[first]
        row: list[_Token] = []
        for i, section in enumerate(sections):
            is_last = i == len(sections) - 1
            row += section
            if is_last or self.switches["eos_before_image"]:
                row += self.suffix
            if not is_last:
                row += self.image
        return row

    def bos(self, section: list[_Token]) -> list[_Token]:
        """The tokenizer's own BOS, if the section does not begin with it."""
        prefix = self.affixes.prefix
        is_written = [token.id for token in section[: len(prefix)]] == prefix
        # A tokenizer's own chat template writes every special token itself.
        if self.rendered.template.from_tokenizer or (is_written and not self.switches["double_bos"]):
            return []
        return [_Token(i, self.switches["bos_target"]) for i in prefix]

    def section(self, pieces: Sequence[Piece]) -> list[_Token]:
        """Tokens of neighbouring pieces of text, which are tokenised together unless one is to be apart."""
        tokens: list[_Token] = []
        control = _control_tokens(self.tokenizer)
        for piece in pieces:
            _check_unicode(piece.text or "", self.where)
        for chunk in _chunks([_keep_literal(piece, control) for piece in pieces]):
            if control.named_in(chunk[0]):
                ids = self.literal_ids(chunk[0].text or "", control)
                mask = [chunk[0].is_target] * len(ids)
            else:
                parts = [(piece.text or "", piece.is_target) for piece in chunk]
                ids, mask = tokenise_with_mask(self.tokenizer, parts, self.where)
            tokens += [_Token(i, is_target) for i, is_target in zip(ids, mask, strict=True)]
        return tokens

    def literal_ids(self, text: str, control: _ControlTokens) -> list[int]:
        """Ids of a text that names a control token: of its letters, so that nobody writes a turn's end into a turn."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if control.ids.intersection(ids):
            raise DataError(
                f"{self.where}: this tokenizer takes part of {text[:80]!r} for a control token wherever it stands; "
                "take it out of the text, or use a fast tokenizer"
            )
        return ids

    def decoder_tokens(self, answer: list[_Token]) -> list[_Token]:
        """What the decoder must write, all of it targets."""
        prefix = [_Token(i, is_target=True) for i in self.affixes.prefix]
        return [*prefix, *answer, *self.decoder_suffix]

    def cut(self, tokens: list[_Token], max_length: int | None, keep: list[_Token]) -> tuple[list[_Token], int]:
        """At most ``max_length`` tokens, the tokens ``keep`` at the end of the row kept; and how many were cut off."""
        if max_length is None or len(tokens) <= max_length:
            return tokens, 0
        if self.rendered.is_open:
            raise DataError(
                f"{self.where}: the prompt takes {len(tokens)} positions, max_length is {max_length}; shorten the "
                "conversation or raise max_length (a prompt is not cut: the end is where the answer starts)"
            )
        body = tokens[: max(max_length - len(keep), 0)]
        lost = sum(token.is_slot for token in tokens) - sum(token.is_slot for token in body)
        if lost and not self.switches["drop_cut_images"]:
            raise DataError(
                f"{self.where}: its {self.rendered.images} picture(s) of {len(self.image)} tokens each do not fit into "
                f"max_length {max_length}; raise it, or switch drop_cut_images on to lose the last picture(s)"
            )
        if lost:
            partial = -lost % len(self.image)  # slots left of a picture that the cut went through
            body = body[: len(body) - partial]
        return body + keep, len(tokens) - len(body) - len(keep)


def _check_unicode(text: str, where: str) -> None:
    """Raise ``DataError`` for half a character, as JSON's ``"\\ud83d"`` or a word in no UTF-8 leave one in a text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the text {text[:80]!r} holds half a character ({text[error.start]!a}), which no tokenizer "
            "reads. Replace it, or write the text as UTF-8."
        ) from error


class _ControlTokens(NamedTuple):
    """The special tokens of a tokenizer: the names that a text may hold, and their ids."""

    names: re.Pattern[str]
    ids: frozenset[int]

    def named_in(self, piece: Piece) -> bool:
        """Whether somebody wrote the name of one into a text."""
        return piece.literal and self.names.search(piece.text or "") is not None


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Any) -> _ControlTokens:
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    special.pop(tokenizer.unk_token, None)  # what no token stands for is unknown, also in a text
    names = "|".join(re.escape(name) for name in special)
    return _ControlTokens(re.compile(names or "(?!)"), frozenset(special.values()))


def _keep_literal(piece: Piece, control: _ControlTokens) -> Piece:
    """A text that names a control token is tokenised apart: in one pass with markup it could not be told from it."""
    return replace(piece, apart=True) if control.named_in(piece) else piece


@lru_cache(maxsize=8)  # or every record would cost two tokenisations more
def _automatic_tokens(tokenizer: Any, adds: tuple[bool | None, bool | None]) -> _Affixes:
    """Find what ``tokenizer`` adds in front of and behind a text, from a text where it can be seen.

    ``adds``, its own switches for that, are what may change of a tokenizer that has been asked before.
    """
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    starts = [i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain]
    if not plain or len(starts) != 1:
        raise SettingsError(
            f"this tokenizer makes {plain} of the text 'a' and {full} with special tokens, so its BOS and EOS cannot "
            "be told from text; use a tokenizer that knows the letter 'a' or has an unknown token of its own"
        )
    return _Affixes(full[: starts[0]], full[starts[0] + len(plain) :])


def _starts_with_bos(section: list[_Token], tokenizer: Any) -> bool:
    return bool(section) and section[0].id == tokenizer.bos_token_id


def _split_at_images(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The texts before, between and after the pictures: one list more than there are pictures."""
    sections: list[list[Piece]] = [[]]
    for piece in pieces:
        if piece.text is None:
            sections.append([])
        else:
            sections[-1].append(piece)
    return sections


def _chunks(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Group the pieces of a section: those that are tokenised apart alone, the stretches between them together."""
    chunks: list[list[Piece]] = []
    for i, piece in enumerate(pieces):
        if i == 0 or piece.apart or pieces[i - 1].apart:
            chunks.append([])
        chunks[-1].append(piece)
    return chunks
