"""Folders of models of which only the projection trained: they hold it alone, and find the rest where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sightbridge.checkpoints.folder import load_model, save_model
from sightbridge.checkpoints.init_from import init_from
from sightbridge.config.model import ModelSettings
from sightbridge.config.training import PartsSettings
from sightbridge.data.processor import Processor
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import CheckpointError
from sightbridge.models.build import build_model
from sightbridge.models.parts import set_trainable
from small_models import LLAMA, TOKENIZERS, TOWER

SETTINGS = ModelSettings.model_validate(
    {
        "vision_tower": {"config": TOWER},
        "connector": {
            "kind": "qformer",
            "num_queries": 3,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 24,
        },
        "language_model": {"config": LLAMA, "tokenizer": str(TOKENIZERS / "llama")},
        "prompt": {"template": "vicuna_v1"},
        "image": {"size": 32},
    }
)
ONLY_OUTPUT = PartsSettings.model_validate({"connector": {"only": ["output"]}})


def build(seed: int, start: Path | None, parts: PartsSettings = ONLY_OUTPUT) -> Any:
    """A model that starts from a folder, and that a step has changed where it trains."""
    model = build_model(SETTINGS, seed=seed)
    set_trainable(model, parts)
    if start:
        init_from(model, start)
    for parameter in model.connector.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    processor = Processor(
        load_tokenizer(TOKENIZERS / "llama"),
        SETTINGS.prompt,
        SETTINGS.image,
        tokens_per_image=3,
        encoder_decoder=False,
    )
    return save_model(model, processor, SETTINGS, folder, trained_parts=["connector"], **options)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Any]:
    """A model whose connector trained as a whole, and one that went on from it, its projection alone."""
    whole = save(build(1, None, PartsSettings()), tmp_path / "runs" / "whole")
    model = build(2, whole)
    return whole, save(model, tmp_path / "runs" / "aligned"), model


def same_connector(a: Any, b: Any) -> bool:
    theirs = b.connector.state_dict()
    return all(torch.equal(weight, theirs[name]) for name, weight in a.connector.state_dict().items())


def test_the_projection_alone_is_stored_and_the_whole_comes_back(folders: Any) -> None:
    whole, aligned, model = folders
    stored = load_file(aligned / "connector.safetensors")
    assert set(stored) == {"output.weight", "output.bias"}
    sizes = [(folder / "connector.safetensors").stat().st_size for folder in (whole, aligned)]
    print(f"connector.safetensors: {sizes[0]:,} bytes as a whole, {sizes[1]:,} of the projection")
    assert sizes[1] < sizes[0] / 4
    assert same_connector(load_model(aligned)[0], model)


def test_folders_that_move_together_find_each_other(folders: Any, tmp_path: Path) -> None:
    _, _, model = folders
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    assert same_connector(load_model(tmp_path / "elsewhere" / "aligned")[0], model)


def test_a_rest_that_is_gone_or_another_one_is_told(folders: Any, tmp_path: Path) -> None:
    whole, aligned, model = folders
    shutil.move(whole, tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"holds only output of its connector; the rest was in .*whole"):
        load_model(aligned)
    assert same_connector(load_model(aligned, sources={"connector": str(tmp_path / "moved")})[0], model)
    save(build(5, None, PartsSettings()), whole)
    with pytest.raises(CheckpointError, match="is not the one that this model was trained with"):
        load_model(aligned)


def test_a_run_goes_on_from_the_projections_folder(folders: Any, tmp_path: Path) -> None:
    whole, aligned, model = folders
    again = build(7, aligned)
    assert torch.equal(again.connector.queries, model.connector.queries)
    second = save(again, tmp_path / "runs" / "second")
    manifest = json.loads((second / "sightbridge.json").read_text())
    assert manifest["parts"]["connector"]["rest"] == ["../whole", str(whole)]
    assert same_connector(load_model(second)[0], again)
    all_of_it = build(8, aligned, PartsSettings())  # the whole connector trains: it is stored as a whole
    third = save(all_of_it, tmp_path / "third")
    assert len(load_file(third / "connector.safetensors")) > 10
    started = build_model(SETTINGS, seed=9)
    init_from(started, aligned)
    assert same_connector(started, model)


def test_a_projection_that_begins_anew_is_all_that_is_stored(folders: Any, tmp_path: Path) -> None:
    """As MiniGPT4Qwen starts from a second stage with FlanT5, whose projection leads elsewhere."""
    whole, aligned, _ = folders
    for start in (whole, aligned):
        model = build_model(SETTINGS, seed=11)
        set_trainable(model, ONLY_OUTPUT)
        init_from(model, start, fresh_projection=True)
        saved = save(model, tmp_path / "runs" / f"fresh-{start.name}")
        assert set(load_file(saved / "connector.safetensors")) == {"output.weight", "output.bias"}
        assert same_connector(load_model(saved)[0], model)


def test_everything_is_stored_if_it_is_to_be_or_the_rest_is_nowhere(folders: Any, tmp_path: Path) -> None:
    whole, _, model = folders
    alone = save(model, tmp_path / "alone", self_contained=True)
    fresh = build(3, None)  # a Q-Former with random weights that no folder holds
    nowhere = save(fresh, tmp_path / "nowhere")
    shutil.rmtree(whole)
    assert same_connector(load_model(alone)[0], model)
    assert same_connector(load_model(nowhere)[0], fresh)
    late = save(model, tmp_path / "late")  # what it started from was deleted meanwhile
    assert same_connector(load_model(late)[0], model)
