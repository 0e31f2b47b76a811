"""``sightbridge data scenes``, ``inspect data`` and ``inspect model``."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from cli_workplace import Workplace, run_command
from PIL import Image

from sightbridge.data.scenes.write import ANNOTATIONS

ROW = {
    "id": "a",
    "image": "images/train/00000.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A star."},
        {"from": "human", "value": "[bold]Where?"},
        {"from": "gpt", "value": "On top."},
    ],
}


def value_of(name: str, text: str) -> str:
    (value,) = re.findall(rf"^{name} +(\S.*?)\s*$", text, re.MULTILINE)
    return value


def test_scenes_are_written_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    options = ["--train", 3, "--test", 4, "--languages", "en, es", "--size", 40, "--questions", 2]
    assert run_command("data", "scenes", out, *options, "--set", "digits", "--one-question-per-row") == 0
    text, err = capsys.readouterr()
    assert err == ""
    rows = {line.split()[0]: line.split()[1:3] for line in text.splitlines() if line.strip().startswith(str(out))}
    for name, (count, data_format) in rows.items():
        assert len(json.loads(Path(name).read_text())) == int(count), name
        assert data_format in ("llava", "coco_caption", "vqa", "mblip", "minigpt4qwen", "vip_llava", "boxes,", "two")
    assert len(rows) == len(ANNOTATIONS)
    train = json.loads((out / "train.json").read_text())
    assert {row["language"] for row in train} == {"en", "es"}
    assert all(len(row["conversations"]) == 2 for row in train)
    before = (out / "train.json").read_bytes()
    assert run_command("data", "scenes", out, *options, "--set", "digits", "--one-question-per-row") == 0
    assert (out / "train.json").read_bytes() == before


def test_scenes_refuse(workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert run_command("data", "scenes", tmp_path) == 1
    assert "holds other files" in capsys.readouterr().err
    assert run_command("data", "scenes", tmp_path / "new", "--languages", "en,fr") == 1
    assert capsys.readouterr().err.startswith("error: scenes know no language 'fr'")
    assert not (tmp_path / "new").exists()
    assert run_command("data", "scenes", tmp_path / "new", "--set", "shape") == 2


def test_turns_are_shown_without_a_model(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    file = workplace.scenes / workplace.write_rows("sample.json", [ROW, ROW | {"language": "de"}])
    assert run_command("inspect", "data", file, "--format", "llava", "--count", 1) == 0
    text = capsys.readouterr().out
    assert "user: [image]\nWhat is it?\nassistant: ⟦A star.⟧\nuser: [bold]Where?\nassistant: ⟦On top.⟧\n" in text
    assert text.count("⟦") == 2, "only one record is asked for"
    assert [value_of(name, text) for name in ("records", "without target", "pictures", "languages")] == [
        "2",
        "0",
        "1",
        "en 1, de 1",
    ]


def test_a_template_is_shown_without_a_tokenizer(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    file = workplace.scenes / workplace.write_rows("sample.json", [ROW])
    assert run_command("inspect", "data", file, "--format", "llava", "--template", "vicuna_v1") == 0
    text = capsys.readouterr().out
    assert "USER: [image]\nWhat is it? ASSISTANT:⟦ A star.</s>⟧USER: [bold]Where? ASSISTANT:⟦ On top.</s>⟧" in text


def test_tokens_are_shown_with_a_model(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    no_target = ROW | {"conversations": ROW["conversations"][:1]}
    file = workplace.scenes / workplace.write_rows("sample.json", [ROW, no_target])
    command = ["inspect", "data", file, "--format", "llava"]
    assert run_command(*command, "--model", workplace.model) == 0
    with_model = capsys.readouterr().out
    assert "[image x 4]\nWhat is it? ASSISTANT:⟦ A star.</s>⟧USER: [bold]Where? ASSISTANT:⟦ On top.</s>⟧" in with_model
    assert "nothing to learn in it" in with_model
    assert value_of("without target", with_model) == "1"
    from sightbridge.checkpoints.folder import load_processor
    from sightbridge.data.readers.llava import read_llava

    record = next(read_llava(file, workplace.scenes))
    encoded = load_processor(workplace.model).encode(record)
    assert value_of("tokens", with_model) == f"{len(encoded.input_ids)}.0 on average, {len(encoded.input_ids)} at most"
    assert value_of("targets", with_model).startswith(f"{encoded.n_target_tokens}.0 on average")
    options = ["--template", "t5_v1", "--tokenizer", workplace.tokenizer, "--tokens-per-image", 9, "--row", 1]
    assert run_command(*command, *options) == 0
    text = capsys.readouterr().out
    assert "[image x 9]" in text
    assert "\ndecoder: ⟦On top.</s>⟧" in text, "an encoder-decoder learns the last answer alone"


def test_marks_are_shown_and_saved(workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"from": "human", "value": "<image>\nWhat is <bbox>?"}, {"from": "gpt", "value": "A star."}]
    rows = [ROW, ROW | {"id": "b", "bbox": [3, 4, 20, 25], "conversations": asked}]
    rows.append(rows[1] | {"shape": "rectangle", "color": "lime", "alpha": 255, "width": 3})
    file = workplace.scenes / workplace.write_rows("regions.json", rows)
    command = ["inspect", "data", file, "--format", "vip_llava", "--save-marked", tmp_path / "marked"]
    assert run_command(*command) == 0
    text = capsys.readouterr().out
    assert "marked: lime rectangle at 3, 4, 20, 25\n\nuser: [image]\nWhat is within the lime rectangle?\n" in text
    assert text.count("marked: ") == 2
    assert sorted(path.name for path in (tmp_path / "marked").iterdir()) == ["record-2.png", "record-3.png"]
    assert str(tmp_path / "marked" / "record-3.png") in text
    with Image.open(tmp_path / "marked" / "record-3.png") as picture:
        assert picture.getpixel((3, 10)) == (0, 255, 0)
    drawn = set()
    for epoch in range(4):
        assert run_command(*command, "--row", 2, "--epoch", epoch, "--model", workplace.model) == 0
        drawn.add(capsys.readouterr().out.partition("marked: ")[2].partition(" at ")[0])
    assert len(drawn) > 2, "every epoch draws anew"
    outside = rows[2] | {"bbox": [300, 4, 320, 25]}
    (workplace.scenes / "regions.json").write_text(json.dumps([ROW, outside]))
    assert run_command(*command) == 1
    assert "regions.json, row 2: the box 300,4,320,25 lies outside" in capsys.readouterr().err
    assert run_command(*command[:5], "--regions", "exakt") == 1
    assert "Did you mean 'exact'?" in capsys.readouterr().err


def test_inspect_data_refuses(workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    markers = ROW | {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A star."}]}
    file = workplace.scenes / workplace.write_rows("sample.json", [ROW])
    wrong = workplace.scenes / workplace.write_rows("wrong.json", [ROW, markers])
    expected = {
        (tmp_path / "none.json", "--format", "llava"): "none.json: cannot read the annotation file",
        (file, "--format", "lava"): "Did you mean 'llava'?",
        (wrong, "--format", "llava"): "wrong.json, row 2",
        (file, "--format", "llava", "--row", 2): "there is no record 2; it holds 1",
        (file, "--format", "llava", "--template", "vicunna_v1"): "Did you mean 'vicuna_v1'?",
        (file, "--format", "llava", "--tokenizer", workplace.tokenizer): "--tokenizer needs a --template",
        (file, "--format", "llava", "--model", workplace.run): f"Did you mean {workplace.model}?",
        (file, "--format", "llava", "--model", workplace.model, "--template", "plain"): "--model brings its own",
    }
    for arguments, message in expected.items():
        assert run_command("inspect", "data", *arguments) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert message in err


def test_a_model_is_described(workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shutil.copytree(workplace.model, tmp_path / "model")
    (model / "language_model.safetensors").unlink()
    assert run_command("inspect", "model", model) == 0
    text = capsys.readouterr().out
    assert value_of("template", text) == "vicuna_v1"
    assert value_of("recipe", text) == "tiny/random"
    assert value_of("picture", text).startswith("squash to 32 x 32 pixels") and "4 tokens each" in text
    rows = {line.strip().partition("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["connector"][-3:] == ["3,936", "float32", "trained"]
    assert rows["vision tower"][-1] == "frozen"
    assert "the file is missing" in text, "it is told without the weights"


@pytest.mark.parametrize("words", [["model", "{scenes}"], ["model", "{run}"], ["model", "{scenes}/train.json"]])
def test_inspect_model_refuses(words: list[str], workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [word.format(scenes=workplace.scenes, run=workplace.run) for word in words]
    assert run_command("inspect", *arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "sightbridge.json" in err


@pytest.mark.parametrize("verb", [["data", "scenes"], ["inspect", "data"], ["inspect", "model"], ["inspect", "recipe"]])
def test_help_has_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(*verb, "--help") == 0
    assert f"sightbridge {' '.join(verb)}" in capsys.readouterr().out.split("Example", 1)[1]


def test_a_referenced_part_is_named_by_its_source(tmp_path: Path) -> None:
    from sightbridge.checkpoints.describe import PartDescription
    from sightbridge.cli.inspect_model import _kind

    (tmp_path / "config.json").write_text('{"model_type": "clip_vision_model"}')
    kinds = [
        _kind(PartDescription("vision_tower", "as its source says", False, source, False, 1, "float32", None))
        for source in (str(tmp_path), str(tmp_path / "gone"), "embedded:gone")
    ]
    assert kinds == ["clip_vision_model", "as its source says", "as its source says"]
