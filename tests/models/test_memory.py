"""Recomputing layers changes memory and nothing else; float32 islands stay out of autocast."""

from contextlib import nullcontext

import pytest
import torch
from builders import QFORMER, make_batch, tiny_settings
from torch.autograd.graph import saved_tensors_hooks

from sightbridge.config.training import PartsSettings
from sightbridge.errors import SettingsError
from sightbridge.models.build import build_model
from sightbridge.models.memory import memory_settings
from sightbridge.models.parts import set_trainable
from sightbridge.models.vlm import trains

QFORMER_KIND = {"kind": "qformer", **QFORMER, "num_layers": 6, "dropout": 0.1}
DEPTH = {
    "opt": {"num_hidden_layers": 6, "dropout": 0.1},
    "llama": {"num_hidden_layers": 6},
    "t5": {"num_layers": 6, "dropout_rate": 0.1},
}
CASES = {  # name: (checkpointed part, trained parts, language model, connector)
    "tower trained": ("vision_tower", ("vision_tower", "connector"), "llama", {"kind": "mlp"}),
    "Q-Former trained": ("connector", ("connector",), "llama", QFORMER_KIND),
    "OPT frozen": ("language_model", ("connector",), "opt", {"kind": "mlp"}),
    "OPT trained": ("language_model", ("connector", "language_model"), "opt", {"kind": "mlp"}),
    "Llama frozen": ("language_model", ("connector",), "llama", {"kind": "mlp"}),
    "Llama trained": ("language_model", ("connector", "language_model"), "llama", {"kind": "mlp"}),
    "T5 frozen": ("language_model", ("connector",), "t5", {"kind": "mlp"}),
    "T5 trained": ("language_model", ("connector", "language_model"), "t5", {"kind": "mlp"}),
}


def settings_of(trained, **flags):
    parts = {name: {"train": "full" if name in trained else "frozen"} for name in PartsSettings.model_fields}
    for name, flag in flags.items():
        parts[name][flag] = True
    return PartsSettings.model_validate(parts)


def build(trained, language_model="llama", connector=None):
    settings = tiny_settings(language_model, connector=connector)
    deeper = {**settings.language_model.config, **DEPTH.get(language_model, {})}
    settings = settings.model_copy(
        update={"language_model": settings.language_model.model_copy(update={"config": deeper})}
    )
    model = build_model(settings)
    set_trainable(model, settings_of(trained))
    return model.train()


def loss_of(model, batch):
    torch.manual_seed(3)  # of dropout
    return model(batch)["lm"].sum


def gradients(model, batch, part="vision_tower"):
    """Loss, gradients of all that trains, and bytes that the part's forward pass keeps for the backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, inside = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if inside and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = [
        model.get_submodule(part).register_forward_pre_hook(lambda *_: inside.append(part)),
        model.get_submodule(part).register_forward_hook(lambda *_: inside.clear()),
    ]
    model.zero_grad(set_to_none=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model, batch)
    loss.backward()
    for hook in hooks:
        hook.remove()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), grads, sum(kept.values())


@pytest.mark.parametrize("case", CASES)
def test_recomputed_layers_give_the_same_gradients_for_less_memory(case):
    part, trained, language_model, connector = CASES[case]
    model = build(trained, language_model, connector)
    batch = make_batch(model, [(1, 1, 30), (2, 2, 24), (3, 1, 40), (4, 1, 36)])
    loss, grads, kept = gradients(model, batch, part)
    with memory_settings(model, settings_of(trained, **{part: "gradient_checkpointing"})):
        model.train()  # as the loop does after every evaluation
        new_loss, new_grads, new_kept = gradients(model, batch, part)
    assert torch.equal(loss, new_loss)
    assert grads.keys() == new_grads.keys() and len(grads) > 0
    widest = max((grads[name] - new_grads[name]).abs().max().item() for name in grads)
    print(f"{case}: {kept:,} bytes kept, {new_kept:,} when recomputed; widest difference of a gradient {widest:.1e}")
    assert widest <= 1e-6
    assert new_kept < 0.4 * kept


@pytest.mark.parametrize("language_model", ["opt", "t5"])
def test_a_frozen_model_that_is_recomputed_stays_without_dropout(language_model):
    model = build(("connector",), language_model)
    batch = make_batch(model, [(1, 1, 30)])
    with memory_settings(model, settings_of(("connector",), language_model="gradient_checkpointing")):
        torch.manual_seed(0)
        first = model(batch)["lm"].sum
        second = model(batch)["lm"].sum
    assert torch.equal(first, second)


def test_hidden_states_in_the_middle_of_a_recomputed_tower():
    settings = tiny_settings("llama", layers=[-2, 1])
    results = []
    for flag in (False, True):
        model = build_model(settings)
        set_trainable(model, settings_of(("vision_tower",)))
        parts = settings_of(("vision_tower",), **({"vision_tower": "gradient_checkpointing"} if flag else {}))
        with memory_settings(model.train(), parts):
            results.append(gradients(model, make_batch(model, [(1, 1, 8)])))
    (loss, grads, _), (new_loss, new_grads, _) = results
    assert torch.equal(loss, new_loss)
    assert all(torch.allclose(grads[name], new_grads[name], atol=1e-6) for name in grads)


def test_everything_is_as_before_afterwards():
    model = build(("connector",), "llama", QFORMER_KIND)
    before = [set(vars(module)) for module in model.modules()]
    parts = settings_of(("connector",), language_model="gradient_checkpointing", connector="fp32")
    with memory_settings(model, parts, "fp16"):
        assert [set(vars(module)) for module in model.modules()] != before
    assert [set(vars(module)) for module in model.modules()] == before


def test_a_part_without_layers_cannot_be_recomputed():
    model = build(("connector",))
    with (
        pytest.raises(SettingsError, match=r"connector \(MLPConnector\) has no transformer layers") as caught,
        memory_settings(model, settings_of(("connector",), connector="gradient_checkpointing")),
    ):
        pass
    assert caught.value.key == "training.parts.connector.gradient_checkpointing"


@pytest.mark.parametrize("part", ["vision_tower", "connector", "language_model"])
def test_a_part_in_fp32_takes_no_part_in_autocast(part):
    model = build(("connector",), "llama", {**QFORMER_KIND, "dropout": 0.0})
    batch = make_batch(model, [(1, 1, 12), (2, 1, 9)])
    seen = {}
    for name in PartsSettings.model_fields:
        for inner, module in model.get_submodule(name).named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(
                    lambda module, args, output, place=(name, inner): seen.update({place: output.dtype})
                )
    for flags in ({}, {part: "fp32"}):
        with torch.autocast("cpu", torch.bfloat16), memory_settings(model, settings_of(("connector",), **flags)):
            loss_of(model, batch).backward()
        of_parts = {name: {dtype for place, dtype in seen.items() if place[0] == name} for name, _ in seen}
        for name, types in of_parts.items():
            assert types == {torch.float32 if name in flags else torch.bfloat16}, (name, types)


def test_a_part_in_fp32_computes_what_it_does_without_autocast():
    model = build(("connector",), "llama", {**QFORMER_KIND, "dropout": 0.0})
    features = torch.randn(2, model.vision_tower.positions, model.vision_tower.channels)
    expected = model.connect(features)
    with memory_settings(model, settings_of(("connector",), connector="fp32")), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.connect(features), expected)
        assert torch.equal(model.connect(features.bfloat16()), model.connect(features.bfloat16().float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model.connect(features), expected)


def test_fp32_needs_weights_in_fp32():
    model = build(("connector",))
    model.language_model.bfloat16()
    with (
        pytest.raises(SettingsError, match="holds weights in bfloat16") as caught,
        memory_settings(model, settings_of(("connector",), language_model="fp32")),
    ):
        pass
    assert caught.value.key == "training.parts.language_model.fp32"


@pytest.mark.parametrize("trained", [(), ("language_model",)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_t5s_wide_layer_stays_in_fp32_under_fp16(trained, dtype):
    """As transformers loads it; autocast alone would multiply in float16, and overflow."""
    model = build(("connector", *trained), "t5")
    if dtype == torch.float16:
        model.language_model.to(dtype)
    batch = make_batch(model, [(1, 1, 12)])
    wide = [module for name, module in model.language_model.named_modules() if name.endswith(".wo")]
    assert len(wide) == 12
    with torch.no_grad():
        for layer in wide:
            layer.weight.mul_(1e6 if dtype == torch.float32 else 1e3)
    made = []
    for layer in wide:
        layer.register_forward_hook(lambda module, args, output: made.append(output))
    for precision in ("bf16", "fp16"):
        made.clear()
        with memory_settings(model, settings_of(trained or ("connector",)), precision):
            assert trains(model.language_model) == bool(trained)
            with torch.autocast("cpu", torch.float16), torch.no_grad() if precision == "bf16" else nullcontext():
                model(batch)
        types = {output.dtype for output in made}
        if precision == "fp16":
            assert types == {torch.float32} and all(output.isfinite().all() for output in made)
            assert max(output.abs().max().item() for output in made) > 65504 or dtype == torch.float16
        else:
            assert types == {torch.float16}
