"""The registry of connectors: every kind, its options, its messages."""

from __future__ import annotations

import pytest
import torch
import transformers
from builders import QFORMER, widest_difference
from torch import nn

from sightbridge.config.base import Settings
from sightbridge.config.model import ConnectorSettings
from sightbridge.errors import SettingsError
from sightbridge.models.connectors import CONNECTORS, build_connector, check_connector, register_connector

SMALL = {"linear": {}, "mlp": {"layers": 3, "input_norm": True}, "qformer": QFORMER}


def settings(kind: str, **options) -> ConnectorSettings:
    return ConnectorSettings.model_validate({"kind": kind, **options})


@pytest.mark.parametrize("kind", CONNECTORS)
def test_every_connector_maps_features_to_tokens(kind: str) -> None:
    connector = build_connector(settings(kind, **SMALL[kind]), in_channels=10, in_positions=5, out_width=12)
    tokens = connector(torch.randn(2, 5, 10))
    assert tokens.shape == (2, connector.tokens_per_image, 12)
    tokens.square().sum().backward()
    assert [name for name, parameter in connector.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", CONNECTORS)
def test_a_fresh_connector_can_speak_louder(kind: str) -> None:
    torch.manual_seed(0)
    plain = build_connector(settings(kind, **SMALL[kind]), 10, 5, 12)
    torch.manual_seed(0)
    loud = build_connector(settings(kind, output_scale=4, **SMALL[kind]), 10, 5, 12).state_dict()
    changed = {name for name, weight in plain.state_dict().items() if not torch.equal(weight, loud[name])}
    (last,) = changed
    assert last == {"mlp": "layers.4.weight"}.get(kind, "output.weight")
    assert torch.equal(loud[last], 4 * plain.state_dict()[last])


@pytest.mark.parametrize("kind", CONNECTORS)
def test_no_name_ends_like_an_attention_projection(kind: str) -> None:
    connector = build_connector(settings(kind, **SMALL[kind]), 10, 5, 12)
    assert [name for name, _ in connector.named_modules() if name.endswith("proj")] == []


@pytest.mark.parametrize("kind", CONNECTORS)
def test_a_picture_is_read_by_itself(kind: str) -> None:
    connector = build_connector(settings(kind, **SMALL[kind]), 10, 5, 12).eval()
    features = torch.randn(3, 5, 10)
    with torch.no_grad():
        together, alone = connector(features), torch.cat([connector(one) for one in features.split(1)])
    assert widest_difference(together, alone) <= 1e-6


def test_mlp_is_llavas() -> None:
    connector = build_connector(settings("mlp", layers=2, input_norm=True, input_norm_eps=0.5), 10, 5, 12)
    kinds = [type(module) for module in connector.layers]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear]
    assert connector.layers[1].approximate == "none"
    assert connector.input_norm.eps == 0.5
    assert isinstance(build_connector(settings("mlp"), 10, 5, 12).input_norm, nn.Identity)


def test_parity_qformer() -> None:
    connector = build_connector(settings("qformer", **QFORMER, input_norm_eps=1e-3), 10, 5, 12).eval()
    nn.init.normal_(connector.input_norm.weight)
    features = torch.randn(2, 5, 10)
    config = transformers.Blip2QFormerConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, encoder_hidden_size=10
    )
    theirs = transformers.Blip2QFormerModel(config).eval()
    theirs.load_state_dict(connector.qformer.state_dict())
    with torch.no_grad():
        normed = nn.functional.layer_norm(features, (10,), connector.input_norm.weight, connector.input_norm.bias, 1e-3)
        read = theirs(query_embeds=connector.queries.expand(2, -1, -1), encoder_hidden_states=normed)[0]
        expected = connector.output(read)
        difference = widest_difference(connector(features), expected)
    print(f"parity qformer: {difference:.2e}")
    assert difference <= 1e-6


def test_qformer_defaults_are_blip2s() -> None:
    options = check_connector(settings("qformer"))
    with torch.device("meta"):
        connector = build_connector(settings("qformer"), 1408, 257, 2048)
    assert connector.tokens_per_image == 32
    # 12 layers of 7,087,872, 6 cross-attentions of 3,346,944, LayerNorm, queries, ln_vision, t5_proj
    assert sum(parameter.numel() for parameter in connector.parameters()) == 106_739_968
    assert options.model_dump()["norm_eps"] == 1e-12
    assert connector.qformer.encoder.layer[0].attention.output.LayerNorm.eps == 1e-12
    assert connector.input_norm.eps == 1e-5
    assert [layer.has_cross_attention for layer in connector.qformer.encoder.layer] == [True, False] * 6


TEXT = {
    "text_input": True,
    "text_tokenizer": "a folder",
    "text_vocabulary": 50,
    "text_positions": 16,
    "max_text_length": 8,
}


def reading_connector() -> nn.Module:
    """A Q-Former that reads a question, with weights large enough for every path to matter."""
    connector = build_connector(settings("qformer", **QFORMER, **TEXT, initializer_range=0.3), 10, 5, 12).eval()
    nn.init.normal_(connector.input_norm.weight)
    return connector


def test_parity_qformer_that_reads_a_question() -> None:
    connector = reading_connector()
    config = transformers.InstructBlipQFormerConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        encoder_hidden_size=10,
        vocab_size=50,
        max_position_embeddings=16,
    )
    theirs = transformers.InstructBlipQFormerModel(config).eval()
    weights = {f"embeddings.{key}": value for key, value in connector.embeddings.state_dict().items()}
    for key, value in connector.qformer.state_dict().items():
        weights[key.replace("layernorm.", "embeddings.layernorm.") if key.startswith("layernorm") else key] = value
    theirs.load_state_dict(weights)
    features, ids = torch.randn(2, 5, 10), torch.randint(0, 50, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        read = theirs(
            input_ids=ids,
            attention_mask=torch.cat([torch.ones(2, 3, dtype=torch.long), mask], dim=1),
            query_embeds=connector.queries.expand(2, -1, -1),
            encoder_hidden_states=connector.input_norm(features),
        ).last_hidden_state[:, :3]
        difference = widest_difference(connector(features, ids, mask), connector.output(read))
    print(f"parity qformer with a question: {difference:.2e}")
    assert difference <= 1e-6


def test_a_question_changes_what_is_read_and_its_padding_does_not() -> None:
    connector = reading_connector()
    features, ids = torch.randn(2, 5, 10), torch.randint(1, 50, (2, 4))
    seen = torch.ones_like(ids)
    with torch.no_grad():
        alone = connector(features)
        asked = connector(features, ids, seen)
        padded = connector(features, nn.functional.pad(ids, (0, 3), value=7), nn.functional.pad(seen, (0, 3)))
        unasked = connector(features, ids, torch.zeros_like(ids))
    assert widest_difference(asked, alone) > 1e-2
    assert widest_difference(asked, padded) <= 1e-6
    assert widest_difference(unasked, alone) <= 1e-6


@pytest.mark.parametrize("asked", [True, False])
def test_every_weight_of_a_reading_qformer_is_in_the_graph(asked: bool) -> None:
    connector = reading_connector().train()
    text = (torch.ones(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.long)) if asked else ()
    connector(torch.randn(2, 5, 10), *text).square().sum().backward()
    assert [name for name, parameter in connector.named_parameters() if parameter.grad is None] == []


def test_queries_start_as_lavis_draws_them() -> None:
    connector = build_connector(settings("qformer", **{**QFORMER, "num_queries": 64, "hidden_size": 96}), 10, 5, 12)
    assert connector.queries.std().item() == pytest.approx(0.02, rel=0.05)
    assert connector.qformer.encoder.layer[0].intermediate_query.dense.weight.std().item() == pytest.approx(0.02, 0.05)


@pytest.mark.parametrize(
    ("given", "key", "message"),
    [
        ({"kind": "qfromer"}, "model.connector.kind", r"Unknown connector 'qfromer'; .*Did you mean 'qformer'\?"),
        ({"kind": "mlp", "layer": 2}, "model.connector.layer", r"has no option 'layer'; .*Did you mean 'layers'\?"),
        ({"kind": "linear", "layers": 2}, "model.connector.layers", "has no option 'layers'; it has no options"),
        ({"kind": "qformer", "text_input": True}, "model.connector", "text_input needs a 'text_tokenizer'"),
        ({"kind": "mlp", "layers": 0}, "model.connector.layers", "greater than or equal to 1"),
    ],
)
def test_wrong_settings_say_so(given: dict, key: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        check_connector(ConnectorSettings.model_validate(given))
    assert caught.value.key == key


def test_a_registered_connector_is_built_like_the_others(monkeypatch) -> None:
    class PoolOptions(Settings):
        bins: int = 2

    class Pool(nn.Module):
        def __init__(self, options: PoolOptions, in_channels: int, in_positions: int, out_width: int) -> None:
            super().__init__()
            self.tokens_per_image = options.bins
            self.output = nn.Linear(in_channels, out_width)

        def forward(self, features):
            pooled = nn.functional.adaptive_avg_pool1d(features.transpose(1, 2), self.tokens_per_image)
            return self.output(pooled.transpose(1, 2))

    monkeypatch.setattr("sightbridge.models.connectors.CONNECTORS", dict(CONNECTORS))
    register_connector("pool", PoolOptions, Pool)
    assert build_connector(settings("pool", bins=3), 10, 5, 12)(torch.randn(2, 5, 10)).shape == (2, 3, 12)
    with pytest.raises(SettingsError, match="'pool' exists already"):
        register_connector("pool", PoolOptions, Pool)
