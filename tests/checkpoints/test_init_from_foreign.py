"""Runs start from files in foreign formats, and from folders that were converted from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blip2_files import find, merge
from llava_files import original, write_folder
from torch import nn

from foreign_files import OPT_HEADS, lavis, write_lavis, write_tokenizer
from sightbridge.checkpoints.adapter import adapter_tensors
from sightbridge.checkpoints.convert import convert
from sightbridge.checkpoints.formats import Found
from sightbridge.checkpoints.init_from import init_from
from sightbridge.checkpoints.init_parts import fill_from_found
from sightbridge.checkpoints.sources.weights import Weights
from sightbridge.config.model import ModelSettings
from sightbridge.config.qformer_recipe import QFormerModelSettings
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.build import build_model
from sightbridge.models.build_qformer import build_qformer_model
from sightbridge.models.vision_tower import resample_positions
from sightbridge.models.vlm import VisionLanguageModel

FOUR = {"num_attention_heads": 4}
HEADS: dict[str, Any] = {"vision_tower": {"config": FOUR}, "connector": {"num_heads": 4}}
OPT: dict[str, Any] = HEADS | {"language_model": {"config": FOUR}}
TWO: dict[str, Any] = {"vision_tower": {"config": {"num_attention_heads": 2}}}


def fresh(path: Path, *changes: dict[str, Any]) -> VisionLanguageModel:
    """A model with random weights, built like the one in a file but for ``changes``."""
    settings = find(path).settings
    for change in changes:
        settings = merge(settings, change)
    return build_model(ModelSettings.model_validate(settings), seed=3)


@pytest.fixture
def opt(tmp_path: Path) -> Path:
    return write_lavis(tmp_path / "blip2_opt.pth", "stage2_opt_prompt")


def state() -> dict[str, torch.Tensor]:
    return lavis("stage2_opt_prompt")["state_dict"]


def weight(module: Any, name: str) -> torch.Tensor:
    return module.state_dict()[name]


def test_every_part_of_a_file_is_taken(opt: Path) -> None:
    model = fresh(opt, OPT)
    report = init_from(model, opt)
    assert [line.partition(":")[0] for line in report.taken] == ["vision_tower", "language_model", "connector"]
    assert torch.equal(weight(model.connector, "queries"), state()["query_tokens"])
    assert torch.equal(weight(model.connector, "output.weight"), state()["opt_proj.weight"])
    theirs = state()["opt_model.model.decoder.layers.0.fc1.weight"]
    assert torch.equal(weight(model.language_model, "model.model.decoder.layers.0.fc1.weight"), theirs)
    theirs = state()["visual_encoder.blocks.1.mlp.fc1.weight"]
    assert torch.equal(weight(model.vision_tower, "model.encoder.layers.1.mlp.fc1.weight"), theirs)
    for part in (model.vision_tower, model.connector, model.language_model):
        assert part.filled_by_init_from  # or a saved folder would not have these weights


def test_a_part_that_is_there_already_is_not_taken_again(opt: Path) -> None:
    model = fresh(opt, OPT)
    init_from(model, opt)
    again = init_from(model, opt)
    assert [line.partition(":")[0] for line in again.taken] == ["connector"]
    assert again.left == ["vision_tower: the same one is here", "language_model: the same one is here"]


def test_only_the_parts_asked_for_are_taken(opt: Path) -> None:
    model = fresh(opt, OPT)
    before = weight(model.language_model, "model.lm_head.weight").clone()
    report = init_from(model, opt, ["connector"])
    assert len(report.taken) == 1
    assert "language_model: not asked for (training.init_parts)" in report.left
    assert torch.equal(weight(model.language_model, "model.lm_head.weight"), before)


def test_a_language_model_of_another_build_is_left_and_the_projection_to_it_stays_fresh(opt: Path) -> None:
    model = fresh(opt, OPT, {"language_model": {"config": {"hidden_size": 48, "word_embed_proj_dim": 48}}})
    model.requires_grad_(False)
    with pytest.raises(SettingsError, match=r"let it train, training\.parts\.connector\.train=full"):
        init_from(model, opt)
    model.connector.requires_grad_(True)
    report = init_from(model, opt)
    assert any(line.startswith("language_model: another one is here than there") for line in report.left)
    assert any(
        "its projection, which begins with random weights: it leads to a language" in line for line in report.left
    )
    assert torch.equal(weight(model.connector, "queries"), state()["query_tokens"])
    with pytest.raises(CheckpointError, match=r"training.init_parts=\[connector\]"):
        init_from(model, opt, ["language_model"])


def test_a_part_that_is_half_there_is_an_error_that_lists_what_is_missing_by_class(tmp_path: Path, opt: Path) -> None:
    model = fresh(opt, OPT)
    for missing, message in [
        ("visual_encoder.blocks.1.", r"vision tower .*: \d+ missing: encoder.layers.1"),
        ("opt_model.model.decoder.layers.1.", r"language model .* missing: model.decoder.layers.1"),
        ("Qformer.bert.encoder.layer.0.output_query.", r"connector .* missing: qformer.encoder.layer.0.output_query"),
    ]:
        path = write_lavis(tmp_path / "half.pth", "stage2_opt_prompt", without=(missing,))
        with pytest.raises(CheckpointError, match=message):
            init_from(model, path)


def test_a_first_stage_leads_to_a_second(tmp_path: Path, opt: Path) -> None:
    first = write_lavis(tmp_path / "blip2_pretrained.pth", "stage1_loss_plain")
    qformer = find(first).settings["qformer"]
    same = {key: qformer[key] for key in ("num_queries", "hidden_size", "num_layers", "intermediate_size")}
    tower = merge(find(first).settings["vision_tower"], {"config": FOUR})
    model = fresh(opt, OPT, {"vision_tower": tower, "connector": same})
    projection = weight(model.connector, "output.weight").clone()
    report = init_from(model, first)
    theirs = lavis("stage1_loss_plain")["state_dict"]
    assert torch.equal(weight(model.connector, "queries"), theirs["query_tokens"])
    assert torch.equal(weight(model.connector, "output.weight"), projection)
    assert any("is of no use here" in line for line in report.left)


def test_another_number_of_heads_in_the_connector_is_not_overlooked(opt: Path) -> None:
    found = find(opt)
    known = replace(found, settings=merge(found.settings, {"connector": {"num_heads": 4}}))
    model = fresh(opt, OPT, {"connector": {"num_heads": 2}})
    with pytest.raises(CheckpointError, match=r"has 4 attention heads, .* here 2\. Set model\.connector\.num_heads=4"):
        fill_from_found(model, known, ["connector"], fresh_projection=False, after_another=False)


def test_a_first_stage_begins_as_another(tmp_path: Path) -> None:
    path = write_lavis(tmp_path / "blip2_pretrained.pth", "stage1_loss_plain")
    settings = merge(find(path).settings, {"vision_tower": {"config": FOUR}, "qformer": {"num_heads": 4}})
    model = build_qformer_model(QFormerModelSettings.model_validate(settings), seed=3)
    report = init_from(model, path)
    assert [line.partition(":")[0] for line in report.taken] == ["vision_tower", "qformer"]
    theirs = lavis("stage1_loss_plain")["state_dict"]
    assert model.qformer.temperature.item() == theirs["temp"].item()
    second = write_lavis(tmp_path / "second.pth", "stage2_opt_prompt")
    with pytest.raises(CheckpointError, match=r"Q-Former there is not built .* missing: .*itm_head"):
        init_from(model, second, ["qformer"])


def test_adapters_of_a_lora_run_are_taken(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "vip", *original("vip_tiny"), "safetensors")
    lora = {"lora": {"targets": ["q_proj"], "r": 2, "alpha": 4}}
    model = fresh(path, TWO, lora)
    names = {f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_{m}.weight" for n in (0, 1) for m in "AB"}
    wanted = adapter_tensors(model.language_model)
    assert wanted.keys() == names
    there = {f"adapter.{name}": torch.randn_like(wanted[name]) for name in names}
    found = Found("llava-lora", "a LoRA run", Weights.of(there), "generation", {})
    assert fill_from_found(model, found, None, False, False).taken == ["adapters: 384 weights"]
    assert all(torch.equal(wanted[name], there[f"adapter.{name}"]) for name in names)
    one = Found("llava-lora", "half a run", Weights.of(dict([there.popitem()])), "generation", {})
    with pytest.raises(CheckpointError, match=r"not those of model\.lora here: 3 missing"):
        fill_from_found(model, one, None, False, False)


def test_position_tables_of_another_picture_size_are_resampled(opt: Path) -> None:
    model = fresh(opt, OPT, {"vision_tower": {"config": {"image_size": 84}}, "image": {"size": 84}})
    init_from(model, opt, ["vision_tower"])
    whole = fresh(opt, OPT)
    init_from(whole, opt, ["vision_tower"])
    ours, theirs = model.vision_tower.model.state_dict(), whole.vision_tower.model.state_dict()
    table = "embeddings.position_embedding"
    assert torch.equal(ours[table], resample_positions(whole.vision_tower.model, theirs.pop(table), 84))
    for name, expected in theirs.items():
        assert torch.equal(ours[name], expected), name


def test_a_llava_folder_with_more_blocks_than_the_tower_here(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "vip", *original("vip_tiny"), "safetensors")
    model = fresh(path, TWO)
    report = init_from(model, path)
    assert len(report.taken) == 3
    theirs = original("vip_tiny")[0]["model.mm_projector.clip_layernorm.weight"]
    assert torch.equal(weight(model.connector, "input_norm.weight"), theirs)


def test_flant5_keeps_a_head_of_its_own(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "flant5", *original("clipt5_tiny"), "bin in two")
    model = fresh(path, TWO)
    init_from(model, path)
    head = weight(model.language_model, "model.lm_head.weight")
    assert torch.equal(head, original("clipt5_tiny")[0]["lm_head.weight"])
    assert not torch.equal(head, weight(model.language_model, "model.shared.weight"))


def test_parts_inside_a_converted_folder_fill_those_of_the_same_build(tmp_path: Path, opt: Path) -> None:
    words = str(write_tokenizer(tmp_path / "words", 47))
    folder = convert(opt, tmp_path / "converted", tokenizer=words, settings=OPT_HEADS).folder
    model = fresh(opt, OPT)
    report = init_from(model, folder)
    assert [line.partition(":")[0] for line in report.taken] == ["vision_tower", "connector", "language_model"]
    theirs = state()["opt_model.model.decoder.layers.0.fc1.weight"]
    assert torch.equal(weight(model.language_model, "model.model.decoder.layers.0.fc1.weight"), theirs)
    again = init_from(model, folder)
    assert "language_model: not stored there; the same one is here" in again.left
    wide = fresh(opt, OPT, {"language_model": {"config": {"hidden_size": 48, "word_embed_proj_dim": 48}}})
    left = init_from(wide, folder).left
    assert any(line.startswith("language_model: another one is here than there") for line in left)


def test_what_trained_of_a_connector_goes_over_what_its_training_started_from(tmp_path: Path, opt: Path) -> None:
    projection = {"llm_proj.weight": torch.ones_like(state()["opt_proj.weight"]), "llm_proj.bias": torch.ones(40)}
    torch.save({"model": projection, "epoch": 3}, tmp_path / "checkpoint_3.pth")
    model = fresh(opt, OPT)
    with pytest.raises(CheckpointError, match=r"only what was trained of a connector .*init_from=\[START,THIS\]"):
        init_from(model, tmp_path / "checkpoint_3.pth")
    init_from(model, opt)
    report = init_from(model, tmp_path / "checkpoint_3.pth", after_another=True)
    assert "the rest as it was before" in report.taken[0]
    assert torch.equal(weight(model.connector, "output.bias"), torch.ones(40))
    assert torch.equal(weight(model.connector, "queries"), state()["query_tokens"])


class Bridgeless(nn.Module):
    """A model that nothing fits."""


def test_what_is_of_no_use_is_told(opt: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"holds nothing to start this model with \(vision_tower: there is no such"
    ):
        init_from(Bridgeless(), opt)
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"of no known format. It has 1 weights: fc.weight"):
        init_from(Bridgeless(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no such model folder"):
        init_from(Bridgeless(), tmp_path / "nothing")


def test_towers_of_other_widths_are_told_and_not_resampled(tmp_path: Path, opt: Path) -> None:
    """CLIP's and SigLIP's weights have the same names, so that only shapes tell them apart."""
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    siglip |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    source = write_folder(tmp_path / "vip", *original("vip_tiny"), "safetensors")
    settings = merge(merge(find(source).settings, TWO), {"image": {"size": 28}, "connector": {"kind": "linear"}})
    settings["vision_tower"] = {"config": siglip, "layers": [-1]}
    settings["connector"] = {"kind": "linear"}
    model = build_model(ModelSettings.model_validate(settings))
    report = init_from(model, source, parts=["language_model"])
    assert report.taken[0].startswith("language_model")
    with pytest.raises(CheckpointError, match=r"vision tower there is not that of the model here: .*shaped"):
        init_from(model, source, parts=["vision_tower"])


def test_a_q_former_is_no_projector(tmp_path: Path, opt: Path) -> None:
    settings = merge(find(opt).settings, OPT) | {"connector": {"kind": "mlp"}}
    with pytest.raises(CheckpointError, match=r"holds a Q-Former .* model\.connector\.kind=qformer"):
        init_from(build_model(ModelSettings.model_validate(settings)), opt)
