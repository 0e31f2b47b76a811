"""Files of the LLaVA family made into model folders, which then give what was recorded of the originals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from llava_files import (
    GOLDEN,
    MODELS,
    TWO_HEADS,
    batch_at_markers,
    check_logits,
    found_in,
    model_of,
    original,
    recorded,
    write_folder,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

from sightbridge.checkpoints.convert import convert
from sightbridge.checkpoints.export import export_model
from sightbridge.checkpoints.folder import load_model
from sightbridge.checkpoints.formats.clip_flant5 import ALIASES
from sightbridge.checkpoints.formats.llava import lora_settings
from sightbridge.checkpoints.sources.weights import Weights, open_weights
from sightbridge.config.generation import GenerationSettings
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.generation.generate import generate
from small_models import TOKENIZERS

HEADS = "vision_tower.config.num_attention_heads=2"
VIP, FLANT5 = "vip_tiny", "clipt5_tiny"


def original_folder(name: str, folder: Path, container: str = "bin in two", without: str = "nothing") -> Path:
    """A recorded model in a folder, with its tokenizer."""
    weights, config = original(name)
    weights = {key: weight for key, weight in weights.items() if without not in key}
    shutil.copytree(TOKENIZERS / {VIP: "llama", FLANT5: "t5"}[name], folder)
    return write_folder(folder, weights, config, container)


def save_tower(name: str, folder: Path) -> Path:
    """The recorded tower as a Hugging Face folder."""
    weights, _ = original(name)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=2, image_size=56, patch_size=14
    )
    tower = CLIPVisionModel(config)
    tower.load_state_dict({k.rpartition("vision_model.")[2]: w for k, w in weights.items() if "vision_model." in k})
    tower.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("container", ["bin in two", "safetensors"])
@pytest.mark.parametrize(("name", "golden", "words"), [(VIP, "vip_v1_legacy", 900), (FLANT5, "t5_v1", 640)])
def test_parity_of_a_converted_model(name: str, golden: str, words: int, container: str, tmp_path: Path) -> None:
    folder = original_folder(name, tmp_path / "theirs", container)
    done = convert(folder, tmp_path / "ours", settings=[HEADS])
    model, processor = load_model(done.folder)
    check_logits(f"{name} converted from {container}", model, recorded("logits", golden), words)
    assert processor.template.name == {VIP: "llava_v1", FLANT5: "t5_v1"}[name]
    assert not model.language_model.config.tie_word_embeddings
    weights, _ = original(name)
    stored = load_file(done.folder / "language_model" / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], weights["lm_head.weight"])
    tower = load_file(done.folder / "vision_tower" / "model.safetensors")
    assert any("encoder.layers.11." in key for key in tower), "the tower goes whole, also what nobody reads"


@pytest.mark.parametrize(("name", "golden"), [(VIP, "vip"), (FLANT5, "t5")])
def test_parity_from_a_picture_to_its_answer(name: str, golden: str, tmp_path: Path) -> None:
    """Tokenizer, template, padding, pixels, answer: all as the file says, nothing set by hand."""
    model, processor = load_model(
        convert(original_folder(name, tmp_path / "theirs"), tmp_path / "ours", settings=[HEADS]).folder
    )
    values = recorded("generate", f"{golden}_generate")
    keys = {"vip": ("prompt_ids", "pixel_values", "out_ids"), "t5": ("ids", "pv", "out")}[golden]
    for picture, question in (("land", "What is the color of the dog?"), ("port", "Describe the image concisely.")):
        ids, pixels, answer = (values[f"{picture}_{key}"] for key in keys)
        batch = processor.prompt(GOLDEN / "pixels" / f"{picture}.png", question)
        asked = batch_at_markers(ids, torch.ones_like(ids), pixels)
        assert torch.equal(batch.image_slots, asked.image_slots)
        assert torch.equal(batch.input_ids[~batch.image_slots], asked.input_ids[~asked.image_slots])
        assert batch.pixel_values is not None
        assert (batch.pixel_values - pixels).abs().max() < 1e-6
        settings = GenerationSettings(max_new_tokens=answer.shape[1] - 1)
        own = generate(model, batch, settings, eos_ids=[], pad_id=0)
        print(f"parity {name}, {picture}.png to answer: {(own != answer[:, 1:]).sum()} of {own.numel()} ids differ")
        assert own.tolist() == answer[:, 1:].tolist()


def test_heads_that_no_file_tells_are_asked_for(tmp_path: Path) -> None:
    folder = original_folder(VIP, tmp_path / "theirs")
    with pytest.raises(SettingsError, match=r"Say it: vision_tower\.config\.num_attention_heads=NUMBER"):
        convert(folder, tmp_path / "ours")


@pytest.mark.parametrize("name", [VIP, FLANT5])
def test_round_trip_parity_from_their_layout_to_ours_and_back(name: str, tmp_path: Path) -> None:
    """Bit by bit, but for the second names of T5's table; and what is said of the model stays the same."""
    folder = original_folder(name, tmp_path / "theirs")
    done = convert(folder, tmp_path / "ours", settings=[HEADS])
    back = export_model(done.folder, tmp_path / "back", "llava").folder
    weights, _ = original(name)
    with open_weights(back) as written:
        assert weights.keys() - written.infos.keys() == set({VIP: (), FLANT5: ALIASES}[name])
        assert all(torch.equal(written.read(key), weights[key]) for key in written.infos)
    assert found_in(back).settings == found_in(folder).settings


def test_parity_with_a_referenced_tower(tmp_path: Path) -> None:
    folder = original_folder(VIP, tmp_path / "theirs", without="vision_model.")
    tower = save_tower(VIP, tmp_path / "tower")
    done = convert(folder, tmp_path / "ours", vision=str(tower))
    assert not (done.folder / "vision_tower").exists()
    check_logits(
        "ViP-LLaVA, its tower referenced", load_model(done.folder)[0], recorded("logits", "vip_v1_legacy"), 900
    )


@pytest.mark.parametrize("name", [VIP, FLANT5])
def test_parity_of_a_projector_between_its_neighbours(name: str, tmp_path: Path) -> None:
    """What a first stage keeps: the rest is named, and found in the original's own files."""
    folder = original_folder(name, tmp_path / "theirs")
    added = ["vision_tower.layers=[-2,-5,-8,-11,6]"] if name == VIP else ["vision_tower.layers=[-2]"]
    added += ["image.fit=pad", HEADS]
    added += ["prompt.template=llava_v1" if name == VIP else "prompt.template=t5_v1"]
    done = convert(
        MODELS / name / "mm_projector.bin",
        tmp_path / "ours",
        vision=str(folder),
        language_model=str(folder),
        settings=added,
    )
    golden, words = {VIP: ("vip_v1_legacy", 900), FLANT5: ("t5_v1", 640)}[name]
    check_logits(f"{name}'s projector", load_model(done.folder)[0], recorded("logits", golden), words)


def test_parity_of_a_first_stages_folder(tmp_path: Path) -> None:
    """Its config.json names the tower, its layers and how pictures are fitted; only the template is nowhere."""
    _, config = original(VIP)
    run, base = tmp_path / "run", original_folder(VIP, tmp_path / "base")
    run.mkdir()
    shutil.copy(MODELS / VIP / "mm_projector.bin", run)
    (run / "config.json").write_text(json.dumps(config | {"_name_or_path": "lmsys/vicuna-7b-v1.5"}))
    found = found_in(run)
    assert found.settings["vision_tower"]["source"] == "openai/clip-vit-large-patch14-336"
    assert found.settings["image"] == {"fit": "pad"} and "language_model" not in found.settings
    assert any("trained in front of 'lmsys/vicuna-7b-v1.5'" in note for note in found.notes)
    tower, added = save_tower(VIP, tmp_path / "tower"), ["prompt.template=llava_v1"]
    done = convert(run, tmp_path / "ours", vision=str(tower), language_model=str(base), settings=added)
    check_logits("a first stage's folder", load_model(done.folder)[0], recorded("logits", "vip_v1_legacy"), 900)


@pytest.mark.parametrize("model_type", ["llava", "llava_llama"])
def test_half_precision_and_the_older_model_type_stay_as_they_are(model_type: str, tmp_path: Path) -> None:
    """Released files are float16, and LLaVA-1.5's say ``llava``, which is another model's name in transformers."""
    folder = original_folder(VIP, tmp_path / "theirs")
    weights, config = original(VIP)
    half = {key: weight.half() for key, weight in weights.items()}
    write_folder(folder, half, config | {"model_type": model_type, "torch_dtype": "float16"}, "bin in two")
    done = convert(folder, tmp_path / "ours", settings=[HEADS])
    stored = load_file(done.folder / "language_model" / "model.safetensors")
    assert all(torch.equal(weight, half[name]) for name, weight in stored.items()) and len(stored) == 21
    model, _ = load_model(done.folder)
    assert model.language_model.model.dtype == torch.float16
    assert {weight.dtype for weight in model.connector.state_dict().values()} == {torch.float32}


# --- LoRA runs ---


def lora_run(folder: Path, base: Path, adapter: str) -> dict[str, Tensor]:
    """A run's folder as LLaVA's trainer leaves it, and the whole model's weights with the adapters merged into them."""
    weights, config = original(VIP)
    shutil.copytree(TOKENIZERS / "llama", base)
    kept = {key: config[key] for key in config if "mm_" not in key} | {"model_type": "llama"}
    language_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**kept))
    own = {key: w for key, w in weights.items() if "mm_projector" not in key and "vision_tower" not in key}
    language_model.load_state_dict(own)
    language_model.save_pretrained(base)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    asked = LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.05, task_type="CAUSAL_LM")
    adapted = get_peft_model(language_model, asked)
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(str(folder), safe_serialization=adapter == "safetensors")
    projector = {f"base_model.model.{key}": w for key, w in weights.items() if "mm_projector" in key}
    torch.save(projector, folder / "non_lora_trainables.bin")
    (folder / "config.json").write_text(json.dumps(config))
    merged = adapted.merge_and_unload().state_dict()
    return {key: merged.get(key, weight) for key, weight in weights.items()}


@pytest.mark.parametrize("adapter", ["bin", "safetensors"])
def test_parity_of_a_lora_run(adapter: str, tmp_path: Path) -> None:
    run, base = tmp_path / "run", tmp_path / "base"
    merged = lora_run(run, base, adapter)
    found = found_in(run)
    assert found.format == "llava-lora" and found.settings["language_model"]["source"] == str(base)
    lora = found.settings["lora"]
    assert (lora["r"], lora["alpha"], lora["dropout"], len(lora["targets"])) == (4, 8, 0.05, 7)
    tower = save_tower(VIP, tmp_path / "tower")
    done = convert(run, tmp_path / "ours", vision=str(tower))
    weights, config = original(VIP)
    expected, before = (
        model_of(found_in(Weights.of(state, tmp_path, config)), TWO_HEADS) for state in (merged, weights)
    )
    golden = recorded("logits", "vip_v1_legacy")
    batch = batch_at_markers(golden["input_ids"], golden["attention_mask"], golden["pixel_values"])
    real = batch.attention_mask.bool()
    with torch.no_grad():
        own, wanted, other = (m.logits(batch)[real] for m in (load_model(done.folder)[0], expected, before))
    difference, effect = ((own - logits).abs().max().item() / wanted.abs().max().item() for logits in (wanted, other))
    print(f"parity LoRA run, adapters in {adapter}: logits {difference:.2e} of their largest; adapters do {effect:.2e}")
    assert difference <= 1e-5
    assert effect > 0.1


def test_parity_of_a_lora_run_on_a_whole_vip_llava(tmp_path: Path) -> None:
    """ViP-LLaVA's own task runs begin with a released model: tower and language model come from its folder."""
    run, released = tmp_path / "run", original_folder(VIP, tmp_path / "released")
    merged = lora_run(run, tmp_path / "base", "safetensors")
    adapter = json.loads((run / "adapter_config.json").read_text()) | {"base_model_name_or_path": "mucai/vip-llava-7b"}
    (run / "adapter_config.json").write_text(json.dumps(adapter))
    done = convert(run, tmp_path / "ours", vision=str(released), language_model=str(released), settings=[HEADS])
    assert done.manifest.settings.lora is not None  # type: ignore[union-attr]
    golden = recorded("logits", "vip_v1_legacy")
    batch = batch_at_markers(golden["input_ids"], golden["attention_mask"], golden["pixel_values"])
    wanted = model_of(found_in(Weights.of(merged, tmp_path, original(VIP)[1])), TWO_HEADS)
    with torch.no_grad():
        own, expected = (
            model.logits(batch)[batch.attention_mask.bool()] for model in (load_model(done.folder)[0], wanted)
        )
    difference = (own - expected).abs().max().item() / expected.abs().max().item()
    print(f"parity LoRA run on a whole model: logits {difference:.2e} of their largest")
    assert difference <= 1e-5


@pytest.mark.parametrize(("change"), [{"use_rslora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 2}}])
def test_adapters_that_mean_something_else_are_refused(change: dict, tmp_path: Path) -> None:
    plain = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "q_proj",
        "bias": "none",
        "rank_pattern": {},
        "use_rslora": False,
    }
    assert lora_settings(plain, tmp_path) == {"targets": "q_proj", "r": 4, "alpha": 8, "dropout": 0.0}
    with pytest.raises(CheckpointError, match=f"says {next(iter(change))} .*only plain LoRA can be read"):
        lora_settings(plain | change, tmp_path)


def test_a_lora_run_without_its_parts_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    lora_run(run, tmp_path / "base", "safetensors")
    (run / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: 'r' is missing"):
        found_in(run)
    (run / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"there is no config\.json beside it"):
        found_in(run)
