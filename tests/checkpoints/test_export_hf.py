"""Exports for transformers: loaded by ``from_pretrained`` alone, they compute what our models compute."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from export_models import CLIP, EVA, KINDS, clip_folder, save, save_stage1
from sightbridge.batch import Batch
from sightbridge.checkpoints.export import export_model
from sightbridge.checkpoints.export.tokens import end_ids
from sightbridge.config.generation import GenerationSettings
from sightbridge.config.model import LanguageModelSettings
from sightbridge.errors import CheckpointError
from sightbridge.generation.generate import generate
from sightbridge.models.build import build_language_model
from sightbridge.models.qformer_losses import best_query
from sightbridge.models.qformer_pretraining import normalize
from small_models import TOKENIZERS, picture

QUESTION = "What is in the picture?"


def load_strictly(folder: Path) -> Any:
    """By the class that ``config.json`` names; every weight must be there and have a place."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, dtype="auto")
    problems = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(problems.values()), problems
    return model.eval()


def as_ids(batch: Batch, image_token: int) -> dict[str, Tensor]:
    """Our row in the words of transformers: ``<image>`` in the slots."""
    assert batch.pixel_values is not None
    ids = batch.input_ids.masked_fill(batch.image_slots, image_token)
    return {"input_ids": ids, "attention_mask": batch.attention_mask, "pixel_values": batch.pixel_values}


def compare(model: Any, processor: Any, folder: Path, varied: bool = True) -> float:
    """The largest difference of logits; the greedy answer must be the same, too."""
    theirs = load_strictly(folder)
    batch = processor.prompt(picture(1), QUESTION)
    inputs = as_ids(batch, theirs.config.image_token_index)
    extra: dict[str, Any] = {}
    if batch.connector_ids is not None:
        extra = {"qformer_input_ids": batch.connector_ids, "qformer_attention_mask": batch.connector_mask}
    with torch.no_grad():
        if processor.encoder_decoder:
            labelled = replace(batch, labels=torch.tensor([[7, 11, 5, 1]]))
            ours = model.logits(labelled)
            extra["decoder_input_ids"] = model.language_model.decoder_input_ids(labelled.labels)
        else:
            ours = model.logits(batch)
        logits = theirs(**inputs, **extra).logits
        extra.pop("decoder_input_ids", None)
        written = theirs.generate(**inputs, **extra, max_new_tokens=8, do_sample=False)[0].tolist()
    settings = GenerationSettings(max_new_tokens=8)
    answer = generate(model, batch, settings, eos_ids=end_ids(processor), pad_id=processor.tokenizer.pad_token_id)
    expected = answer[0].tolist()
    print("greedy ids", expected, "theirs", written)
    assert written[-len(expected) :] == expected and len(set(expected)) > varied
    assert not logits.isnan().any()
    rows = ours.shape[-1]
    if logits.shape[-1] > rows:  # a row that was added can never be the answer
        assert (logits[..., rows:].amax(-1) < logits[..., :rows].amax(-1)).all()
    return (logits[..., :rows] - ours).abs().max().item()


@pytest.mark.parametrize("kind", ["blip2-opt", "blip2-t5", "llava", "vip"])
def test_parity_with_transformers(kind: str, tmp_path: Path) -> None:
    model, processor = save(kind, tmp_path / "m")
    done = export_model(tmp_path / "m", tmp_path / "hf", "hf")
    difference = compare(model, processor, done.folder)
    print(f"{kind}: logits differ from {done.written.what} by at most {difference:.1e}")
    assert difference < (5e-4 if "blip2" in kind else 2e-5)


def test_parity_of_other_language_models(tmp_path: Path) -> None:
    """mBLIP's two, whose heads are apart or whose first level is missing in files, and Qwen in LLaVA's class."""
    mt5 = KINDS["blip2-t5"]["language_model"]["config"] | {"model_type": "mt5", "dense_act_fn": "gelu_new"}
    mt5 = {key: value for key, value in mt5.items() if key != "tie_word_embeddings"}
    bloom: dict[str, Any] = {"model_type": "bloom", "vocab_size": 912, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    bloom["initializer_range"] = 0.3
    qwen = KINDS["llava"]["language_model"]["config"] | {"model_type": "qwen2", "num_key_value_heads": 2}
    cases = {"blip2-t5": mt5, "blip2-opt": bloom, "llava": qwen | {"vocab_size": 960}}
    for kind, config in cases.items():
        folder = tmp_path / kind
        model, processor = save(kind, folder / "m", language_model={"config": config})
        done = export_model(folder / "m", folder / "hf", "hf")
        # a random BLOOM, whose head is its embeddings, repeats one word
        difference = compare(model, processor, done.folder, varied=config is not bloom)
        print(f"{config['model_type']}: logits differ by at most {difference:.1e}")
        assert difference < 1e-4
        assert any("a row of the embedding table" in note for note in done.written.notes)


def test_merged_weights_are_rounded_once(tmp_path: Path) -> None:
    """In float32 and then to the type that is asked for, whatever type the base is in."""
    base = make_base("llava", tmp_path / "lm")
    changes = {"language_model": {"source": base, "config": None, "dtype": "bfloat16"}, "lora": {"preset": "lora"}}
    model, _ = save("llava", tmp_path / "m", ("connector", "language_model"), **changes)
    done = export_model(tmp_path / "m", tmp_path / "hf", "hf", merge=True, dtype="bfloat16")
    written = load_file(done.folder / "model.safetensors")["language_model.model.layers.1.self_attn.q_proj.weight"]
    own = load_file(Path(base) / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"]
    layer = model.language_model.model.base_model.layers[1].self_attn.q_proj
    assert torch.equal(written, (own + layer.get_delta_weight("default").float()).bfloat16())


def test_parity_of_several_towers_and_heads(tmp_path: Path) -> None:
    """Whole and cut towers, SigLIP, several layers without ViP's norm, CLS kept, a head tied to the embeddings."""
    tower = clip_folder(tmp_path / "clip", CLIP)
    siglip = {key: value for key, value in CLIP.items() if key != "model_type"} | {"model_type": "siglip_vision_model"}
    cases: dict[str, dict[str, Any]] = {
        "whole": {"vision_tower": {"source": tower, "config": None}},
        "resampled": {"vision_tower": {"source": tower, "config": None, "image_size": 42}, "image": {"size": 42}},
        "siglip": {"vision_tower": {"config": siglip}},
        "several": {"vision_tower": {"layers": [-1, 1], "class_token": "keep"}},
        "output": {"vision_tower": {"layers": "output"}},
        "tied": {
            "language_model": {"config": KINDS["llava"]["language_model"]["config"] | {"tie_word_embeddings": True}}
        },
    }
    for name, changes in cases.items():
        folder = tmp_path / name
        model, processor = save("llava", folder / "m", **changes)
        done = export_model(folder / "m", folder / "hf", "hf")
        difference = compare(model, processor, done.folder)
        cut = any("filled with ones" in note for note in done.written.notes)
        assert cut == (name not in ("whole", "resampled")), done.written.notes
        print(f"{name}: logits differ by at most {difference:.1e}")
        assert difference < 2e-5


def test_parity_of_the_first_stage(tmp_path: Path) -> None:
    """ITM and ITC of ``Blip2ForImageTextRetrieval`` on ids that its processor makes; extras beside it, bit-equal."""
    model, processor = save_stage1(tmp_path / "m")
    done = export_model(tmp_path / "m", tmp_path / "hf", "hf")
    theirs = load_strictly(done.folder)
    image, texts = Image.fromarray(picture(1)), ["a red cup", "what is in it"]
    read = transformers.AutoProcessor.from_pretrained(done.folder)
    inputs = read(images=[image] * 2, text=texts, return_tensors="pt", padding=True)
    pixels = torch.stack([processor.transform(image)] * 2)
    assert torch.equal(inputs["pixel_values"], pixels)
    ids, mask = processor.texts(texts)
    with torch.no_grad():
        itm = theirs(pixels, ids, mask, use_image_text_matching_head=True).logits_per_image
        itc = theirs(pixels, ids, mask).logits_per_image
        pictures = model.qformer.read_pictures(model.vision_tower(pixels))
        expected_itm = model.qformer.match_logits(pictures.look, ids, mask)
        words, _ = model.qformer.read_text(ids, mask, wanted=1)
        vectors = normalize(model.qformer.vision_projection, pictures.queries)
        expected_itc = best_query(vectors, normalize(model.qformer.text_projection, words[:, 0]))
    differences = (itm - expected_itm).abs().max().item(), (itc - expected_itc).abs().max().item()
    print(f"ITM differs by at most {differences[0]:.1e}, ITC by {differences[1]:.1e}")
    assert max(differences) < 1e-5
    beside = load_file(done.folder / "sightbridge_extras.safetensors")
    own = {f"bridge.{name}": tensor for name, tensor in model.qformer.state_dict().items()}
    assert all(torch.equal(tensor, own[name]) for name, tensor in beside.items())
    assert set(own) - set(beside) == {name for name in own if "temperature" not in name and "language_head" not in name}


def test_parity_of_a_connector_that_reads_the_question(tmp_path: Path) -> None:
    """``text_input`` is InstructBLIP's class."""
    text = {"text_input": True, "text_tokenizer": str(TOKENIZERS / "llama"), "max_text_length": 12}
    connector = {**text, "text_vocabulary": 901, "text_positions": 40}
    for kind in ("blip2-opt", "blip2-t5"):
        folder = tmp_path / kind
        model, processor = save(kind, folder / "m", connector=connector)
        done = export_model(folder / "m", folder / "hf", "hf")
        difference = compare(model, processor, done.folder)
        print(f"{kind} with the question: logits differ from {done.written.what} by at most {difference:.1e}")
        assert difference < 1e-4 and (done.folder / "qformer_tokenizer").is_dir()


@pytest.mark.parametrize("kind", ["blip2-t5", "llava", "blip2-opt"])
def test_parity_with_adapters_inside_and_apart(kind: str, tmp_path: Path) -> None:
    base = make_base(kind, tmp_path / "lm")
    changes = {"language_model": {"source": base, "config": None}, "lora": {"preset": "lora", "r": 2, "alpha": 6}}
    model, processor = save(kind, tmp_path / "m", ("connector", "language_model"), **changes)
    inside = export_model(tmp_path / "m", tmp_path / "inside", "hf", merge=True)
    difference = compare(model, processor, inside.folder)
    apart = export_model(tmp_path / "m", tmp_path / "apart", "hf")
    bare = load_strictly(apart.folder)
    adapted = PeftModel.from_pretrained(bare, str(apart.folder / "adapter")).eval()
    inputs = as_ids(processor.prompt(picture(1), QUESTION), bare.config.image_token_index)
    extra = {"decoder_input_ids": torch.tensor([[0, 7]])} if processor.encoder_decoder else {}
    merged = load_strictly(inside.folder)
    with torch.no_grad():
        logits, expected = adapted(**inputs, **extra).logits, merged(**inputs, **extra).logits
    beside = (logits - expected).abs().max().item()
    print(f"{kind}: merged differs by at most {difference:.1e}, by adapters of peft by {beside:.1e}")
    assert difference < 5e-5 and beside < 5e-5
    with adapted.disable_adapter(), torch.no_grad():
        assert (adapted(**inputs, **extra).logits - expected).abs().max() > 1e-2
    adapted_layers = {name for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert adapted_layers and all("language_model" in name for name in adapted_layers)


def make_base(kind: str, folder: Path) -> str:
    """The language model of a kind as a folder of its own."""
    settings = KINDS[kind]["language_model"]["config"]
    model = build_language_model(LanguageModelSettings(config=settings))
    model.model.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    if settings["model_type"] == "t5":  # as released FlanT5 says it
        (folder / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": False}))
    return str(folder)


def test_t5s_head_stays_its_own_and_the_card_says_where_image_is(tmp_path: Path) -> None:
    """A free row of the table, none is added: neither tied nor resized, and so after another save."""
    model, processor = save("blip2-t5", tmp_path / "m")
    done = export_model(tmp_path / "m", tmp_path / "hf", "hf")
    theirs = load_strictly(done.folder)
    theirs.save_pretrained(tmp_path / "again")
    for loaded in (theirs, load_strictly(tmp_path / "again")):
        inner = loaded.language_model
        assert inner.lm_head.weight.data_ptr() != inner.shared.weight.data_ptr()
        assert torch.equal(inner.lm_head.weight, model.language_model.model.lm_head.weight)
        assert inner.shared.weight.shape[0] == 640 and inner.config.scale_decoder_outputs is False
        assert inner.config.dense_act_fn == "gelu"
    tokenizer = transformers.AutoTokenizer.from_pretrained(done.folder)
    assert tokenizer.convert_tokens_to_ids("<image>") == theirs.config.image_token_index == len(processor.tokenizer)
    assert "that was free" in (done.folder / "README.md").read_text()


def test_every_epsilon_and_activation_is_written(tmp_path: Path) -> None:
    """Defaults of transformers changed between releases, so none is left to them."""
    save("blip2-opt", tmp_path / "m", connector={"input_norm_eps": 3e-4})
    done = export_model(tmp_path / "m", tmp_path / "hf", "hf")
    config = json.loads((done.folder / "config.json").read_text())
    assert config["vision_config"]["layer_norm_eps"] == EVA["layer_norm_eps"] and config["vision_config"]["hidden_act"]
    assert config["qformer_config"]["layer_norm_eps"] == 1e-12 and config["qformer_config"]["hidden_act"] == "gelu"
    assert config["text_config"]["activation_function"] == "relu"
    assert config["text_config"]["eos_token_id"] == [2, 13]  # the newline ends a caption of OPT


def test_what_one_epsilon_costs_is_said_and_mended_as_said(tmp_path: Path) -> None:
    """LAVIS' two epsilons far apart: the card's line makes the difference go away."""
    model, processor = save("blip2-opt", tmp_path / "m", connector={"input_norm_eps": 0.3})
    done = export_model(tmp_path / "m", tmp_path / "hf", "hf")
    note = next(note for note in done.written.notes if "one epsilon" in note)
    theirs = load_strictly(done.folder)
    inputs = as_ids(processor.prompt(picture(1), QUESTION), theirs.config.image_token_index)
    with torch.no_grad():
        ours = model.logits(processor.prompt(picture(1), QUESTION))
        before = (theirs(**inputs).logits - ours).abs().max().item()
        line = re.search(r"`(model\..*?)`", note)
        assert line is not None
        exec(line[1], {"model": theirs})
        after = (theirs(**inputs).logits - ours).abs().max().item()
    print(f"epsilon 1e-6 in place of 0.3 behind the tower: {before:.1e}; set as the card says: {after:.1e}")
    assert before > 1e-4 and after < 1e-5


@pytest.mark.parametrize("kind", ["blip2-opt", "llava", "vip", "blip2-t5"])
def test_the_cards_own_lines_run(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The example in README.md, on a picture; the processor's pixels are ours, and its ids but for the place."""
    _, processor = save(kind, tmp_path / "m")
    done = export_model(tmp_path / "m", tmp_path / "hf", "hf", dtype="float32")
    card = (done.folder / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    image = Image.fromarray(picture(1))
    image.save(tmp_path / "picture.png")
    code = code.replace('FOLDER = "."', f"FOLDER = {str(done.folder)!r}").replace(
        "picture.jpg", str(tmp_path / "picture.png")
    )
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.equal(names["inputs"]["pixel_values"], processor.transform(image)[None])
    theirs = names["model"].config.image_token_index
    assert (names["inputs"]["input_ids"] == theirs).sum().item() == processor.tokens_per_image
    ours = processor.prompt(image, QUESTION)
    same = names["inputs"]["input_ids"].tolist() == as_ids(ours, theirs)["input_ids"].tolist()
    told = next(note for note in done.written.notes if "ids of the example prompt" in note)
    assert told.startswith("The processor makes the same ids") == same
    # LLaVA tokenises what follows a picture on its own, so that it begins with the start of a word.
    assert same == ("blip2" in kind) and (same or "['▁'] is [] there" in told)


@pytest.mark.parametrize("kind", ["blip2-t5", "vip", "first stage"])
def test_verifying_writes_what_it_measured_into_the_card(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters apart as well; and an export that would answer otherwise is not left behind."""
    if kind == "first stage":
        save_stage1(tmp_path / "m")
    else:
        save(kind, tmp_path / "m", ("connector", "language_model"), lora={"preset": "lora"})
    done = export_model(tmp_path / "m", tmp_path / "hf", "hf", verify=True)
    card = (done.folder / "README.md").read_text()
    measured = re.search(r"differ from the model here by at most (\S+) \(", card)
    print(f"{kind}: the card says {measured and measured[1]}")
    assert measured and float(measured[1]) < 1e-4
    export_model(tmp_path / "m", tmp_path / "half", "hf", verify=True, dtype="bfloat16")
    monkeypatch.setattr("sightbridge.checkpoints.export.verify.TOLERANCE", {torch.float32: -1.0})
    with pytest.raises(CheckpointError, match=r"answers otherwise than the model here.*Nothing was written"):
        export_model(tmp_path / "m", tmp_path / "wrong", "hf", verify=True)
    assert not (tmp_path / "wrong").exists()


def test_another_type(tmp_path: Path) -> None:
    save("llava", tmp_path / "m")
    done = export_model(tmp_path / "m", tmp_path / "hf", "hf", dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(done.folder / "model.safetensors").values()} == {torch.bfloat16}
    assert load_strictly(done.folder).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("clip-flant5", {}, r"\(t5\) is an encoder-decoder .*--to llava"),
        ("llava", {"connector": {"layers": 3}}, r"its MLP has 3 linear layers and the class has 2.*--to llava"),
        ("llava", {"connector": {"kind": "linear"}}, r"none has a connector of kind 'linear'"),
        ("blip2-opt", {"connector": {"input_norm": False}}, "it has no norm"),
        ("blip2-opt", {"vision_tower": {"config": CLIP}}, "vision tower is a clip_vision_model"),
        ("blip2-opt", {"vision_tower": {"layers": "output"}}, "two norms between tower and Q-Former"),
        (
            "llava",
            {"language_model": {"config": KINDS["blip2-opt"]["language_model"]["config"]}},
            "expects Llama's names",
        ),
    ],
)
def test_what_no_class_of_transformers_computes_is_refused(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(kind, tmp_path / "m", **changes)
    with pytest.raises(CheckpointError, match=message):
        export_model(tmp_path / "m", tmp_path / "hf", "hf")
    assert not (tmp_path / "hf").exists()
