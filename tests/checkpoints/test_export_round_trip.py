"""Ours to another layout and back: no bit of a weight changes, and the answers are the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Blip2VisionConfig, Blip2VisionModel

from export_models import EVA, KINDS, clip_folder, save, save_stage1
from sightbridge.checkpoints.convert import convert
from sightbridge.checkpoints.export import export_model
from sightbridge.checkpoints.folder import load_any_model
from sightbridge.checkpoints.manifest import read_manifest
from sightbridge.checkpoints.sources.model_folder import open_model_folder
from sightbridge.checkpoints.sources.weights import open_weights
from sightbridge.checkpoints.weights import fingerprint
from sightbridge.config.model import LanguageModelSettings
from sightbridge.errors import CheckpointError
from sightbridge.models.build import build_language_model
from small_models import TOKENIZERS, picture

HEADS = {
    "blip2-opt": ("connector.num_heads=2", "language_model.config.num_attention_heads=4"),
    "blip2-t5": ("connector.num_heads=2",),
    "llava": (),
    "vip": (),
    "clip-flant5": (),
}
"""What no shape tells, of models as narrow as these."""
TOWER_HEADS = "vision_tower.config.num_attention_heads=2"
PAIRS = [
    ("blip2-opt", "hf"),
    ("blip2-opt", "lavis"),
    ("blip2-opt", "paddle"),
    ("blip2-t5", "hf"),
    ("blip2-t5", "lavis"),
    ("blip2-t5", "paddle"),
    ("llava", "hf"),
    ("llava", "llava"),
    ("vip", "hf"),
    ("vip", "llava"),
    ("clip-flant5", "llava"),
]


def sources(kind: str, folder: Path) -> dict[str, Any]:
    """The same model with tower and language model in folders of their own, as everybody has them."""
    config = KINDS[kind]["vision_tower"]["config"]
    if config is EVA:
        torch.manual_seed(3)
        options = {key: value for key, value in EVA.items() if key != "model_type"}
        tower: Any = Blip2VisionModel(Blip2VisionConfig(**options))
        for block in tower.encoder.layers:  # EVA has no bias of keys, and LAVIS no place for one
            torch.nn.init.normal_(block.self_attn.qkv.bias[:16].data)
        tower.save_pretrained(folder / "tower")
    else:
        clip_folder(folder / "tower", config)
    model = build_language_model(
        LanguageModelSettings(config=KINDS[kind]["language_model"]["config"]),
    )
    model.model.save_pretrained(folder / "lm")
    return {
        "vision_tower": {"source": str(folder / "tower"), "config": None},
        "language_model": {"source": str(folder / "lm"), "config": None},
    }


@pytest.mark.parametrize(("kind", "to"), PAIRS)
def test_round_trip_parity(kind: str, to: str, tmp_path: Path) -> None:
    changes = sources(kind, tmp_path)
    model, processor = save(kind, tmp_path / "m", **changes)
    done = export_model(tmp_path / "m", tmp_path / "there", to)
    source = done.folder / "checkpoint.pth" if to == "lavis" else done.folder
    settings = [f"prompt.template={processor.template.name}", *HEADS[kind]]
    named: dict[str, Any] = {}
    if to == "lavis":
        named = {"vision": str(tmp_path / "tower"), "language_model": str(tmp_path / "lm")}
        settings = [line for line in settings if not line.startswith("language_model.config")] + ["image.size=28"]
    elif to != "hf":
        settings.append(TOWER_HEADS)
    if (kind, to) == ("blip2-t5", "paddle"):  # PaddleMIX' files do not say which GELU it is
        assert any("`gelu` here and `gelu_new` in PaddleNLP" in note for note in done.written.notes)
        settings.append("language_model.config.dense_act_fn=gelu")
    back = convert(source, tmp_path / "back", settings=settings, tokenizer=str(tmp_path / "m" / "tokenizer"), **named)
    before, after = open_model_folder(tmp_path / "m"), open_model_folder(back.folder)
    for name in before.infos:
        if name.startswith("vision_tower.post_layernorm") and "blip2" in kind:
            continue  # Blip2's one norm is the bridge's
        mine, theirs = before.read(name), after.read(name)
        assert torch.equal(mine, theirs[: len(mine)] if mine.ndim else theirs), name
    again: Any = load_any_model(back.folder)[0]
    batch = processor.prompt(picture(1), "What is in the picture?")
    if processor.encoder_decoder:
        batch = batch.__class__(**{**batch.__dict__, "labels": torch.tensor([[7, 11, 5, 1]])})
    with torch.no_grad():
        ours, returned = model.logits(batch), again.logits(batch)
    difference = (returned[..., : ours.shape[-1]] - ours).abs().max().item()
    print(f"{kind} to {to} and back: logits differ by at most {difference:.1e}")
    assert difference < (5e-5 if (kind, to) in (("blip2-opt", "hf"), ("blip2-t5", "hf")) else 1e-6)


@pytest.mark.parametrize("to", ["hf", "lavis", "paddle"])
def test_round_trip_parity_of_the_first_stage(to: str, tmp_path: Path) -> None:
    """All of it comes back, also what transformers has no place for."""
    model, processor = save_stage1(tmp_path / "m")
    done = export_model(tmp_path / "m", tmp_path / "there", to)
    named: dict[str, Any] = {}
    settings = ["qformer.num_heads=2", "image.size=28", "text.max_length=12"]
    if to == "lavis":
        eva = Blip2VisionModel(Blip2VisionConfig(**{k: v for k, v in EVA.items() if k != "model_type"}))
        eva.load_state_dict(
            {
                name.removeprefix("vision_tower."): tensor
                for name, tensor in read_all(tmp_path / "m").items()
                if name.startswith("vision_tower.")
            },
            strict=False,
        )
        eva.save_pretrained(tmp_path / "tower")
        named["vision"] = str(tmp_path / "tower")
    elif to == "paddle":
        settings.append(TOWER_HEADS)
    source = done.folder / "checkpoint.pth" if to == "lavis" else done.folder
    back = convert(source, tmp_path / "back", settings=settings, tokenizer=str(TOKENIZERS / "llama"), **named)
    mine, theirs = read_all(tmp_path / "m"), read_all(back.folder)
    assert {name for name in mine if name.startswith("bridge.")} == {n for n in theirs if n.startswith("bridge.")}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    again: Any = load_any_model(back.folder)[0]
    ids, mask = processor.texts(["a red cup", "what is in it"])
    pixels = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        ours, returned = (
            m.qformer.match_logits(m.qformer.look(m.vision_tower(pixels)), ids, mask) for m in (model, again)
        )
    print(f"first stage to {to} and back: {(ours - returned).abs().max().item():.1e}")
    assert (ours - returned).abs().max() < 1e-5


def read_all(folder: Path) -> dict[str, Any]:
    weights = open_model_folder(folder)
    return {name: weights.read(name) for name in weights.infos}


def test_a_bias_of_keys_has_no_place_in_lavis(tmp_path: Path) -> None:
    """EVA's attention has none; a tower that learnt one cannot be written without losing it."""
    changes = sources("blip2-opt", tmp_path)
    save("blip2-opt", tmp_path / "m", ("connector", "vision_tower"), **changes)
    export_model(tmp_path / "m", tmp_path / "there", "lavis")
    assert "visual_encoder.blocks.1.attn.q_bias" in open_weights(tmp_path / "there" / "checkpoint.pth").infos
    path = tmp_path / "tower" / "model.safetensors"
    weights = load_file(path)
    weights = {name: t + 0.1 if "qkv.bias" in name else t for name, t in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})
    save("blip2-opt", tmp_path / "n", ("connector", "vision_tower"), **changes)
    with pytest.raises(CheckpointError, match="bias of its keys is not zero"):
        export_model(tmp_path / "n", tmp_path / "not", "lavis")
    assert not (tmp_path / "not").exists()


def test_adapters_alone_and_inside(tmp_path: Path) -> None:
    """A PEFT folder names its base; merged, it is a language model that anybody loads. peft computes the same."""
    changes = sources("llava", tmp_path)
    lora = {"lora": {"preset": "lora_all", "r": 2, "alpha": 4}}
    model, _ = save("llava", tmp_path / "m", ("connector", "language_model"), **changes, **lora)
    alone = export_model(tmp_path / "m", tmp_path / "adapter", "adapter").folder
    config = json.loads((alone / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "lm")
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    adapted = PeftModel.from_pretrained(base, str(alone)).eval()
    inside = export_model(tmp_path / "m", tmp_path / "inside", "adapter", merge=True).folder
    bare = export_model(tmp_path / "m", tmp_path / "bare", "language_model", merge=True).folder
    for name in ("model.safetensors", "config.json"):
        assert (bare / name).read_bytes() == (inside / name).read_bytes()
    with pytest.raises(CheckpointError, match=r"it has adapters.*Give --merge"):
        export_model(tmp_path / "m", tmp_path / "none", "language_model")
    merged = AutoModelForCausalLM.from_pretrained(inside).eval()
    ids = torch.arange(3, 13).view(1, -1)
    with torch.no_grad():
        expected = model.language_model.model(ids).logits
        differences = [(other(ids).logits - expected).abs().max().item() for other in (adapted, merged)]
    print(f"logits differ with peft's adapters by {differences[0]:.1e}, merged by {differences[1]:.1e}")
    assert max(differences) < 1e-5


def test_what_other_layouts_have_no_place_for(tmp_path: Path) -> None:
    changes = sources("llava", tmp_path)
    save("llava", tmp_path / "m", ("connector", "language_model"), **changes, lora={"preset": "lora"})
    refusals = {"llava": "Give --merge", "lavis": "connector is a mlp", "paddle": "connector is a mlp"}
    for to, message in refusals.items():
        with pytest.raises(CheckpointError, match=message):
            export_model(tmp_path / "m", tmp_path / to, to)
    save("llava", tmp_path / "plain", **changes)
    with pytest.raises(CheckpointError, match="no adapters, so there is nothing to merge"):
        export_model(tmp_path / "plain", tmp_path / "x", "hf", merge=True)
    with pytest.raises(CheckpointError, match="its language model has none"):
        export_model(tmp_path / "plain", tmp_path / "x", "adapter")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    with pytest.raises(CheckpointError, match="choose a new or empty folder"):
        export_model(tmp_path / "plain", tmp_path / "full", "hf")
    shutil.move(tmp_path / "lm", tmp_path / "moved")
    with pytest.raises(CheckpointError, match="lm"):
        export_model(tmp_path / "plain", tmp_path / "x", "hf")
    export_model(tmp_path / "plain", tmp_path / "x", "hf", sources={"language_model": str(tmp_path / "moved")})


def test_another_language_model_at_the_same_place_is_noticed(tmp_path: Path) -> None:
    changes = sources("llava", tmp_path)
    save("llava", tmp_path / "m", **changes)
    path = tmp_path / "lm" / "model.safetensors"
    save_file({name: t * 1.01 for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"language model at .* is not the one"):
        export_model(tmp_path / "m", tmp_path / "x", "hf")


def test_no_value_that_is_not_finite_is_written(tmp_path: Path) -> None:
    """In a place that no fingerprint looks at."""
    changes = sources("llava", tmp_path)
    save("llava", tmp_path / "m", **changes)
    path = tmp_path / "lm" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    for to in ("hf", "llava"):
        with pytest.raises(CheckpointError, match=r"up_proj\.weight' holds NaN"):
            export_model(tmp_path / "m", tmp_path / "x", to)
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["llava", "blip2-opt"])
def test_how_prompts_are_written_comes_back_from_transformers_layout(kind: str, tmp_path: Path) -> None:
    template = KINDS[kind]["prompt"]["template"]
    save(kind, tmp_path / "m", prompt={"template": template, "system": "Be short.", "max_length": 77})
    export_model(tmp_path / "m", tmp_path / "there", "hf")
    done = convert(tmp_path / "there", tmp_path / "back")
    assert done.manifest.settings.prompt == read_manifest(tmp_path / "m").settings.prompt
    assert f"prompt template {template}, from sightbridge.export.json" in done.notes
    (tmp_path / "there" / "sightbridge.export.json").write_text('{"prompt": {"template": 3}}')
    with pytest.raises(CheckpointError, match=r"sightbridge\.export\.json: not what an export writes"):
        convert(tmp_path / "there", tmp_path / "again")


@pytest.mark.parametrize("kind", ["llava", "blip2-opt", "blip2-t5"])
def test_parity_adapters_that_lie_apart_come_back(kind: str, tmp_path: Path) -> None:
    model, processor = save(kind, tmp_path / "m", ("connector", "language_model"), lora={"preset": "lora_all"})
    export_model(tmp_path / "m", tmp_path / "there", "hf")
    done = convert(tmp_path / "there", tmp_path / "back")
    before = read_manifest(tmp_path / "m").adapter  # type: ignore[union-attr]
    assert before and done.manifest.adapter and done.manifest.adapter.layers == before.layers
    again: Any = load_any_model(tmp_path / "back")[0]
    found = dict(again.named_parameters())
    adapters = {name: weight for name, weight in model.named_parameters() if ".lora_" in name}
    assert adapters and all(torch.equal(weight, found[name]) for name, weight in adapters.items())
    batch = processor.prompt(picture(1), "What is in the picture?")
    if processor.encoder_decoder:
        batch = batch.__class__(**{**batch.__dict__, "labels": torch.tensor([[7, 11, 5, 1]])})
    with torch.no_grad():
        difference = (again.logits(batch) - model.logits(batch)).abs().max().item()
    print(f"parity adapters by way of transformers' layout, {kind}: logits differ by at most {difference:.1e}")
    assert difference < (1e-6 if kind == "llava" else 5e-5)


def test_the_word_that_an_export_added_goes_away_again(tmp_path: Path) -> None:
    model, _ = save("llava", tmp_path / "m")
    export_model(tmp_path / "m", tmp_path / "there", "hf")
    grown = json.loads((tmp_path / "there/config.json").read_text())["text_config"]["vocab_size"]
    done = convert(tmp_path / "there", tmp_path / "back")
    back: Any = load_any_model(tmp_path / "back")[0]
    rows = model.language_model.config.vocab_size
    assert grown == rows + 1 and back.language_model.config.vocab_size == rows
    assert any("the word that the export added" in note for note in done.notes)
    assert fingerprint(back.language_model) == fingerprint(model.language_model)
