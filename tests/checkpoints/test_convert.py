"""Converting: files in their original layouts become model folders that load, answer and tell what they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from blip2_files import check, slots_in_front
from llava_files import check_logits, original, recorded, write_folder
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, Blip2VisionModel

from foreign_files import (
    BLIP2_HEADS,
    LLAVA_HEADS,
    OPT_HEADS,
    STAGE1_HEADS,
    TOWER_HEADS,
    lavis,
    write_lavis,
    write_tokenizer,
)
from sightbridge.batch import IGNORE_INDEX
from sightbridge.checkpoints import convert as converting
from sightbridge.checkpoints.convert import convert
from sightbridge.checkpoints.describe import describe
from sightbridge.checkpoints.folder import load_any_model, load_model
from sightbridge.checkpoints.manifest import read_manifest
from sightbridge.checkpoints.part_settings import given, join
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.qformer_pretraining import QFormerPretraining

LANGUAGE = {
    "opt": ("stage2_opt_prompt", "opt_model.", OPT_HEADS, 47),
    "t5": ("stage2_t5", "t5_model.", BLIP2_HEADS, 46),
}
SIZE = "image.size=56"
BRIDGE_ALONE = ["connector.num_heads=4", SIZE]
VIP, FLANT5 = ("vip_tiny", "vip_v1_legacy", 900), ("clipt5_tiny", "t5_v1", 640)
"""Name of a recorded model, of its logits, and how many of those were recorded for a token."""


def convert_lavis(tmp_path: Path, kind: str, **options: Any) -> Path:
    name, _, heads, vocabulary = LANGUAGE[kind]
    path = write_lavis(tmp_path / "checkpoint.pth", name)
    tokenizer = write_tokenizer(tmp_path / "words", vocabulary)
    return convert(path, tmp_path / "out", tokenizer=str(tokenizer), settings=heads, **options).folder


def write_llava(folder: Path, name: str, container: str = "safetensors") -> Path:
    """A folder in LLaVA's original layout: ``vip_tiny`` or ``clipt5_tiny``."""
    return write_folder(folder, *original(name), container)


def language_model_alone(tmp_path: Path, kind: str) -> Path:
    """The language model of a recorded BLIP-2 as a Hugging Face folder, with its tokenizer."""
    folder = tmp_path / f"{kind}-alone"
    (convert_lavis(tmp_path / f"for-{kind}", kind) / "language_model").rename(folder)
    write_tokenizer(folder, LANGUAGE[kind][3])
    return folder


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    for kind in ("opt", "t5"):
        (tmp_path / f"for-{kind}").mkdir()


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_parity_a_whole_blip2_becomes_a_folder_with_the_same_logits(kind: str, tmp_path: Path) -> None:
    model, _ = load_model(convert_lavis(tmp_path, kind))
    golden = lavis(LANGUAGE[kind][0])
    rest = {"pixel_values": golden["image"], "labels": golden["labels"]}
    padding = {"opt": 1, "t5": 0}[kind]
    batch = slots_in_front(golden["input_ids"], golden["text_attention_mask"], 6, padding, **rest)
    where = batch.attention_mask.bool() if kind == "opt" else golden["labels"] != IGNORE_INDEX
    check(f"converted LAVIS {kind}", model, batch, golden["logits"], where, golden["loss"].item())


@pytest.mark.parametrize(("name", "logits", "vocabulary"), [VIP, FLANT5])
def test_parity_a_whole_llava_becomes_a_folder_with_the_same_logits(
    name: str, logits: str, vocabulary: int, tmp_path: Path
) -> None:
    source = write_llava(tmp_path / "source", name, "bin in two")
    tokenizer = write_tokenizer(tmp_path / "words", 600)
    out = convert(
        source, tmp_path / "out", tokenizer=str(tokenizer), settings=LLAVA_HEADS, max_shard_bytes=20_000
    ).folder
    assert len(list((out / "language_model").glob("model-*-of-*.safetensors"))) > 1
    model, _ = load_model(out)
    check_logits(f"converted {name}", model, recorded("logits", logits), vocabulary)


def test_a_first_stage_becomes_one(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "blip2_pretrained.pth", "stage1_loss_plain")
    rows = lavis("stage1_loss_plain")["state_dict"]["Qformer.bert.embeddings.word_embeddings.weight"].shape[0]
    words = write_tokenizer(tmp_path / "words", rows - 1)
    out = convert(path, tmp_path / "out", settings=[*STAGE1_HEADS, f"text.tokenizer={words}"]).folder
    model, processor = load_any_model(out)
    assert isinstance(model, QFormerPretraining)
    assert model.qformer.temperature.item() == lavis("stage1_loss_plain")["state_dict"]["temp"].item()
    assert len(processor.tokenizer) == rows  # [DEC] was added


def test_tensors_are_written_bit_equal_and_inner_folders_are_hugging_faces(tmp_path: Path) -> None:
    out = convert_lavis(tmp_path, "t5")
    state = lavis("stage2_t5")["state_dict"]
    written = load_file(out / "language_model" / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], state["t5_model.lm_head.weight"])
    assert not torch.equal(written["lm_head.weight"], written["shared.weight"])
    language_model = AutoModelForSeq2SeqLM.from_pretrained(out / "language_model")
    assert torch.equal(language_model.lm_head.weight, state["t5_model.lm_head.weight"])
    config = json.loads((out / "language_model" / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["dense_act_fn"]) == (False, "gelu")
    assert config["layer_norm_epsilon"] == 1e-6
    loaded: Any = Blip2VisionModel.from_pretrained(out / "vision_tower", output_loading_info=True)
    tower, report = loaded
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"post_layernorm"}, "LAVIS has none"
    assert tower.config.layer_norm_eps == 1e-6
    bridge = load_file(out / "connector.safetensors")
    assert torch.equal(bridge["output.weight"], state["t5_proj.weight"])


def test_half_precision_stays_half_in_towers_and_language_models(tmp_path: Path) -> None:
    name, _, heads, vocabulary = LANGUAGE["t5"]
    state = {key: t.half() if t.is_floating_point() else t for key, t in lavis(name)["state_dict"].items()}
    torch.save({"model": state}, tmp_path / "half.pth")
    words = write_tokenizer(tmp_path / "words", vocabulary)
    out = convert(tmp_path / "half.pth", tmp_path / "out", tokenizer=str(words), settings=heads).folder
    model, _ = load_model(out)  # fingerprints of casts agree, T5's float32 layers among them
    settings = read_manifest(out).settings
    assert (settings.vision_tower.dtype, settings.language_model.dtype) == ("float16", "float16")  # type: ignore[union-attr]
    assert {p.dtype for p in model.connector.parameters()} == {torch.float32}
    assert load_file(out / "language_model" / "model.safetensors")["shared.weight"].dtype == torch.float16


def test_parts_that_a_file_lacks_are_referenced(tmp_path: Path) -> None:
    whole = convert_lavis(tmp_path, "opt")
    path = write_lavis(tmp_path / "bridge.pth", "stage2_opt_prompt", without=("visual_encoder.", "opt_model."))
    lm = language_model_alone(tmp_path, "opt")
    converted = convert(
        path,
        tmp_path / "referencing",
        vision=str(whole / "vision_tower"),
        language_model=str(lm),
        settings=BRIDGE_ALONE,
    )
    names = {child.name for child in converted.folder.iterdir()}
    assert names == {"sightbridge.json", "connector.safetensors", "tokenizer"}
    manifest = read_manifest(converted.folder)
    assert manifest.parts["language_model"].source == str(lm)
    first, second = read_manifest(whole), manifest
    assert {n: e.fingerprint for n, e in first.parts.items()} == {n: e.fingerprint for n, e in second.parts.items()}
    load_model(converted.folder)

    copied = convert(
        path,
        tmp_path / "copied",
        vision=str(whole / "vision_tower"),
        language_model=str(lm),
        settings=BRIDGE_ALONE,
        self_contained=True,
    ).folder
    for folder in (whole, lm):
        folder.rename(folder.with_name(f"{folder.name}-gone"))
    load_model(copied)


def test_a_tower_of_another_file_is_copied(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "bridge.pth", "stage2_opt_prompt", without=("visual_encoder.",))
    tower = {k.removeprefix("visual_encoder."): t for k, t in lavis("stage2_opt_prompt")["state_dict"].items()
             if k.startswith("visual_encoder.")}  # fmt: skip
    torch.save(tower, tmp_path / "eva.pth")
    words = write_tokenizer(tmp_path / "words", 47)
    converted = convert(
        path, tmp_path / "out", vision=str(tmp_path / "eva.pth"), tokenizer=str(words), settings=[*OPT_HEADS, SIZE]
    )
    assert (converted.folder / "vision_tower" / "model.safetensors").is_file()
    assert [made["format"] for made in converted.manifest.provenance["converted_from"]] == ["lavis", "lavis_tower"]
    load_model(converted.folder)


def test_a_missing_part_is_told_with_the_flag_and_what_usually_belongs_there(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "bridge.pth", "stage2_opt_prompt", without=("visual_encoder.", "opt_model."))
    with pytest.raises(CheckpointError, match=r"bridge.pth holds no vision tower .*--vision NAME_OR_PATH\. .*width 48"):
        convert(path, tmp_path / "out", settings=BRIDGE_ALONE)
    state = {k: torch.zeros(2048, 8) if k == "opt_proj.weight" else t
             for k, t in torch.load(path, weights_only=True)["model"].items()}  # fmt: skip
    state["opt_proj.bias"] = torch.zeros(2048)
    torch.save({"model": state}, path)
    tower = convert_lavis(tmp_path, "opt") / "vision_tower"
    message = (
        r"--language-model NAME_OR_PATH\. The connector leads to a language model of width 2048: google/flan-t5-xl"
    )
    with pytest.raises(CheckpointError, match=message):
        convert(path, tmp_path / "another", vision=str(tower), settings=BRIDGE_ALONE)


def test_another_width_is_told_with_what_to_pass(tmp_path: Path) -> None:
    tower = convert_lavis(tmp_path, "opt") / "vision_tower"
    path = write_lavis(tmp_path / "bridge.pth", "stage2_opt_prompt", without=("visual_encoder.", "opt_model."))
    state = torch.load(path, weights_only=True)["model"]
    state |= {
        "opt_proj.weight": torch.zeros(2560, state["opt_proj.weight"].shape[1]),
        "opt_proj.bias": torch.zeros(2560),
    }
    torch.save({"model": state}, path)
    lm = language_model_alone(tmp_path, "opt")
    width = AutoConfig.from_pretrained(lm).hidden_size
    message = rf"of width 2560, but '.*' has {width}\. Give the one .*--language-model facebook/opt-2.7b"
    with pytest.raises(CheckpointError, match=message):
        convert(path, tmp_path / "wide", vision=str(tower), language_model=str(lm), settings=BRIDGE_ALONE)


def test_what_differs_is_listed_by_class_before_anything_is_written(
    tmp_path: Path,
) -> None:
    state = dict(lavis("stage2_opt_prompt")["state_dict"])
    for name in [n for n in state if n.endswith("mlp.fc1.bias") and n.startswith("visual_encoder.")]:
        del state[name]
    state["opt_model.model.decoder.layers.0.fc1.bias"] = torch.zeros(3)
    state["opt_model.model.decoder.extra.weight"] = torch.zeros(3)
    torch.save({"model": state}, tmp_path / "odd.pth")
    words = write_tokenizer(tmp_path / "words", 47)
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "odd.pth", tmp_path / "out", tokenizer=str(words), settings=OPT_HEADS)
    lines = str(error.value).splitlines()
    assert "vision tower: 3 missing: encoder.layers.*.mlp.fc1.bias (3)" in lines[1]
    assert "language model: 1 unexpected: model.decoder.extra.weight" in lines[2]
    assert "1 differently shaped: model.decoder.layers.0.fc1.bias (expected (" in lines[3]
    assert not list(tmp_path.glob("*out*"))


def test_nothing_is_silently_replaced(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "whole.pth", "stage2_opt_prompt")
    with pytest.raises(CheckpointError, match="holds a language model of its own, so --language-model is not needed"):
        convert(path, tmp_path / "out", language_model="facebook/opt-2.7b", settings=OPT_HEADS)


def test_settings_that_contradict_shapes_are_refused_and_others_win_with_a_note(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "whole.pth", "stage2_opt_prompt")
    words = str(write_tokenizer(tmp_path / "words", 47))
    with pytest.raises(SettingsError, match=r"connector.num_queries: .*whole.pth says 6, but the command line says 7"):
        convert(path, tmp_path / "out", tokenizer=words, settings=[*OPT_HEADS, "connector.num_queries=7"])
    converted = convert(path, tmp_path / "out", tokenizer=words, settings=[*OPT_HEADS, "prompt.template=plain"])
    assert converted.manifest.settings.prompt.template == "plain"  # type: ignore[union-attr]
    assert any("prompt.template: plain as you say, in place of blip2_plain" in note for note in converted.notes)


def test_files_that_contradict_each_other_are_told_and_the_user_decides() -> None:
    main = {"hidden_size": 48, "layer_norm_eps": 1e-5}
    one = given({"vision_tower": {"config": main}}, "one.pth")
    other = given({"vision_tower": {"config": main | {"layer_norm_eps": 1e-6}}}, "other.pth")
    with pytest.raises(SettingsError, match=r"layer_norm_eps: one.pth says 1e-05, but other.pth says 1e-06.*=VALUE"):
        join(one, other)
    joined = join(one, other, decided=["vision_tower.config.layer_norm_eps"])
    assert joined.plain()["vision_tower"]["config"]["layer_norm_eps"] == 1e-5


def test_settings_of_adapters_that_are_nowhere_are_refused(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "whole.pth", "stage2_opt_prompt")
    with pytest.raises(SettingsError, match="no file holds adapters"):
        convert(path, tmp_path / "out", settings=[*OPT_HEADS, "lora.preset=lora"])


def test_heads_that_no_shape_tells_are_asked_for(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "whole.pth", "stage2_opt_prompt")
    for settings, asked in (
        ([], "vision_tower.config.num_attention_heads"),
        ([TOWER_HEADS], "num_attention_heads|num_heads"),
    ):
        with pytest.raises(SettingsError, match=f"{asked}=NUMBER"):
            convert(path, tmp_path / "out", settings=settings)


def test_a_tokenizer_is_needed_and_must_fit(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "whole.pth", "stage2_opt_prompt")
    with pytest.raises(CheckpointError, match="no tokenizer was found; say where it is: --tokenizer"):
        convert(path, tmp_path / "out", settings=OPT_HEADS)
    words = write_tokenizer(tmp_path / "words", 48)
    with pytest.raises(CheckpointError, match="has 48 tokens, but the model has embeddings of 47"):
        convert(path, tmp_path / "out", tokenizer=str(words), settings=OPT_HEADS)


def test_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already; choose a new or empty folder"):
        convert(tmp_path / "any.pth", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"nothing.pth: no such file"):
        convert(tmp_path / "nothing.pth", tmp_path / "new")
    torch.save({"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"of no known format. It has 2 weights: fc.weight\* \(1\), .*LAVIS"):
        convert(tmp_path / "other.pth", tmp_path / "new")
    path = write_lavis(tmp_path / "tower-less.pth", "stage2_opt_prompt", without=("visual_encoder.",))
    with pytest.raises(CheckpointError, match=r"--vision .*tower-less.pth: holds no vision tower; it is: BLIP-2"):
        convert(path, tmp_path / "new", vision=str(path), settings=OPT_HEADS)


def test_a_killed_conversion_leaves_nothing_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_llava(tmp_path / "source", "vip_tiny")
    words = str(write_tokenizer(tmp_path / "words", 900))
    written = []
    real = converting.write_config

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(converting, "write_config", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", tokenizer=words, settings=LLAVA_HEADS)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(converting, "write_config", real)
    again = convert(
        source, tmp_path / "out", tokenizer=words, settings=LLAVA_HEADS, progress=lambda *step: written.append(step)
    )
    assert again.resumed == 1
    assert not any(name.startswith("embeddings.") for _, _, name in written), "the tower was there already"
    assert written[-1][0] == written[-1][1], "what was there counts as done"
    load_model(again.folder)


def test_an_interrupted_one_with_other_settings_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_llava(tmp_path / "source", "vip_tiny")
    words = str(write_tokenizer(tmp_path / "words", 900))
    with monkeypatch.context() as patch:
        patch.setattr(converting, "write_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(source, tmp_path / "out", tokenizer=words, settings=LLAVA_HEADS)
    again = convert(source, tmp_path / "out", tokenizer=words, settings=[*LLAVA_HEADS, "prompt.template=plain"])
    assert again.resumed == 0


def test_parts_of_several_files_are_put_together_and_doubled_weights_are_listed(tmp_path: Path) -> None:
    whole = write_lavis(tmp_path / "whole.pth", "stage2_opt_prompt")
    state = dict(lavis("stage2_opt_prompt")["state_dict"])
    state["opt_proj.bias"] = state["opt_proj.bias"] + 1
    torch.save({"model": state}, tmp_path / "later.pth")
    words = str(write_tokenizer(tmp_path / "words", 47))
    parts = {"vision": str(whole), "bridge": [str(whole), str(tmp_path / "later.pth")], "language_model": str(whole)}
    with pytest.raises(CheckpointError, match=r"--bridge: \d+ weights of the connector are in two .*--later-wins"):
        convert(None, tmp_path / "out", tokenizer=words, settings=OPT_HEADS, **parts)
    out = convert(None, tmp_path / "out", tokenizer=words, settings=OPT_HEADS, later_wins=True, **parts).folder
    assert torch.equal(load_file(out / "connector.safetensors")["output.bias"], state["opt_proj.bias"])
    load_model(out)


def test_a_bridge_of_a_model_folder_leads_to_another_language_model_of_the_same_width(tmp_path: Path) -> None:
    whole = convert_lavis(tmp_path, "opt")
    lm = language_model_alone(tmp_path, "opt")
    out = convert(
        None, tmp_path / "again", bridge=str(whole), vision=str(whole / "vision_tower"), language_model=str(lm)
    )
    model, _ = load_model(out.folder)
    queries: Any = model.connector.state_dict()["queries"]
    assert torch.equal(queries, load_file(whole / "connector.safetensors")["queries"])


@pytest.mark.parametrize("start", ["stage1_loss_plain", "stage2_opt_prompt"])
def test_what_trained_of_a_connector_is_completed_by_what_its_training_started_from(start: str, tmp_path: Path) -> None:
    lm = language_model_alone(tmp_path, "opt")
    begun = write_lavis(tmp_path / "begun.pth", start)
    width = lavis(start)["state_dict"]["query_tokens"].shape[-1]
    trained = {"llm_proj.weight": torch.ones(40, width), "llm_proj.bias": torch.ones(40)}
    torch.save({"model": trained, "epoch": 3}, tmp_path / "checkpoint_3.pth")
    flags = {"vision": str(begun), "language_model": str(lm), "settings": [TOWER_HEADS, *BRIDGE_ALONE]}
    with pytest.raises(CheckpointError, match=r"only what was trained of the connector; .*--bridge FILE"):
        convert(tmp_path / "checkpoint_3.pth", tmp_path / "out", **flags)
    out = convert(tmp_path / "checkpoint_3.pth", tmp_path / "out", bridge=str(begun), **flags).folder
    bridge = load_file(out / "connector.safetensors")
    assert torch.equal(bridge["output.weight"], trained["llm_proj.weight"])
    assert torch.equal(bridge["queries"], lavis(start)["state_dict"]["query_tokens"])
    load_model(out)


def test_a_model_folder_of_ours_becomes_one_that_needs_no_other(tmp_path: Path) -> None:
    whole = convert_lavis(tmp_path, "t5")
    copy = convert(whole, tmp_path / "copy").folder
    first, second = read_manifest(whole), read_manifest(copy)
    assert {n: e.fingerprint for n, e in first.parts.items()} == {n: e.fingerprint for n, e in second.parts.items()}
    whole.rename(tmp_path / "gone")
    load_model(copy)
    described = {part.name: part for part in describe(copy).parts}
    assert described["language_model"].stored
    assert described["language_model"].bytes == (copy / "language_model" / "model.safetensors").stat().st_size


def test_a_name_that_is_nowhere_is_told(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "bridge.pth", "stage2_opt_prompt", without=("opt_model.",))
    with pytest.raises(CheckpointError, match=r"language model: 'facebook/opt-2.7b' is no folder here"):
        convert(path, tmp_path / "out", language_model="facebook/opt-2.7b", settings=BLIP2_HEADS)
    with pytest.raises(CheckpointError, match=r"gone.pth: no such file"):
        convert(path, tmp_path / "out", language_model="gone.pth", settings=BLIP2_HEADS)


def test_a_loaded_language_model_is_transformers_own(tmp_path: Path) -> None:
    out = convert_lavis(tmp_path, "opt")
    language_model: Any = AutoModelForCausalLM.from_pretrained(out / "language_model")
    state = lavis("stage2_opt_prompt")["state_dict"]
    table = state["opt_model.model.decoder.embed_tokens.weight"]
    assert torch.equal(language_model.get_input_embeddings().weight, table)
