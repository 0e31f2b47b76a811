"""Adapters: every family gets as many as its preset promises, nothing else changes, and wrong targets are named."""

import re
from pathlib import Path

import pytest
import torch
from builders import LANGUAGE_MODELS, SIZE, VOCABULARY, make_batch, tiny_settings, widest_difference
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.pytorch_utils import Conv1D

from sightbridge.config.model import ImageSettings, LoraSettings, ModelSettings
from sightbridge.config.training import OptimSettings, PartsSettings
from sightbridge.errors import SettingsError
from sightbridge.models.build import build_model
from sightbridge.models.language_model import shares_head
from sightbridge.models.lora import adapted_layers, adapter_parameters, find_targets
from sightbridge.models.lora_families import FAMILIES
from sightbridge.models.outline import outline
from sightbridge.models.parts import set_trainable
from sightbridge.training.optim import parameter_groups

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
LLAMA_LIKE = LANGUAGE_MODELS["llama"]
TINY = LANGUAGE_MODELS | {
    **dict.fromkeys(["qwen2", "qwen3", "olmo2", "smollm3", "stablelm", "starcoder2", "phi"], LLAMA_LIKE),
    "gemma3_text": LANGUAGE_MODELS["gemma2"] | {"final_logit_softcapping": None},
    "mbart": LANGUAGE_MODELS["bart"],
    "falcon": {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt_neox": {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "gpt_bigcode": LANGUAGE_MODELS["gpt2"],
    "mpt": {"vocab_size": VOCABULARY, "d_model": 24, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
}
"""A tiny model of every family in the table."""
ALL_LAYERS = {"t5": 2 * 4 * 3 + 4 * 3, "bart": 2 * 4 * 3 + 4 * 2, "llama": 14, "phi3": 8, "opt": 12, "bloom": 8}


def on_meta(model_type, **options):
    config = AutoConfig.for_model(model_type, **options)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return auto_class.from_config(config)


def with_lora(language_model="llama", **lora):
    settings = tiny_settings(language_model)
    image = ImageSettings(size=SIZE)
    return settings.model_copy(update={"lora": LoraSettings.model_validate(lora), "image": image})


def test_the_table_and_its_tiny_models_are_of_the_same_families():
    assert set(FAMILIES) == set(TINY)


def test_the_page_lists_every_family_with_its_layers():
    rows = [line.split("|")[1:4] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    told = {name.strip(): row for row in rows for name in row[0].split(",")}
    for model_type, family in FAMILIES.items():
        few, more = (set(re.findall(r"\w+", cell)) for cell in told[model_type][1:])
        assert few == family.adapted("lora") and few | more >= family.adapted("lora_all"), model_type


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_presets_promise_what_a_model_of_every_family_has(model_type):
    model = on_meta(model_type, **TINY[model_type])
    blocks = {name for name, _ in model.named_modules() if name.rpartition(".")[2].isdigit()}
    few = find_targets(model, LoraSettings(preset="lora"))
    every = find_targets(model, LoraSettings(preset="lora_all"))
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and any(name.startswith(f"{block}.") for block in blocks)
    ]
    assert set(few) < set(every), "query and value are among all"
    assert every == linear, "all linear layers of the blocks, and nothing outside of them"
    assert len(every) == ALL_LAYERS.get(model_type, len(every))


@pytest.mark.parametrize(
    ("preset", "model_type", "options", "expected"),
    [
        # google/mt5-xl and mT0-XL; bigscience/bloomz-7b1
        ("lora_all", "mt5", {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32}, 17.69e6),
        ("lora", "mt5", {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32}, 4.72e6),
        ("lora_all", "bloom", {"hidden_size": 4096, "n_layer": 30, "n_head": 32}, 15.73e6),
    ],
)
def test_parity_sizes_of_mblip(preset, model_type, options, expected):
    model = (
        on_meta(model_type, feed_forward_proj="gated-gelu", **options)
        if model_type == "mt5"
        else on_meta(model_type, **options)
    )
    modules = dict(model.named_modules())
    size = sum(8 * sum(modules[name].weight.shape) for name in find_targets(model, LoraSettings(preset=preset)))
    print(f"{model_type} {preset}: {size:,} weights, mBLIP's {expected:,.0f}")
    assert size == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("language_model", ["llama", "gpt2", "bloom", "mt5", "t5", "bart"])
def test_fresh_adapters_change_nothing_and_trained_ones_do(language_model):
    plain = build_model(tiny_settings(language_model), seed=3)
    model = build_model(with_lora(language_model, preset="lora_all"), seed=3)
    batch = make_batch(plain, [(1, 1, 6), (2, 0, 9)])
    with torch.no_grad():
        assert torch.equal(model.logits(batch), plain.logits(batch))
        for name, parameter in adapter_parameters(model).items():
            assert parameter.dtype == torch.float32
            if "lora_B" in name:
                parameter.normal_()
        assert widest_difference(model.logits(batch), plain.logits(batch)) > 1e-3
    assert model.language_model.has_own_head != shares_head(model.language_model.model)


def test_adapters_stay_in_float32_beside_a_model_in_half():
    settings = with_lora(preset="lora")
    half = settings.language_model.model_copy(update={"dtype": "bfloat16"})
    model = build_model(settings.model_copy(update={"language_model": half}))
    dtypes = {name: parameter.dtype for name, parameter in model.language_model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" not in name} == {torch.bfloat16}


def test_only_adapters_train_with_a_rate_of_their_own_and_dropout():
    model = build_model(with_lora(preset="lora", dropout=0.5))
    parts = PartsSettings.model_validate({"language_model": {"train": "lora", "lr": 0.5, "weight_decay": 0.1}})
    set_trainable(model, parts)
    model.train()
    trained = {name for name, parameter in model.language_model.named_parameters() if parameter.requires_grad}
    assert trained == set(adapter_parameters(model.language_model))
    training = {name.rpartition(".")[2] for name, m in model.language_model.named_modules() if m.training}
    assert "lora_dropout" in training and not training & {"", "base_layer", "mlp"}
    groups = {group["name"]: group for group in parameter_groups(model, parts, OptimSettings(weight_decay=0.3))}
    assert groups["language_model"]["peak_lr"] == 0.5 and groups["language_model"]["weight_decay"] == 0.1
    assert {id(p) for p in groups["language_model"]["params"]} == {id(p) for p in adapter_parameters(model).values()}
    assert "language_model/no_decay" not in groups, "an adapter has no bias"


def test_names_and_patterns_of_ones_own():
    names = adapted_layers(build_model(with_lora(targets=["k_proj", "layers.1.mlp.up_proj"])).language_model.model)
    assert names == ["model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.k_proj", "model.layers.1.mlp.up_proj"]
    pattern = r".*layers\.1\.self_attn\.(q|v)_proj"
    names = adapted_layers(build_model(with_lora(targets=pattern)).language_model.model)
    assert names == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_porj"], r"'q_porj' matches no layer of the llama .* q_proj \(2\).* Did you mean 'q_proj'\?"),
        (["q_proj", "k"], "'k' matches no layer"),
        (["lm_head"], r"match 'lm_head' \(Linear\).* not the head"),
        (["embed_tokens"], "embed_tokens.* not the head nor embeddings"),
        (["self_attn"], "only linear layers"),
        ("q_proj", "'q_proj' matches no layer"),
        ("(q_proj", "no regular expression"),
    ],
)
def test_wrong_targets_are_named_before_a_weight_is_made(targets, message):
    with pytest.raises(SettingsError, match=message) as caught:
        outline(with_lora(targets=targets))
    assert caught.value.key == "model.lora.targets"


def test_a_family_without_preset_and_a_model_with_other_layers():
    codegen = {"model_type": "codegen", "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "vocab_size": 30}
    settings = with_lora(preset="lora").model_dump() | {"language_model": {"config": codegen}}
    with pytest.raises(SettingsError, match=r"no preset 'lora' .*'codegen'.*qkv_proj \(2\)"):
        outline(ModelSettings.model_validate(settings))
    model = on_meta("llama", **LLAMA_LIKE)
    model.model.layers[1].self_attn.v_proj = torch.nn.Identity()
    with pytest.raises(
        SettingsError, match=r"promises 4 adapted layers in this llama .* but 3 were found: q_proj \(2\)"
    ):
        find_targets(model, LoraSettings(preset="lora"))


@pytest.mark.parametrize("lora", [{}, {"preset": "lora", "targets": ["q_proj"]}, {"targets": []}])
def test_preset_or_targets(lora):
    with pytest.raises(ValueError, match="exactly one of 'preset'"):
        LoraSettings.model_validate(lora)
