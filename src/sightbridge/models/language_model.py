"""One face for decoder-only and encoder-decoder language models: embeddings in, hidden states out, head apart.

Keeping the head apart lets the loss make logits only where there is a target, in pieces. Nothing here ever resizes
an embedding table: image tokens are positions, not words.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from sightbridge.batch import IGNORE_INDEX
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.segments import alibi_of, block_mask, positions_from_segments

T5_FAMILY = ("t5", "mt5", "umt5")


class LanguageModel(nn.Module):
    """Wraps an ``AutoModelForCausalLM`` or ``AutoModelForSeq2SeqLM``.

    Attributes:
        model: the Hugging Face model; generation calls it with ``inputs_embeds``.
        width: D, width of the input embeddings.
        is_encoder_decoder: whether images enter an encoder and text leaves a decoder.
        embedding_scale: what the model multiplies ``inputs_embeds`` by (Granite does); image tokens are divided by it
            so that they enter at the scale the connector gave them. Gemma scales inside its embedding table instead.
        has_own_head: whether the output head has weights of its own. It must stay so, see ``assert_heads_untied``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.config: Any = model.config
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.width: int = model.get_input_embeddings().embedding_dim
        self.embedding_scale = float(getattr(model.config, "embedding_multiplier", 1.0))
        self.has_own_head = not shares_head(model)
        if self.has_own_head and model.config.model_type in ("t5", "mt5"):
            # transformers 5 forces this flag on for every T5, and any later tie_weights() or resize would then
            # overwrite the head of FlanT5 or mT0 by the embeddings. umT5 also reads it to scale its logits.
            model.config.tie_word_embeddings = False

    def embed(self, input_ids: Tensor) -> Tensor:
        """Look ids (B, L) up in the embedding table: (B, L, D)."""
        return self.model.get_input_embeddings()(input_ids)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor | None = None,
        segments: Tensor | None = None,
        decoder_segments: Tensor | None = None,
    ) -> Tensor:
        """Run everything but the head.

        Args:
            inputs_embeds: (B, L, D).
            attention_mask: (B, L), 0 on padding, which may be on either side (BART's encoder counts columns, so for it
                only on the right).
            decoder_input_ids: (B, Ld), encoder-decoder only.
            segments: (B, L), of packed rows: which record a position belongs to (see ``Batch``).
            decoder_segments: (B, Ld), the same for ``decoder_input_ids``.

        Returns:
            Last hidden states, (B, L, width of the head) or (B, Ld, width of the head).
        """
        if self.is_encoder_decoder:
            return self._encode_decode(inputs_embeds, attention_mask, decoder_input_ids, segments, decoder_segments)
        trunk = self.model.base_model
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "use_cache": False}
        if "position_ids" in inspect.signature(trunk.forward).parameters:
            inputs["position_ids"] = positions_from_mask(attention_mask)
        if segments is None:
            return trunk(**inputs).last_hidden_state
        positions = positions_from_segments(segments)
        inputs["attention_mask"] = block_mask(segments, segments, inputs_embeds.dtype, causal=True)
        if "position_ids" in inputs:
            inputs["position_ids"] = positions
            return trunk(**inputs).last_hidden_state
        with alibi_of(trunk, positions):  # BLOOM counts positions itself, from a mask of two dimensions
            return trunk(**inputs).last_hidden_state

    def _encode_decode(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor | None,
        segments: Tensor | None,
        decoder_segments: Tensor | None,
    ) -> Tensor:
        """Run both stacks. T5's position bias depends on differences alone, so its records need no new start."""
        seen, own, across = attention_mask, None, attention_mask
        if segments is not None and decoder_segments is not None:
            seen = block_mask(segments, segments, inputs_embeds.dtype)
            own = block_mask(decoder_segments, decoder_segments, inputs_embeds.dtype, causal=True)
            across = block_mask(decoder_segments, segments, inputs_embeds.dtype)
        encoded = self.model.get_encoder()(inputs_embeds=inputs_embeds, attention_mask=seen)
        decoded = self.model.get_decoder()(
            input_ids=decoder_input_ids,
            attention_mask=own,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=across,
            use_cache=False,
        )
        return decoded.last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states (..., width) into logits (..., V), with all the model does around its output layer."""
        config = self.config
        if scales_hidden(config):  # Raffel et al., arXiv 1910.10683: a tied head sees d^-0.5 of the hidden state
            hidden = hidden * config.d_model**-0.5
        logits = self.model.get_output_embeddings()(hidden)
        if (bias := getattr(self.model, "final_logits_bias", None)) is not None:  # BART
            logits = logits + bias
        if (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * factor
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2 and 3
            logits = torch.tanh(logits / cap) * cap
        return logits

    @property
    def head_is_frozen(self) -> bool:
        """Whether no weight of the output head trains."""
        return not any(weight.requires_grad for weight in self.model.get_output_embeddings().parameters())

    def decoder_input_ids(self, labels: Tensor, decoder_segments: Tensor | None = None) -> Tensor:
        """Shift labels (B, Ld) right behind the start token, for teacher forcing; in packed rows every record's own."""
        start = torch.full_like(labels[:, :1], self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        if decoder_segments is not None:
            shifted = torch.where(positions_from_segments(decoder_segments) == 0, start, shifted)
        return shifted.masked_fill(shifted == IGNORE_INDEX, self.config.pad_token_id)

    def assert_heads_untied(self) -> None:
        """Check that a head with weights of its own still has them: call after every step that could tie it.

        Raises:
            CheckpointError: the head has become the embedding table, so what it had learned is lost.
        """
        if self.has_own_head and shares_head(self.model):
            raise CheckpointError(
                f"The output head of the {self.config.model_type} language model was overwritten by its input "
                "embeddings (tie_weights() or resize_token_embeddings() does that); load the weights again."
            )


def positions_from_mask(attention_mask: Tensor) -> Tensor:
    """Count positions 0, 1, 2, ... over the real tokens of each row, so that the padding side does not matter."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def scales_hidden(config: Any) -> bool:
    """Whether a T5 scales its hidden state before the head: original T5 does, T5 1.1, FlanT5 and mT5 do not."""
    if config.model_type == "umt5":
        return bool(config.tie_word_embeddings)
    return config.model_type == "t5" and bool(config.scale_decoder_outputs)


def wants_own_head(config: Any) -> bool:
    """Whether models of this configuration have a head apart although transformers 5 would tie it.

    T5 1.1, FlanT5 and mT5 were trained with separate heads; transformers 5 forces ``tie_word_embeddings`` on, and
    remembers what the file said only as T5's ``scale_decoder_outputs``.
    """
    return config.model_type in T5_FAMILY and (config.model_type != "t5" or not config.scale_decoder_outputs)


def build_with_own_head(auto_class: Any, config: Any, **options: Any) -> Any:
    """Build a random T5, mT5 or umT5 whose head is apart and whose two stacks share one embedding table."""
    forced = config.tie_word_embeddings
    config.tie_word_embeddings = False
    model = auto_class.from_config(config, **options)
    # With the flag off, encoder and decoder got tables of their own as well; those two are shared in every T5.
    model.set_input_embeddings(model.get_input_embeddings())
    model.config.tie_word_embeddings = forced
    return model


def shares_head(model: Any) -> bool:
    """Whether the output head uses the memory of the input embeddings."""
    return model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


@torch.no_grad()
def check_head(language_model: LanguageModel) -> None:
    """Compare our head with the model's own logits on two tokens.

    A family that does something to its logits we do not know would otherwise train on a wrong loss without a word.

    Raises:
        SettingsError: they differ.
    """
    model = language_model.model
    ids = torch.tensor([[1, 2]], device=model.device)
    mask = torch.ones_like(ids)
    waves = torch.arange(2 * language_model.width, device=model.device).sin()  # the row of a padding id may be all zero
    embeddings = waves.view(1, 2, -1).to(model.dtype)
    if language_model.is_encoder_decoder:
        ours = language_model.head(language_model(embeddings, mask, ids))
        theirs = model(inputs_embeds=embeddings, attention_mask=mask, decoder_input_ids=ids).logits
    else:
        ours = language_model.head(language_model(embeddings, mask))
        theirs = model(inputs_embeds=embeddings, attention_mask=mask).logits
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2 * theirs.float().abs().max().item()):
        raise SettingsError(
            f"Language models of type '{model.config.model_type}' change their logits in a way that is not known "
            "here, so their loss would be wrong. Use another family, or add the rule to LanguageModel.head.",
            key="model.language_model",
        )
