"""How much memory a model takes, known before it is loaded."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sightbridge.checkpoints import footprint as room
from sightbridge.checkpoints.folder import load_model, save_model
from sightbridge.checkpoints.footprint import Footprint, Memory, footprint, tell_problem
from sightbridge.config.model import ModelSettings
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.build import build_model
from small_models import LLAMA, T5, TOWER, make_processor

GIB = 2**30


def saved(folder: Path, language_model: dict[str, Any], kind: str = "llama") -> Path:
    is_t5 = kind == "t5"
    settings = ModelSettings.model_validate(
        {
            "vision_tower": {"config": TOWER, "class_token": "drop"},
            "connector": {"kind": "linear"},
            "language_model": language_model,
            "prompt": {"template": "t5_v1" if is_t5 else "vicuna_v1"},
        }
    )
    processor = make_processor(settings.prompt.template, kind, encoder_decoder=is_t5)
    return save_model(build_model(settings), processor, settings, folder, trained_parts=["connector"])


@pytest.mark.parametrize(
    ("kind", "config", "dtype"),
    [
        ("llama", LLAMA, "float32"),
        ("llama", LLAMA, "bfloat16"),
        ("t5", T5 | {"feed_forward_proj": "gated-gelu"}, "float32"),
    ],
)
def test_weights_and_cache_are_what_loading_makes(
    kind: str, config: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", {"config": config, "dtype": dtype}, kind)
    found = footprint(folder)
    model, _ = load_model(folder)
    for name, size in found.parts.items():
        tensors = {
            p.data_ptr(): p for p in [*model.get_submodule(name).parameters(), *model.get_submodule(name).buffers()]
        }
        held = sum(tensor.nbytes for tensor in tensors.values())
        assert held <= size <= held + 8000  # the header of the file
    linear = sum(
        module.weight.numel()
        for name, module in model.language_model.model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(("lm_head", ".wo"))
    )
    norms = sum(p.numel() for p in model.language_model.parameters() if p.dim() == 1)
    assert linear <= found.linear <= linear + norms + 300  # T5's position biases
    language_model = model.language_model.model
    if kind == "llama":
        cache = language_model(torch.ones(1, 10, dtype=torch.long), use_cache=True).past_key_values
        made = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert found.cache == pytest.approx(made / 10 * found.tokens)
        assert found.tokens == 2048


def test_nothing_is_loaded_and_sources_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LlamaForCausalLM(LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"})).save_pretrained(
        tmp_path / "lm"
    )
    folder = saved(tmp_path / "model", {"source": str(tmp_path / "lm")})
    monkeypatch.setattr("safetensors.torch.load_file", None)
    here = footprint(folder)
    assert here.cache and here.linear
    (tmp_path / "lm").rename(tmp_path / "moved")
    gone = footprint(folder)
    assert gone.parts == here.parts and not gone.cache
    assert footprint(folder, {"language_model": str(tmp_path / "moved")}) == here
    manifest = json.loads((folder / "sightbridge.json").read_text())
    assert here.parts["language_model"] == 4 * manifest["parts"]["language_model"]["parameters"]
    with pytest.raises(CheckpointError, match="no such model folder"):
        footprint(tmp_path / "none")


SEVEN = Footprint(
    {"vision_tower": 2 * GIB, "connector": GIB, "language_model": 13 * GIB},
    stored=GIB,
    linear=6 * GIB,
    linear_bytes=12 * GIB,
    cache=GIB,
    tokens=4096,
)
"""About a 7B model in 16 bits."""


def test_quantised_layers_take_less_once_loaded() -> None:
    assert SEVEN.kept() == 17 * GIB
    assert SEVEN.kept("8bit") == replace(SEVEN, quantize="8bit").kept() == 11 * GIB
    assert SEVEN.kept("nf4") == pytest.approx((17 - 12 + 6 * 0.5625) * GIB)
    assert SEVEN.needed("cpu", "nf4") == SEVEN.needed("cpu") > 17 * GIB  # it is loaded in full first


@pytest.mark.parametrize(
    ("memory", "cpu_free", "expected"),
    [
        (Memory("cpu", 20 * GIB, 32 * GIB), 20, None),
        (Memory("cuda", 20 * GIB, 24 * GIB), 20, None),
        (Memory("cpu", 16 * GIB, 32 * GIB), 16, "about 17.4 GiB, but 16.0 GiB of the CPU's memory are free"),
        (
            Memory("cuda", 12 * GIB, 24 * GIB),
            32,
            r"What would fit: --load-in 8bit \(11.5 GiB\), --load-in 4bit \(8.9 GiB\), --device-map auto, --cpu \(17.4",
        ),
        (Memory("cuda", 9 * GIB, 24 * GIB), 16, r"What would fit: --load-in 4bit \(8.9 GiB\), --device-map auto\.$"),
    ],
)
def test_what_is_said(memory: Memory, cpu_free: int, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda device: Memory(device, cpu_free * GIB, 64 * GIB))
    said = tell_problem(SEVEN, memory)
    if expected is None:
        assert said is None
    else:
        assert said and re.search(expected, said), said
    assert tell_problem(SEVEN, memory, spread=True) is None


def test_the_impossible_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda device: Memory(device, 8 * GIB, 8 * GIB))
    with pytest.raises(SettingsError, match=r"but there are only 8.0 GiB of the CPU's memory in all\. Take a smaller"):
        tell_problem(SEVEN, Memory("cpu", 7 * GIB, 8 * GIB))
    with pytest.raises(
        SettingsError, match=r"only 10.0 GiB of the GPU's memory in all\. What would fit: --load-in 4bit"
    ):
        tell_problem(SEVEN, Memory("cuda", 9 * GIB, 10 * GIB))
