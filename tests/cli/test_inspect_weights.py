"""``sightbridge inspect model`` of weights in other formats."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_workplace import run_command
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, CLIPVisionModel, OPTConfig, OPTForCausalLM

GOLDEN = Path(__file__).parents[1] / "golden"


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The facts by name, and the rows of the table."""
    capsys.readouterr()
    assert run_command("inspect", "model", path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    facts = dict(re.findall(r"^(\S[\w. ]{0,15}?) {2,}(\S.*?)\s*$", out, re.MULTILINE))
    facts["next"] = out.rpartition("next: ")[2].strip()
    rows = {fields[0]: fields[1:] for line in out.splitlines() if len(fields := re.split(r" {2,}", line.strip())) > 3}
    return facts, rows


def test_a_whole_model(capsys: pytest.CaptureFixture[str]) -> None:
    path = GOLDEN / "paddle" / "tiny_blip2_full.pdparams"
    facts, rows = inspected(path, capsys)
    assert facts["container"] == "paddle, 1 file, 287.7 KiB, 158 tensors"
    assert facts["format"].startswith("PaddleMIX")
    assert facts["template"] == "blip2_plain"
    assert rows["vision tower"] == ["28", "29,512", "115.3 KiB", "float32"]
    assert set(rows) == {"part", "vision tower", "connector", "language model"}
    assert facts["next"] == f"sightbridge convert {path} OUT"


def test_a_bridge_alone_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {
        "0.weight": torch.ones(8, 4),
        "0.bias": torch.ones(8),
        "2.weight": torch.ones(8, 8),
        "2.bias": torch.ones(8),
    }
    path = tmp_path / "my projector.bin"
    torch.save({f"model.mm_projector.{name}": tensor.half() for name, tensor in weights.items()}, path)
    facts, rows = inspected(path, capsys)
    assert rows["connector"] == ["4", "112", "0.2 KiB", "float16"]
    assert rows["vision tower"][-1] == rows["language model"][-1] == "not in it"
    assert facts["next"] == f"sightbridge convert '{path}' OUT --vision NAME_OR_PATH --language-model NAME_OR_PATH"


def test_a_run_that_saved_only_what_it_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MiniGPT4Qwen's checkpoint_N.pth holds the projection alone; the Q-Former is in the file it started from."""
    path = tmp_path / "checkpoint_9.pth"
    torch.save({"model": {"llm_proj.weight": torch.ones(8, 4), "llm_proj.bias": torch.ones(8)}, "epoch": 9}, path)
    facts, rows = inspected(path, capsys)
    assert rows["rest of the connector"][-1] == "not in it"
    parts = "--vision NAME_OR_PATH --language-model NAME_OR_PATH --bridge NAME_OR_PATH"
    assert facts["next"] == f"sightbridge convert {path} OUT {parts}"


def test_what_lies_beside_the_tensors_is_told_and_cannot_move_the_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(GOLDEN / "lavis" / "stage1_loss_plain.pt", weights_only=True)
    beside = {"epoch": 7, "note": "\x1b[2J" + "x" * 200, "config": {"run": 1}, "optimizer": {"step": torch.ones(1)}}
    torch.save({"model": content["state_dict"], **beside}, tmp_path / "checkpoint_7.pth")
    facts, rows = inspected(tmp_path / "checkpoint_7.pth", capsys)
    assert facts["beside"].startswith("epoch 7, note ?[2Jxxx") and facts["beside"].endswith("x…")
    assert (facts["tables beside"], facts["not read"]) == ("config", "optimizer")
    assert "Q-Former" in rows and "language model" not in rows


def test_huggingface_parts_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = OPTConfig(vocab_size=30, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=8, **size)
    OPTForCausalLM(text).save_pretrained(tmp_path / "opt")
    facts, rows = inspected(tmp_path / "opt", capsys)
    assert facts["holds"].startswith("a Hugging Face language model (opt)")
    assert "language model" in rows
    assert f"model.language_model.source={tmp_path / 'opt'}" in facts["next"]
    tower = CLIPVisionConfig(image_size=8, patch_size=4, intermediate_size=16, **size)
    CLIPVisionModel(tower).save_pretrained(tmp_path / "clip")
    facts, _ = inspected(tmp_path / "clip", capsys)
    assert "model.vision_tower.source=" in facts["next"]


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'mark'}",)

    torch.save({"w": Evil()}, tmp_path / "evil.bin")
    torch.save({"w": torch.ones(2)}, tmp_path / "other.bin")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    expected = {
        "evil.bin": "names 'posix.system'",
        "other.bin": "of no known format. It has 1 weights: w* (1)",
        "empty": "no sightbridge.json in it; it is not a model folder. Nor does it hold weights in another format.",
        "text": "not a file of weights",
        "none": "no such file or folder",
    }
    for name, message in expected.items():
        assert run_command("inspect", "model", tmp_path / name) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert message in err
    assert not (tmp_path / "mark").exists()


def test_a_folder_of_paddlemix_whose_configuration_transformers_cannot_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts, _ = inspected(GOLDEN / "paddle", capsys)
    assert facts["format"].startswith("PaddleMIX")


@pytest.mark.parametrize("path", [".", "/"])
def test_folders_without_a_name(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command("inspect", "model", path) == 1
    assert "it is not a model folder" in capsys.readouterr().err


def test_adapters_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    language_model = OPTForCausalLM(
        OPTConfig(vocab_size=40, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2)
    )
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])
    get_peft_model(language_model, config).save_pretrained(tmp_path / "lora")
    facts, rows = inspected(tmp_path / "lora", capsys)
    assert facts["holds"].startswith("LoRA adapters for peft (r 4, alpha 8)")
    assert rows["adapters"][:2] == ["2", "128"]
    assert f"training.init_from={tmp_path / 'lora'}" in facts["next"]
