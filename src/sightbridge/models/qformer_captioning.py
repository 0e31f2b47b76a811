"""Captions from a first-stage model, without a language model: the loop is transformers' own, fed with cached keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.blip_2.modeling_blip_2 import Blip2PreTrainedModel

from sightbridge.batch import QFormerBatch
from sightbridge.models.qformer import KeysValues
from sightbridge.models.qformer_pretraining import QFormerForPretraining, QFormerPretraining


@torch.no_grad()
def generate_captions(
    model: QFormerPretraining,
    batch: QFormerBatch,
    *,
    end_id: int,
    pad_id: int = 0,
    num_beams: int = 3,
    max_length: int = 30,
    min_length: int = 10,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
) -> Tensor:
    """Describe every picture of a batch. Defaults are those of LAVIS' ``Blip2Qformer.generate``.

    Args:
        model: in evaluation mode; otherwise dropout plays a part.
        batch: only its N pictures are looked at.
        end_id: id of [SEP], which ends a caption.
        pad_id: fills captions up that ended early.
        num_beams: 1 is greedy.
        max_length: longest caption in tokens, the [DEC] in front and [SEP] included.
        min_length: [SEP] is held back until a caption has this many tokens, [DEC] included.
        length_penalty: beam search divides a caption's log-probability by its length to this power.
        repetition_penalty: above 1, words that were said become less likely.

    Returns:
        Ids (N, n < max_length) without [DEC], with [SEP] where a caption ended, then padding.
    """
    pictures = model.qformer.read_pictures(model.encode_images(batch))
    writer: Any = CaptionWriter(model.qformer, pictures.earlier)
    start = torch.full((len(pictures.features), 1), model.qformer.decoder_start_id, device=pictures.features.device)
    config = GenerationConfig(
        num_beams=num_beams,
        max_length=max_length,
        min_length=min_length,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        repetition_penalty=repetition_penalty,
        **({"length_penalty": length_penalty} if num_beams > 1 else {}),
    )
    # transformers repeats this for the beams, so that each one knows its picture.
    picture = torch.arange(len(start), device=start.device)
    ids = writer.generate(start, generation_config=config, picture=picture)
    ids = ids[:, 1:]
    ended = (ids == end_id).cumsum(dim=1) - (ids == end_id).long()
    return ids.masked_fill(ended > 0, pad_id)


class CaptionWriter(Blip2PreTrainedModel, GenerationMixin):
    """A first-stage model in the shape that transformers' generation asks for; it has no weights of its own.

    The queries have seen everything there is to see, and do not see the caption: their keys and values are computed
    once, and each step adds those of one word.
    """

    def __init__(self, qformer: QFormerForPretraining, earlier: list[KeysValues]) -> None:
        super().__init__(qformer.qformer.config)
        self.writer = qformer
        self.earlier = earlier
        self.generation_config = GenerationConfig()

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: Any,
        picture: Tensor,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Score the word that follows the last of ``input_ids`` (rows, 1); earlier words are in the cache."""
        assert input_ids.shape[1] == 1, "one word at a time: the words before are in the cache"
        position = past_key_values.get_seq_length()
        earlier = [queries.pick(picture) for queries in self.earlier]
        if position:
            earlier = [
                KeysValues(torch.cat([queries.key, words.keys], dim=2), torch.cat([queries.value, words.values], dim=2))
                for queries, words in zip(earlier, past_key_values.layers, strict=True)
            ]
        hidden, made = self.writer.continue_text(input_ids, earlier, mask=None, first_position=position)
        for index, word in enumerate(made):
            past_key_values.update(word.key, word.value, index)
        return CausalLMOutputWithPast(logits=self.writer.word_logits(hidden), past_key_values=past_key_values)
