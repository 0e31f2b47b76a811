"""New tokens from a model: greedy, beam search, sampling. The loop is transformers' own, fed with embeddings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sightbridge.batch import Batch
from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import DataError
from sightbridge.models.context import is_rotary, position_limit
from sightbridge.models.vlm import VisionLanguageModel

GREEDY = GenerationSettings()
"""The defaults: the likeliest token, up to 64 of them."""


@torch.no_grad()
def generate(
    model: VisionLanguageModel,
    batch: Batch,
    settings: GenerationSettings = GREEDY,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    tokenizer: Any = None,
    watch: Callable[[Tensor], bool] | None = None,
) -> Tensor:
    """Continue every row of a batch.

    A row's result depends neither on its neighbours nor on the side of the padding. Pictures go through tower and
    connector once. The model answers in evaluation mode, and the generation settings that a released language model
    brings along (its own lengths, beams, forced tokens) play no part.

    Args:
        model: decoder-only or encoder-decoder.
        batch: B prompts; labels are not looked at.
        settings: how. With ``sample`` and a ``seed``, the same noise meets every row, so that a row gets the same
            answer alone and in company; the caller's random state is neither used nor changed. Without a seed one is
            drawn from it, and rows draw apart.
        eos_ids: tokens that end a row; held back before ``min_new_tokens``. May be empty.
        pad_id: fills rows up that ended early.
        tokenizer: reads the new tokens where ``settings.stop`` has texts; they end a row however short it is.
        watch: is shown the ids so far, (rows, n), after every step, and ends the generation by returning true.

    Returns:
        Ids (B * num_answers, n <= max_new_tokens) of new tokens only, answers of a row side by side (beam search: the
        best first). A row's EOS is included, what follows it is padding.

    Raises:
        DataError: a row's slots and pictures disagree, or the language model has no room for prompt and answer.
    """
    assert batch.segments is None, "records in one row cannot each be continued: make the prompts without packing"
    assert tokenizer is not None or not settings.stop, "stop texts are found by reading: give a tokenizer"
    language_model = model.language_model
    check_room(language_model.config, int(batch.attention_mask.sum(dim=1).max()), settings.max_new_tokens)
    batch = batch.to(language_model.model.device)
    start = 1 if language_model.is_encoder_decoder else 0  # the decoder's start token comes back with the new ones
    with in_evaluation_mode(model):
        embeddings, mask = pad_on_one_side(model.embed(batch), batch.attention_mask, left=not start)
        if settings.sample:
            embeddings, mask = (rows.repeat_interleave(settings.num_answers, dim=0) for rows in (embeddings, mask))
        ids = without_own_settings(language_model.model).generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            generation_config=_configure(settings, language_model.config, eos_ids, pad_id),
            logits_processor=LogitsProcessorList(score_steps(settings, embeddings.device)),
            stopping_criteria=StoppingCriteriaList(_stopping(settings, start, tokenizer, watch)),
        )
    return _pad_ended(ids[:, start:], eos_ids, pad_id)


def check_room(config: Any, prompt: int, answer: int) -> None:
    """Check that a table of positions is long enough; rotary ones go on, and ``Chat`` may be told that they do."""
    limit = position_limit(config)
    needed = max(prompt, answer) if config.is_encoder_decoder else prompt + answer
    if limit is not None and not is_rotary(config) and needed > limit:
        raise DataError(
            f"the prompt takes {prompt:,} positions (pictures included) and max_new_tokens is {answer:,}, but the "
            f"language model ({config.model_type}) has {limit:,}: shorten the text, show fewer pictures, or lower "
            "max_new_tokens"
        )


def _configure(settings: GenerationSettings, config: Any, eos_ids: Sequence[int], pad_id: int) -> GenerationConfig:
    """Say it in transformers' words; what happens to the scores is said in ``score_steps``."""
    options: dict[str, Any] = {}
    if settings.num_beams > 1:
        options |= {"length_penalty": settings.length_penalty, "num_return_sequences": settings.num_answers}
    if config.is_encoder_decoder:
        options["decoder_start_token_id"] = config.decoder_start_token_id
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens,
        num_beams=settings.num_beams,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=pad_id,
        **options,
    )


def score_steps(settings: GenerationSettings, device: torch.device) -> list[LogitsProcessor]:
    """What is done to the scores of a step before the largest is taken, in transformers' order."""
    steps: list[LogitsProcessor] = [OnlyNumbers()]
    if settings.repetition_penalty != 1:  # given to transformers as a setting, it warns that the prompt does not count
        steps.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
    if settings.sample:
        steps.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            steps.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            steps.append(TopPLogitsWarper(settings.top_p))
        steps.append(Draw(settings, device))
    return steps


class OnlyNumbers(LogitsProcessor):
    """Stops where the model makes no sense any more: T5's feed-forward overflows in float16, a weight is broken."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Return the scores (rows, V) as they are; raises ``DataError`` if one is not a number."""
        if scores.isnan().any():
            raise DataError(
                "the language model's scores are not numbers: a weight of the model is broken, or it overflows in "
                "float16 (use float32 or bfloat16)"
            )
        return scores


class Draw(LogitsProcessor):
    """Makes the largest score a draw from the softmax of the scores, by adding Gumbel noise (Gumbel, 1954).

    Transformers draws from the global random state, which other threads share and which makes a row's answer depend
    on the rows beside it; this noise comes from a generator of its own.
    """

    def __init__(self, settings: GenerationSettings, device: torch.device) -> None:
        seed = settings.seed
        self.shared_rows = None if seed is None else settings.num_answers
        self.generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Add noise to scores (rows, V); with a seed, the same to all rows that are the k-th answer of theirs."""
        rows, vocabulary = scores.shape
        drawn = self.shared_rows or rows
        noise = scores.new_empty(drawn, vocabulary).exponential_(generator=self.generator).log().neg()
        return scores + noise.repeat(rows // drawn, 1)


def _stopping(
    settings: GenerationSettings, start: int, tokenizer: Any, watch: Callable[[Tensor], bool] | None
) -> list[StoppingCriteria]:
    criteria: list[StoppingCriteria] = []
    if settings.stop:
        criteria.append(StopTexts(settings.stop, start, tokenizer))
    if watch is not None:
        criteria.append(Watch(watch, start))
    return criteria


class StopTexts(StoppingCriteria):
    """Ends a row once its text, read anew after every token, holds one of the texts.

    A text may begin inside one token and end inside another, so ids alone do not tell.
    """

    def __init__(self, texts: Sequence[str], start: int, tokenizer: Any) -> None:
        self.texts = texts
        self.start = start
        self.tokenizer = tokenizer

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Tell which rows (rows,) have ended."""
        rows = input_ids[:, self.start :].tolist()
        decode = self.tokenizer.decode
        read = [decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows]
        ended = [any(text in row for text in self.texts) for row in read]
        return torch.tensor(ended, device=input_ids.device)


class Watch(StoppingCriteria):
    """Shows every step to ``watch``, and ends all rows when it says so."""

    def __init__(self, watch: Callable[[Tensor], bool], start: int) -> None:
        self.watch = watch
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Tell which rows (rows,) have ended: all or none."""
        return torch.full((len(input_ids),), self.watch(input_ids[:, self.start :]), device=input_ids.device)


def pad_on_one_side(embeddings: Tensor, mask: Tensor, *, left: bool) -> tuple[Tensor, Tensor]:
    """Move the real positions of embeddings (B, L, D) and mask (B, L) to the other end, keeping their order.

    New tokens continue a decoder-only row at its right end; BART's encoder counts positions from the left one.
    """
    order = mask.argsort(dim=1, stable=True, descending=not left)
    return embeddings.gather(1, order.unsqueeze(-1).expand_as(embeddings)), mask.gather(1, order)


def without_own_settings(model: Any) -> Any:
    """Return a Hugging Face model with the same weights, whose own generation settings are empty.

    Transformers fills whatever we leave open from them. The given model keeps its own: they are saved with it.
    """
    bare = copy.copy(model)
    bare.generation_config = GenerationConfig()
    return bare


def _pad_ended(ids: Tensor, eos_ids: Sequence[int], pad_id: int) -> Tensor:
    """Pad what follows the first EOS; transformers' beam search repeats EOS there if the padding id is 0."""
    is_eos = torch.isin(ids, torch.tensor(eos_ids, dtype=ids.dtype, device=ids.device))
    return ids.masked_fill(is_eos.cumsum(dim=1) > is_eos.long(), pad_id)


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
