"""A language model in 8 and 4 bits: the layers that transformers would quantise, loaded, trained beside, refused."""

import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

import sightbridge
from sightbridge.checkpoints.describe import describe
from sightbridge.checkpoints.folder import load_model, save_model
from sightbridge.checkpoints.quantized import quantize_language_model
from sightbridge.checkpoints.weights import fingerprint
from sightbridge.config.model import LanguageModelSettings, ModelSettings
from sightbridge.config.training import PartsSettings
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models import quantize as quantize_module
from sightbridge.models.build import build_model
from sightbridge.models.language_model import build_with_own_head
from sightbridge.models.lora import adapter_parameters
from sightbridge.models.parts import set_trainable
from small_models import LLAMA, T5, TOWER, make_processor, record

bitsandbytes = pytest.importorskip("bitsandbytes", reason="8 and 4 bits need bitsandbytes")
try:
    quantize_module.check_quantization("8bit", "cpu")
    quantize_module.check_quantization("nf4", "cpu")
except SettingsError as error:
    pytest.skip(f"{error}", allow_module_level=True)

PARENTS = {
    "llama": LLAMA | {"hidden_size": 64, "intermediate_size": 128},
    "mt5": T5 | {"model_type": "mt5", "d_model": 64, "feed_forward_proj": "gated-gelu"},
    "gpt2": {"model_type": "gpt2", "vocab_size": 900, "n_embd": 64, "n_layer": 2, "n_head": 2},
}
KINDS = ("8bit", "nf4")


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    root = tmp_path_factory.mktemp("parents")
    torch.manual_seed(1)
    for name, options in PARENTS.items():
        options = dict(options)
        config = AutoConfig.for_model(options.pop("model_type"), **options)
        if config.is_encoder_decoder:
            model = build_with_own_head(AutoModelForSeq2SeqLM, config)
            model.config.tie_word_embeddings = False
        else:
            model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(root / name)
    return root


def make(parents, name="llama", **changes):
    encoder_decoder = name == "mt5"
    settings = ModelSettings.model_validate(
        {
            "vision_tower": {"config": TOWER, "class_token": "drop"},
            "connector": {"kind": "linear"},
            "language_model": {"source": str(parents / name), **changes.pop("language_model", {})},
            "prompt": {"template": "t5_v1" if encoder_decoder else "vicuna_v1"},
            "image": {"size": 28},
            **changes,
        }
    )
    tokenizer = "t5" if encoder_decoder else "llama"
    processor = make_processor(settings.prompt.template, tokenizer, settings.image, encoder_decoder)
    return build_model(settings), settings, processor


def batch_of(processor):
    return processor([record("a", "<image>\nWhat?", "A bus.", images=1), record("b", "Red?", "Yes, it is.")])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PARENTS)
def test_parity_of_quantised_layers_with_transformers(parents, name, kind):
    model, _, _ = make(parents, name)
    encoder_decoder = name == "mt5"
    options = {"load_in_8bit": True}
    if kind == "nf4":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": torch.float32,
            "bnb_4bit_use_double_quant": encoder_decoder,
        }
    auto_class = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    theirs = auto_class.from_pretrained(
        parents / name,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(**options),
        device_map={"": "cpu"},
    ).eval()
    expected = {n for n, m in theirs.named_modules() if type(m).__name__ in ("Linear8bitLt", "Linear4bit")}
    ids = torch.arange(3, 11).view(1, -1)
    extra = {"decoder_input_ids": ids} if encoder_decoder else {}
    with torch.no_grad():
        full = model.language_model.model(ids, **extra).logits
        assert set(quantize_language_model(model.language_model, kind)) == expected
        ours = model.language_model.model(ids, **extra).logits
        difference = (ours - theirs(ids, **extra).logits).abs().max().item()
    print(f"{name} in {kind}: maximum difference to transformers {difference:.1e}")
    own, other = model.language_model.model.state_dict(), theirs.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    assert difference <= 1e-6
    assert 1e-4 < (ours - full).abs().max().item() < 0.5 * full.abs().max().item()
    model.language_model.assert_heads_untied()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "mt5"])
def test_adapters_and_connector_train_beside_a_quantised_model(parents, tmp_path, name, kind):
    lora = {"preset": "lora", "r": 2, "dropout": 0.0}
    model, settings, processor = make(parents, name, lora=lora, language_model={"quantize": kind})
    set_trainable(model, PartsSettings.model_validate({"language_model": {"train": "lora"}}))
    original = fingerprint(model.language_model)
    quantize_language_model(model.language_model, kind)
    assert fingerprint(model.language_model) == original
    batch, trained = batch_of(processor), [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    held = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(trained, lr=0.05)
    losses = []
    for _ in range(8):
        loss = model.train()(batch)["lm"]
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        optimizer.step()
        losses.append(loss.sum.item())
    assert losses[-1] < 0.99 * losses[0]
    assert all(torch.equal(parameter, held[n]) for n, parameter in model.named_parameters() if n in held)
    assert all(p.abs().max() > 0 for n, p in adapter_parameters(model).items() if "lora_B" in n)

    save_model(model.eval(), processor, settings, tmp_path / "m", trained_parts=["connector", "language_model"])
    description = next(part for part in describe(tmp_path / "m").parts if part.name == "language_model")
    assert description.parameters == sum(p.numel() for p in make(parents, name)[0].language_model.parameters())
    assert description.dtype == "float32" and not description.stored
    with torch.no_grad():
        expected = model.logits(batch)
        as_trained, _ = load_model(tmp_path / "m")
        assert torch.equal(as_trained.logits(batch), expected)
        in_full, _ = load_model(tmp_path / "m", quantize="none")
        assert not hasattr(in_full.language_model, "unquantized")
        assert 0 < (in_full.logits(batch) - expected).abs().max() < 0.3 * expected.abs().max()


def test_any_folder_can_be_loaded_in_fewer_bits(parents, tmp_path):
    model, settings, processor = make(parents)
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["connector"], self_contained=True)
    loaded, loaded_processor = sightbridge.load(tmp_path / "m", quantize="nf4")
    kinds = {type(module).__name__ for module in loaded.language_model.modules()}
    assert "Linear4bit" in kinds and type(loaded.language_model.model.lm_head) is torch.nn.Linear
    assert all(type(m).__name__ != "Linear4bit" for m in loaded.vision_tower.modules())
    answer = sightbridge.ask(loaded, loaded_processor, [], "Red?")
    assert isinstance(answer, str)
    with pytest.raises(CheckpointError, match="a quantised language model cannot be stored"):
        save_model(loaded, processor, settings, tmp_path / "n", trained_parts=["connector"], self_contained=True)


def test_what_a_quantised_model_cannot_have():
    with pytest.raises(ValueError, match="'quantize' needs a 'source'"):
        LanguageModelSettings.model_validate({"config": LLAMA, "quantize": "nf4"})


def test_weights_of_init_from_cannot_be_quantised_away(parents):
    model, _, _ = make(parents)
    model.language_model.filled_by_init_from = True
    with pytest.raises(SettingsError, match="init_from has given the language model weights of its own"):
        quantize_language_model(model.language_model, "nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_working_backend_the_reason_is_told(parents, monkeypatch, kind):
    model, _, _ = make(parents)
    with monkeypatch.context() as patch:
        patch.setattr(quantize_module, "find_spec", lambda name: None)
        with pytest.raises(SettingsError, match=rf"{kind} needs the bitsandbytes package: pip install"):
            quantize_language_model(model.language_model, kind)

    def broken(*arguments, **options):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(quantize_module, "quantized_layer", broken)
    with pytest.raises(SettingsError, match=rf"cannot compute in {kind} on 'cpu' here \(no kernel image\)"):
        quantize_language_model(model.language_model, kind)
    assert "bitsandbytes" in sys.modules
