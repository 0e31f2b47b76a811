"""``sightbridge export`` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from export_models import save
from sightbridge.cli.main import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def test_to_transformers_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save("llava", tmp_path / "m")
    assert run("export", tmp_path / "m", tmp_path / "hf", "--to", "hf", "--dtype", "bfloat16") == 0
    told = capsys.readouterr().out
    assert f"LlavaForConditionalGeneration of transformers written to {tmp_path / 'hf'}." in told
    assert "no free row for `<image>`" in told
    assert AutoConfig.from_pretrained(tmp_path / "hf").text_config.vocab_size == 901
    assert (tmp_path / "hf" / "README.md").is_file()
    wrong = {
        ("--to", "hff"): "unknown target 'hff'. Known: hf, lavis, llava, paddle, adapter, language_model, projector",
        ("--to", "hf", "--dtype", "half"): "--dtype: unknown type 'half'. Known: float32, float16, bfloat16.",
        ("--to", "hf", "--source", "tower"): "--source: expected PART=FOLDER",
        ("--to", "hf", "--source", "vision_tower=x"): "'vision_tower' is not a referenced part",
        ("--to", "hf", "--merge"): "no adapters, so there is nothing to merge",
        ("--to", "hf", "--prefix", "mm_projector."): "--prefix: only --to projector",
        ("--to", "lavis"): "its connector is a mlp and LAVIS' BLIP-2 has a Q-Former",
    }
    for options, message in wrong.items():
        assert run("export", tmp_path / "m", tmp_path / "x", *options) == 1
        assert message in capsys.readouterr().err, options
    assert not (tmp_path / "x").exists()


def test_the_projector_by_both_names(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save("vip", tmp_path / "m")
    for name in ("projector", "mm_projector"):
        assert run("export", tmp_path / "m", tmp_path / f"{name}.bin", "--to", name) == 0
        assert f"weights of the connector written to {tmp_path / name}.bin" in capsys.readouterr().out
    assert (tmp_path / "projector.bin").read_bytes()[:2] == b"PK"


def test_lora_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save("blip2-t5", tmp_path / "m", ("connector", "language_model"), lora={"preset": "lora", "r": 2})
    assert run("export", tmp_path / "m", tmp_path / "apart", "--to", "hf") == 0
    assert "The adapters are apart, in `adapter/`" in capsys.readouterr().out
    config = json.loads((tmp_path / "apart" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "apart")
    assert run("export", tmp_path / "m", tmp_path / "inside", "--to", "hf", "--merge") == 0
    assert not (tmp_path / "inside" / "adapter").exists()
    assert run("export", tmp_path / "m", tmp_path / "x", "--to", "adapter") == 1
    assert "is stored in the model folder and has no name of its own" in capsys.readouterr().err


def test_what_a_projector_has_no_use_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save("llava", tmp_path / "m")
    out = tmp_path / "mm_projector.bin"
    assert run("export", tmp_path / "m", out, "--to", "projector", "--dtype", "bfloat16") == 1
    assert "--dtype: --to projector writes the connector alone" in capsys.readouterr().err
    assert not out.exists()
