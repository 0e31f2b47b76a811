"""The Q-Former's passes against transformers' own forward with the same weights."""

from __future__ import annotations

import pytest
import torch
from builders import widest_difference
from qformer_models import captions, tiny_pretraining
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from sightbridge.models.connectors.qformer import QFormerOptions, qformer_config
from sightbridge.models.qformer import QFormerModel, causal_mask, key_mask

TEXT = captions(4, length=7)
FEATURES = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(1))


def pair(every: int = 2, queries: int = 3):
    """The same weights in both, an embedding of text, and queries."""
    tiny = {"hidden_size": 32, "num_layers": 5, "num_heads": 4, "intermediate_size": 48}
    options = QFormerOptions(**tiny, num_queries=queries, cross_attention_every=every, text_vocabulary=41)
    config = qformer_config(options, in_channels=24)
    config.use_qformer_text_input = True
    theirs, ours = Blip2QFormerModel(config).eval(), QFormerModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
    ours.load_state_dict(theirs.state_dict())  # strict: the names are the same
    embeddings = Blip2TextEmbeddings(config)
    return theirs, ours, embeddings, torch.randn(1, queries, 32).expand(4, -1, -1)


def unilm_mask(text_mask, queries):
    """Queries see queries, text sees queries and earlier text: LAVIS' mask for one joint pass."""
    rows = key_mask(text_mask, queries).expand(-1, 1, queries, -1).clone()
    rows[..., queries:] = False
    return torch.cat([rows, causal_mask(text_mask, queries)], dim=2)


@pytest.mark.parametrize(("every", "queries"), [(1, 1), (2, 3), (3, 7)])
@torch.no_grad()
def test_parity_every_pass_with_transformers(every, queries):
    theirs, ours, embeddings, q = pair(every, queries)
    ids, mask = TEXT.text_ids, TEXT.text_mask
    words, real, look = embeddings(ids), TEXT.text_mask.bool(), ours.look(FEATURES)
    gaps = {}

    alone, earlier = ours(q, queries, picture=look)
    expected = theirs(query_embeds=q, encoder_hidden_states=FEATURES).last_hidden_state
    gaps["query-only"] = widest_difference(alone, expected)

    text, _ = ours(words, 0, key_mask(mask))
    expected = theirs(query_embeds=words, query_length=0, attention_mask=mask).last_hidden_state
    gaps["text-only"] = widest_difference(text[real], expected[real])
    assert torch.allclose(ours(words, 0, key_mask(mask), wanted=1)[0], text[:, :1], atol=1e-6)

    def joint(attention_mask):
        given = {"query_embeds": torch.cat([q, words], 1), "query_length": queries, "attention_mask": attention_mask}
        return theirs(**given, encoder_hidden_states=FEATURES).last_hidden_state

    together, _ = ours(torch.cat([q, words], 1), queries, key_mask(mask, queries), picture=look)
    expected = joint(torch.cat([torch.ones(4, queries, dtype=torch.long), mask], dim=1))
    gaps["multimodal"] = max(
        widest_difference(together[:, :queries], expected[:, :queries]),
        widest_difference(together[:, queries:][real], expected[:, queries:][real]),
    )

    caused, _ = ours(words, 0, causal_mask(mask, queries), earlier=earlier)
    expected = joint(unilm_mask(mask, queries))[:, queries:]
    gaps["causal"] = widest_difference(caused[real], expected[real])

    print(f"parity transformers' Q-Former, cross-attention every {every}:", {k: f"{v:.1e}" for k, v in gaps.items()})
    assert max(gaps.values()) <= 1e-6 * max(1.0, expected.abs().max().item())


@torch.no_grad()
def test_parity_retrieval_model():
    model, batch = tiny_pretraining(), captions(4)
    vision = model.vision_tower.model.config
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=model.qformer.qformer.config.to_dict(),
        num_query_tokens=6,
        image_text_hidden_size=16,
    )
    theirs = Blip2ForImageTextRetrieval(config).eval()
    weights = {f"vision_model.{key}": value for key, value in model.vision_tower.model.state_dict().items()}
    for key, value in model.qformer.state_dict().items():
        name = key.replace("input_norm.", "vision_model.post_layernorm.")
        weights["query_tokens" if key == "queries" else name] = value
    report = theirs.load_state_dict(weights, strict=False)
    assert report.missing_keys == []
    assert {key.split(".")[0] for key in report.unexpected_keys} == {"language_head", "temperature"}
    theirs.vision_model.post_layernorm.eps = model.qformer.input_norm.eps
    given = {"pixel_values": batch.pixel_values, "input_ids": batch.text_ids, "attention_mask": batch.text_mask}
    qformer, features = model.qformer, model.encode_images(batch)
    matched = qformer.match_logits(qformer.look(features), batch.text_ids, batch.text_mask)
    expected = theirs(**given, use_image_text_matching_head=True).logits_per_image
    gap = widest_difference(matched, expected)
    print(f"parity Blip2ForImageTextRetrieval: matching logits {gap:.1e}")
    assert gap <= 1e-6


def test_epsilons_and_activation_are_written_out():
    model = tiny_pretraining().qformer
    norms = {module.eps for module in model.qformer.modules() if isinstance(module, torch.nn.LayerNorm)}
    assert norms == {1e-12}
    assert model.language_head.transform.LayerNorm.eps == 1e-12
    assert model.input_norm.eps == 1e-5
    activation = model.qformer.encoder.layer[0].intermediate.intermediate_act_fn
    steps = torch.linspace(-3, 3, 50)
    assert torch.equal(activation(steps), torch.nn.functional.gelu(steps))  # the exact one, not tanh's
