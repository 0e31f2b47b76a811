"""A bridge that leads to another language model: the Q-Former is kept, its projection if the widths agree."""

import pytest
import torch

from sightbridge.checkpoints.folder import save_model
from sightbridge.checkpoints.init_from import init_from
from sightbridge.config.model import ModelSettings
from sightbridge.config.training import PartsSettings
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.build import build_model
from sightbridge.models.parts import set_trainable
from small_models import LLAMA, T5, TOWER, make_processor

QFORMER = {"kind": "qformer", "num_queries": 4, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
QFORMER |= {"intermediate_size": 32}
SAME_WIDTH = T5 | {"feed_forward_proj": "gated-gelu"}
WIDER = LLAMA | {"hidden_size": 48}


def make(language_model, seed, connector=None):
    settings = ModelSettings.model_validate(
        {
            "vision_tower": {"config": TOWER},
            "connector": QFORMER | (connector or {}),
            "language_model": {"config": language_model},
            "prompt": {"template": "vicuna_v1"},
            "image": {"size": 28},
        }
    )
    return build_model(settings, seed=seed), settings


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    model, settings = make(LLAMA, seed=0)
    folder = tmp_path_factory.mktemp("bridge") / "m"
    save_model(model, make_processor(image=settings.image), settings, folder, trained_parts=["connector"])
    return model, folder


def same(model, other):
    """Names of the connector's outermost modules whose weights are the same."""
    pairs = zip(model.connector.named_parameters(), other.connector.parameters(), strict=True)
    equal = {}
    for (name, ours), theirs in pairs:
        outer = name.split(".")[0]
        equal[outer] = equal.get(outer, True) and ours.shape == theirs.shape and torch.equal(ours, theirs)
    return {name for name, value in equal.items() if value}


def test_between_language_models_of_one_width_the_projection_is_kept(bridge):
    model, _ = make(SAME_WIDTH, seed=1)
    report = init_from(model, bridge[1], ["vision_tower", "connector"])
    assert {"output", "qformer", "queries"} <= same(model, bridge[0])
    assert any(line.startswith("connector: ") and line.endswith("its projection too") for line in report.taken)
    assert "language_model: not asked for (training.init_parts)" in report.left


@pytest.mark.parametrize(("language_model", "asked"), [(WIDER, False), (SAME_WIDTH, True)])
def test_to_another_width_or_if_asked_it_begins_anew(bridge, language_model, asked):
    model, _ = make(language_model, seed=1)
    before = model.connector.output.weight.clone()
    report = init_from(model, bridge[1], ["connector"], asked)
    assert {"qformer", "queries"} <= same(model, bridge[0]) and torch.equal(model.connector.output.weight, before)
    reason = "fresh_projection asks for it" if asked else "language model of width 32, the one here has 48"
    assert any("its projection, which begins with random weights" in line and reason in line for line in report.left)
    own = sum(p.numel() for n, p in model.connector.named_parameters() if not n.startswith("output."))
    assert f"connector: {own:,} weights" in report.taken


def test_a_random_projection_must_learn(bridge):
    model, _ = make(WIDER, seed=1)
    set_trainable(model, PartsSettings.model_validate({"connector": {"train": "frozen"}}))
    with pytest.raises(SettingsError, match=r"begins with random weights .* and would stay so"):
        init_from(model, bridge[1], ["connector"])
    set_trainable(model, PartsSettings.model_validate({"connector": {"only": ["output"]}}))
    init_from(model, bridge[1], ["connector"])


@pytest.mark.parametrize("connector", [{"num_queries": 3}, {"num_layers": 1}, {"intermediate_size": 24}])
def test_anything_else_that_differs_is_refused(bridge, connector):
    model, _ = make(WIDER, seed=1, connector=connector)
    with pytest.raises(CheckpointError, match="the connector there is not built as the one here"):
        init_from(model, bridge[1], ["connector"])


def test_another_language_model_is_not_taken_for_the_own_one(bridge):
    model, _ = make(WIDER, seed=1)
    with pytest.raises(CheckpointError, match="the language model there is not built as the one here"):
        init_from(model, bridge[1])
