"""Scores from a language model that sees: how probable an answer is, given a picture and a question.

Lin et al., "Evaluating Text-to-Visual Generation with Image-to-Text Generation" (VQAScore, arXiv 2404.01291), and
Lin et al., "Revisiting the Role of Language Priors in Vision-Language Models" (VisualGPTScore, arXiv 2306.01879). By
default this equals t2v_metrics: one teacher-forced pass, ``exp`` of minus the mean cross entropy over the answer's
tokens and the EOS behind them, for every row by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightbridge.data.processor import Processor, pad
from sightbridge.errors import DataError, SettingsError
from sightbridge.models.splice import splice
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.scoring.answers import AnswerReader, Line
from sightbridge.scoring.fingerprint import fingerprint_of
from sightbridge.scoring.kinds import Ask, Chunk, Item, Row, batches_by_length
from sightbridge.scoring.prefix import can_keep_prefix, common_prefix, continue_prefix, run_prefix
from sightbridge.scoring.reduce import reduce
from sightbridge.scoring.settings import ANSWER_KINDS, SCORES_VERSION, AnswerSettings, Kind, change_settings
from sightbridge.text.encode import IGNORE_INDEX

CLIP_FLANT5_ROWS = (32128, 32100)
"""Rows of FlanT5's head, and those its tokenizer knows. t2v_metrics cuts the head down to the latter when it loads."""

CPU_POSITIONS = 1536
"""Positions that a CPU runs at a time. More rows gain it nothing, and their attention leaves its caches: with 640
positions, 8 rows of a T5 take twice the time per row that 2 take."""


class Unit(NamedTuple):
    """A row to score: its place among the rows, its picture, and its answers (two for ``yes_no``)."""

    place: int
    picture: int
    lines: tuple[Line, ...]


class AnswerLikelihood:
    """The kinds vqascore, visualgpt and options of one generation model.

    Args:
        model: decoder-only or encoder-decoder; it is asked in evaluation mode.
        processor: that came with it.
        settings: of the score.
        kind: a name for the settings, which is kept with the scores.
        keep_prefix: run what the rows of a picture begin with only once, where the model's family allows it.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        processor: Processor,
        settings: AnswerSettings = ANSWER_KINDS["vqascore"],
        kind: Kind = "vqascore",
        keep_prefix: bool = True,
    ) -> None:
        self.model = model
        self.processor = processor
        self.settings = settings
        self.kind: Kind = kind
        self.keep_prefix = keep_prefix and can_keep_prefix(model.language_model)
        self.image_settings, self.transform = processor.image_settings, processor.transform
        self.reader = AnswerReader(processor, settings.answer_eos)
        self.reads_question = processor.connector_text is not None
        self.head_rows = settings.head_rows or released_head_rows(model, processor)

    def changed(self, **settings: Any) -> AnswerLikelihood:
        """Return the same kind and model with other ``AnswerSettings``; raises ``SettingsError``."""
        new = change_settings(self.settings, settings)
        return AnswerLikelihood(self.model, self.processor, new, self.kind, self.keep_prefix)

    def describe(self) -> dict[str, Any]:
        """Return the settings, and what of the model's own shapes the prompt and the picture."""
        prompt = self.processor.prompt_settings
        return {
            "kind": self.kind,
            **self.settings.model_dump(),
            "head_rows": self.head_rows,
            "prompt": prompt.model_dump(mode="json"),
            "image": self.image_settings.model_dump(mode="json"),
            "dtype": str(self.model.language_model.model.dtype).removeprefix("torch."),
            "version": SCORES_VERSION,
        }

    def fingerprint(self) -> str:
        """Return a hash of the weights of all three parts."""
        return fingerprint_of(self.model)

    def items(self, texts: Sequence[str]) -> list[Item]:
        """Write texts into the two templates."""
        asked = (self.settings.question_template, self.settings.answer_template)
        return [Ask(*(template.replace("{}", text) for template in asked)) for text in texts]

    def read(self, items: Sequence[Item], batch_size: int) -> dict[Item, tuple[Line, ...]]:
        """Tokenise the row of every item; of ``yes_no`` also that with the other answer. Raises ``DataError``."""
        read = {item: tuple(self.reader(ask) for ask in self._answers(item)) for item in items}
        largest = max((i for lines in read.values() for line in lines for i in line.targets), default=0)
        if largest >= self.head_rows:
            raise SettingsError(f"head_rows is {self.head_rows}, but an answer has the token {largest}; raise it")
        return read

    def _answers(self, item: Item) -> list[Ask]:
        assert isinstance(item, Ask), "this kind asks"
        if self.settings.reduction != "yes_no":
            return [item]
        if item.answer == self.settings.other_answer:
            raise DataError(f"yes_no weighs the answer '{item.answer}' against itself; set other_answer to another one")
        return [item, item._replace(answer=self.settings.other_answer)]

    def encode(self, batches: Iterable[Tensor]) -> Tensor:
        """Run tower and connector: image tokens (N, T, D); features (N, S, C) if the connector reads the question."""
        encoded = []
        for pixels in batches:
            # not encode_images, which leaves no graph behind a frozen tower: a reward's gradient goes on to the pixels
            features = self.model.vision_tower(pixels.to(next(self.model.vision_tower.parameters()).device))
            encoded.append(features if self.reads_question else self.model.connect(features))
        return torch.cat(encoded)

    def score(
        self, encoded: Tensor, rows: Sequence[Row], read: dict[Item, tuple[Line, ...]], batch_size: int
    ) -> Iterator[Chunk]:
        """Score rows, longest first."""
        units = [Unit(place, picture, read[item]) for place, (picture, item) in enumerate(rows)]
        lines = list({id(line): line for unit in units for line in unit.lines}.values())
        kept = common_prefix([line.encoded for line in lines]) if self.keep_prefix and not self.reads_question else 0
        room = CPU_POSITIONS if encoded.device.type == "cpu" else None
        if self.model.language_model.is_encoder_decoder or not kept:
            run = self._encode_decode if self.model.language_model.is_encoder_decoder else self._whole_rows
            for batch in in_batches(units, batch_size, room):
                yield self._chunk(batch, run(encoded, batch))
            return
        pictures = sorted({unit.picture for unit in units})
        for chosen in batches_by_length([kept] * len(pictures), batch_size, room):
            together = {pictures[number]: place for place, number in enumerate(chosen)}
            prefix = run_prefix(self.model.language_model, self._prefixes(encoded[list(together)], lines[0], kept))
            mine = [unit._replace(picture=together[unit.picture]) for unit in units if unit.picture in together]
            for batch in in_batches(mine, batch_size, None):
                yield self._chunk(batch, self._rests(prefix, batch, kept))

    def _chunk(self, batch: Sequence[Unit], logprobs: list[Tensor]) -> Chunk:
        """Put the answers of each unit together again."""
        scores, tokens, left = [], [], iter(logprobs)
        for unit in batch:
            answers = [next(left) for _ in unit.lines]
            scores.append(reduce(self.settings.reduction, answers))
            tokens.append(self.reader.tokens(unit.lines[0], answers[0].tolist()))
        return Chunk([unit.place for unit in batch], torch.stack(scores), tokens)

    def _encode_decode(self, encoded: Tensor, batch: Sequence[Unit]) -> list[Tensor]:
        """Run rows of an encoder-decoder; answers to one question about a picture share its pass of the encoder."""
        language_model, lines = self.model.language_model, [line for unit in batch for line in unit.lines]
        sources: dict[Any, tuple[int, Line]] = {}
        keys = [(unit.picture, tuple(line.encoded.input_ids)) for unit in batch for line in unit.lines]
        for key, line in zip(keys, lines, strict=True):
            sources.setdefault(key, (key[0], line))
        places = {key: place for place, key in enumerate(sources)}
        embeddings, mask = self._embed(encoded, list(sources.values()))
        read = language_model.model.get_encoder()(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        chosen = torch.tensor([places[key] for key in keys], device=read.device)
        labels = pad([line.encoded.labels for line in lines], IGNORE_INDEX, "right").to(read.device)
        hidden = language_model.model.get_decoder()(
            input_ids=language_model.decoder_input_ids(labels),
            encoder_hidden_states=read[chosen],
            encoder_attention_mask=mask[chosen],
            use_cache=False,
        ).last_hidden_state
        return self._logprobs(hidden, lines, [line.places for line in lines])

    def _whole_rows(self, encoded: Tensor, batch: Sequence[Unit]) -> list[Tensor]:
        """Run rows of a decoder-only model in one piece."""
        rows = [(unit.picture, line) for unit in batch for line in unit.lines]
        hidden = self.model.language_model(*self._embed(encoded, rows))
        return self._logprobs(hidden, [line for _, line in rows], [[i - 1 for i in line.places] for _, line in rows])

    def _rests(self, prefix: list[tuple[Tensor, Tensor]], batch: Sequence[Unit], kept: int) -> list[Tensor]:
        """Run what follows the prefix of each row."""
        lines = [line for unit in batch for line in unit.lines]
        device = prefix[0][0].device
        rests = [line.encoded.input_ids[kept:] for line in lines]
        ids, mask = (pad(rows, 0, "right").to(device) for rows in (rests, [[1] * len(rest) for rest in rests]))
        pictures = torch.tensor([unit.picture for unit in batch for _ in unit.lines], device=device)
        embeddings = self.model.language_model.embed(ids)
        hidden = continue_prefix(self.model.language_model, prefix, pictures, embeddings, mask)
        return self._logprobs(hidden, lines, [[i - 1 - kept for i in line.places] for line in lines])

    def _prefixes(self, image_tokens: Tensor, line: Line, kept: int) -> Tensor:
        """Embed what rows of each picture begin with: (N, kept, D)."""
        row = line.encoded
        ids = torch.tensor(row.input_ids[:kept]).expand(len(image_tokens), -1)
        slots = torch.tensor(row.image_slots[:kept]).expand(len(image_tokens), -1)
        return self._splice(ids, slots, image_tokens)

    def _embed(self, encoded: Tensor, rows: Sequence[tuple[int, Line]]) -> tuple[Tensor, Tensor]:
        """Embed whole rows (B, L, D), padded on the right, and their mask (B, L)."""
        pad_id = self.processor.tokenizer.pad_token_id
        lines, image_tokens = [line.encoded for _, line in rows], encoded[[picture for picture, _ in rows]]
        if self.reads_question:
            image_tokens = self._connect(image_tokens, [line for _, line in rows])
        ids = pad([line.input_ids for line in lines], pad_id, "right")
        slots = pad([line.image_slots for line in lines], False, "right")
        mask = pad([[1] * len(line.input_ids) for line in lines], 0, "right")
        embeddings = self._splice(ids, slots, image_tokens)
        return embeddings, mask.to(embeddings.device)

    def _connect(self, features: Tensor, lines: Sequence[Line]) -> Tensor:
        """Let the connector read each picture's features (B, S, C) together with the question about it."""
        if not any(line.asked for line in lines):
            return self.model.connect(features)
        assert self.processor.connector_text is not None, "it reads the question"
        pad_id = self.processor.connector_text.tokenizer.pad_token_id
        ids = pad([list(line.asked) for line in lines], pad_id, "right").to(features.device)
        mask = pad([[1] * len(line.asked) for line in lines], 0, "right").to(features.device)
        return self.model.connect(features, ids, mask)

    def _splice(self, ids: Tensor, slots: Tensor, image_tokens: Tensor) -> Tensor:
        """Look text ids (B, L) up and put image tokens (B, T, D) into the slots."""
        language_model = self.model.language_model
        device = language_model.model.device
        embeddings = language_model.embed(ids.to(device))
        return splice(embeddings, slots.to(device), image_tokens.to(device) / language_model.embedding_scale)

    def _logprobs(self, hidden: Tensor, lines: Sequence[Line], places: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probabilities of each line's targets, from the hidden states (B, L, W) that predict them."""
        rows = [row for row, where in enumerate(places) for _ in where]
        wanted = [place for where in places for place in where]
        logits = self.model.language_model.head(hidden[rows, wanted])[:, : self.head_rows]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = torch.tensor([i for line in lines for i in line.targets], device=logits.device)
        chosen = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)
        return list(chosen.split([len(where) for where in places]))


def in_batches(units: Sequence[Unit], batch_size: int, positions: int | None) -> Iterator[list[Unit]]:
    """Deal units out in batches of about one length."""
    lengths = [sum(len(line.encoded.input_ids) for line in unit.lines) for unit in units]
    for places in batches_by_length(lengths, batch_size, positions):
        yield [units[place] for place in places]


def released_head_rows(model: VisionLanguageModel, processor: Processor) -> int:
    """All rows of the output head; of CLIP-FlanT5 those of its tokenizer (see ``CLIP_FLANT5_ROWS``)."""
    config = model.language_model.config
    rows = model.language_model.model.get_output_embeddings().weight.shape[0]
    is_clip_flant5 = config.model_type == "t5" and processor.template.name.startswith("t5_")
    return CLIP_FLANT5_ROWS[1] if is_clip_flant5 and rows == CLIP_FLANT5_ROWS[0] else rows
