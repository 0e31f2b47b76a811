"""A part can train in one of its submodules alone."""

from __future__ import annotations

import pytest
from builders import make_batch, tiny_model

from sightbridge.config.training import PartsSettings, PartTraining
from sightbridge.errors import SettingsError
from sightbridge.models.parts import set_trainable

QFORMER = {"kind": "qformer", "num_queries": 3, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.5}


def only(*names: str) -> PartsSettings:
    return PartsSettings.model_validate({"connector": {"train": "full", "only": names}})


def test_only_the_named_submodules_train_and_are_in_training_mode() -> None:
    model = tiny_model(connector=QFORMER | {"intermediate_size": 16})
    set_trainable(model, only("output"))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["connector.output.weight", "connector.output.bias"]
    model.train()
    training = {name for name, module in model.connector.named_modules() if module.training}
    assert training == {"output"}, "dropout in front of what trains would be noise"
    assert not any(module.training for module in model.eval().modules())
    batch = make_batch(model, [(1, 1, 6)])
    model.train()
    assert model(batch)["lm"].sum == model(batch)["lm"].sum
    model(batch)["lm"].sum.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(trained)
    set_trainable(model, PartsSettings())
    assert model.train().connector.get_submodule("qformer").training
    assert all(parameter.requires_grad for parameter in model.connector.parameters())


def test_inner_submodules_can_be_named() -> None:
    model = tiny_model(connector=QFORMER | {"intermediate_size": 16})
    set_trainable(model, only("input_norm", "qformer.encoder.layer.1"))
    trained = [name for name, parameter in model.connector.named_parameters() if parameter.requires_grad]
    assert len(trained) > 10 and all(name.startswith(("input_norm.", "qformer.encoder.layer.1.")) for name in trained)


@pytest.mark.parametrize(("name", "hint"), [("outputs", "output"), ("qformer.dropout", None), ("", None)])
def test_a_name_that_is_not_there_is_told(name: str, hint: str | None) -> None:
    model = tiny_model(connector=QFORMER | {"intermediate_size": 16})
    expected = rf"no submodule '{name}' with weights; it has input_norm, qformer, output and"
    with pytest.raises(SettingsError, match=expected) as caught:
        set_trainable(model, only(name))
    assert caught.value.key == "training.parts.connector.only"
    assert hint is None or str(caught.value).endswith(f" Did you mean '{hint}'?")


def test_only_of_a_frozen_part_is_a_contradiction() -> None:
    with pytest.raises(ValueError, match="'train' is frozen"):
        PartTraining(only=["output"])


def test_a_trained_part_stays_one_when_only_its_rate_is_given() -> None:
    assert PartsSettings.model_validate({"connector": {"lr": 1e-3}}).connector.train == "full"
    assert PartsSettings.model_validate({"vision_tower": {"lr": 1e-3}}).vision_tower.train == "frozen"
