"""Adapters in a model folder: a PEFT folder that peft itself loads, and that comes back bit for bit."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from sightbridge.checkpoints.describe import describe
from sightbridge.checkpoints.folder import load_model, save_model
from sightbridge.checkpoints.init_from import init_from
from sightbridge.config.model import ModelSettings
from sightbridge.errors import CheckpointError
from sightbridge.models.build import build_model
from sightbridge.models.language_model import build_with_own_head, shares_head
from sightbridge.models.lora import adapter_parameters
from small_models import LLAMA, T5, TOWER, make_processor, record

FLAN_T5 = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
PARENTS = {"llama": LLAMA, "t5": FLAN_T5, "gpt2": {"model_type": "gpt2", "vocab_size": 900, "n_embd": 16, "n_head": 2}}
GPT2_SIZE = {"n_layer": 2}


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    root = tmp_path_factory.mktemp("parents")
    torch.manual_seed(1)
    for name, options in PARENTS.items():
        options = dict(options) | (GPT2_SIZE if name == "gpt2" else {})
        config = AutoConfig.for_model(options.pop("model_type"), **options)
        if config.is_encoder_decoder:
            model = build_with_own_head(AutoModelForSeq2SeqLM, config)
            model.config.tie_word_embeddings = False
        else:
            model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(root / name)
    return root


def make(parents, name="llama", lora=None, **language_model):
    """A model whose adapters, if any, do something; its settings and its processor."""
    settings = ModelSettings.model_validate(
        {
            "vision_tower": {"config": TOWER, "class_token": "drop"},
            "connector": {"kind": "linear"},
            "language_model": {"source": str(parents / name), **language_model},
            "prompt": {"template": "t5_v1" if name == "t5" else "vicuna_v1"},
            "image": {"size": 28},
            "lora": lora,
        }
    )
    model = build_model(settings)
    stir(model)
    encoder_decoder = name == "t5"
    tokenizer = "t5" if encoder_decoder else "llama"
    processor = make_processor(settings.prompt.template, tokenizer, settings.image, encoder_decoder)
    return model, settings, processor


def stir(model):
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.normal_(std=0.1)


def save(parents, folder, name="llama", lora=None, **language_model):
    lora = lora or {"preset": "lora_all", "r": 4}
    model, settings, processor = make(parents, name, lora, **language_model)
    save_model(model, processor, settings, folder, trained_parts=["connector", "language_model"])
    return model, processor


def logits(model, processor):
    batch = processor([record("a", "<image>\nWhat?", "A bus.", images=1), record("b", "Red?", "Yes, it is.")])
    with torch.no_grad():
        return model.logits(batch)


def hidden_of(language_model, encoder_decoder):
    ids = torch.arange(3, 11).view(1, -1)
    with torch.no_grad():
        return language_model(ids, decoder_input_ids=ids).logits if encoder_decoder else language_model(ids).logits


@pytest.mark.parametrize("name", PARENTS)
def test_a_folder_with_adapters_comes_back_bit_for_bit(parents, tmp_path, name):
    model, processor = save(parents, tmp_path / "m", name)
    assert {path.name for path in (tmp_path / "m").glob("*.safetensors")} == {
        "connector.safetensors",
        "vision_tower.safetensors",
    }, "the language model is only referenced"
    loaded, loaded_processor = load_model(tmp_path / "m")
    assert torch.equal(logits(loaded, loaded_processor), logits(model, processor))
    assert loaded.language_model.has_own_head != shares_head(loaded.language_model.model)


@pytest.mark.parametrize("name", PARENTS)
def test_parity_peft_loads_the_adapter_onto_the_base(parents, tmp_path, name):
    model, _ = save(parents, tmp_path / "m", name)
    auto_class = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    base = auto_class.from_pretrained(parents / name, dtype=torch.float32).eval()
    before = hidden_of(base, name == "t5")
    theirs = hidden_of(PeftModel.from_pretrained(base, str(tmp_path / "m" / "adapter")).eval(), name == "t5")
    difference = (hidden_of(model.language_model.model, name == "t5") - theirs).abs().max().item()
    print(f"{name}: maximum difference to peft's own model {difference:.1e}")
    assert difference == 0 and not torch.allclose(before, theirs, atol=1e-3)
    config = json.loads((tmp_path / "m" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(parents / name) and config["r"] == 4


def test_an_adapter_of_peft_starts_a_run(parents, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(parents / "llama", dtype=torch.float32)
    theirs = get_peft_model(base, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    stir(theirs)
    theirs.save_pretrained(tmp_path / "peft")
    model, _, _ = make(parents, lora={"preset": "lora", "r": 4})
    report = init_from(model, tmp_path / "peft")
    assert report.taken == ["adapters: 1,024 weights"]
    assert torch.equal(hidden_of(model.language_model.model, False), hidden_of(theirs.eval(), False))


def test_adapters_of_another_folder(parents, tmp_path):
    source, _ = save(parents, tmp_path / "m", lora={"preset": "lora"})
    same, _, _ = make(parents, lora={"preset": "lora"})
    assert "adapters: 2,048 weights" in init_from(same, tmp_path / "m").taken
    for name, parameter in adapter_parameters(source).items():
        assert torch.equal(adapter_parameters(same)[name], parameter)
    without, _, _ = make(parents)
    assert any("the model here has none (model.lora)" in line for line in init_from(without, tmp_path / "m").left)
    for lora, message in (
        ({"preset": "lora", "r": 2}, r"r 8 \(here 2\)"),
        ({"preset": "lora", "alpha": 32}, r"lora_alpha 16 \(here 32\)"),
        ({"preset": "lora_all"}, "20 missing weights"),
        ({"targets": ["q_proj"]}, "4 unexpected weights"),
    ):
        other, _, _ = make(parents, lora=lora)
        with pytest.raises(CheckpointError, match=f"not those of model.lora here: .*{message}"):
            init_from(other, tmp_path / "m")


def test_a_self_contained_folder_keeps_base_and_adapters_apart(parents, tmp_path):
    model, settings, processor = make(parents, lora={"preset": "lora_all"})
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["language_model"], self_contained=True)
    stored = load_file(tmp_path / "m" / "language_model.safetensors")
    original = load_file(parents / "llama" / "model.safetensors")
    assert {name.removeprefix("model.") for name in stored} == set(original)
    for name, weight in original.items():
        assert torch.equal(stored[f"model.{name}"], weight), "the adapted model's own weights stay what they were"
    loaded, loaded_processor = load_model(tmp_path / "m")
    assert torch.equal(logits(loaded, loaded_processor), logits(model, processor))


def test_what_init_from_filled_is_stored_though_it_is_frozen(parents, tmp_path):
    first, settings, processor = make(parents)
    with torch.no_grad():
        first.language_model.model.lm_head.weight.add_(1.0)
    save_model(first, processor, settings, tmp_path / "first", trained_parts=["language_model"])
    second, settings, processor = make(parents, lora={"preset": "lora"})
    init_from(second, tmp_path / "first")
    save_model(second, processor, settings, tmp_path / "second", trained_parts=["connector", "language_model"])
    loaded, _ = load_model(tmp_path / "second")
    assert torch.equal(logits(loaded, processor), logits(second, processor))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_damage_is_noticed(parents, tmp_path, file):
    save(parents, tmp_path / "m")
    path = tmp_path / "m" / "adapter" / file
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(CheckpointError, match=f"{file}: the file is damaged"):
        load_model(tmp_path / "m")
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{file}: the file is missing"):
        load_model(tmp_path / "m")


def test_a_peft_folder_of_another_kind_is_refused(parents, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    model, _, _ = make(parents, lora={"preset": "lora"})
    with pytest.raises(CheckpointError, match="of type 'PREFIX_TUNING'; only LORA"):
        init_from(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"cannot be read \(maximum recursion depth"):
        init_from(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    without, _, _ = make(parents)
    with pytest.raises(CheckpointError, match="there are none here to fill"):
        init_from(without, tmp_path)


def test_describe_counts_layers_and_weights(parents, tmp_path):
    model, _ = save(parents, tmp_path / "m")
    manifest = describe(tmp_path / "m").manifest
    assert manifest.adapter.layers == 14 and manifest.adapter.trained
    size = sum(parameter.numel() for parameter in adapter_parameters(model).values())
    assert manifest.adapter.parameters == size
    own = sum(np.prod(weight.shape) for weight in load_file(parents / "llama" / "model.safetensors").values())
    assert manifest.parts["language_model"].parameters == own and not manifest.parts["language_model"].trained
