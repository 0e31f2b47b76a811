"""``sightbridge features``: tensors of pictures, of texts and of pairs, of both kinds of models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_workplace import Workplace, run_command
from safetensors import safe_open
from safetensors.torch import load_file

import sightbridge
from sightbridge.checkpoints.folder import save_model
from sightbridge.config.qformer_recipe import QFormerModelSettings
from sightbridge.data.qformer_processor import QFormerProcessor, load_caption_tokenizer
from sightbridge.images.load import load_image
from sightbridge.models.build_qformer import build_qformer_model

VISION = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
QFORMER = {"num_queries": 3, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def first_stage(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = load_caption_tokenizer(str(workplace.tokenizer))
    settings = QFormerModelSettings.model_validate(
        {
            "vision_tower": {"config": {**VISION, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}},
            "qformer": {**QFORMER, "projection_size": 8, "text_vocabulary": len(tokenizer)},
            "text": {"tokenizer": str(workplace.tokenizer), "max_length": 12},
            "image": {"size": 32},
        }
    )
    processor = QFormerProcessor(tokenizer, settings.text, settings.image)
    folder = tmp_path_factory.mktemp("first") / "model"
    save_model(build_qformer_model(settings, seed=1), processor, settings, folder, trained_parts=["qformer"])
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("a red circle\nzwei blaue Sterne oben links\nnothing\na star\n", "utf-8")
    return path


def test_pairs_have_everything_whatever_the_batch_size(
    workplace: Workplace, first_stage: Path, texts: Path, tmp_path: Path
) -> None:
    found = []
    for size in (1, 4):
        out = tmp_path / f"{size}.safetensors"
        command = ["features", first_stage, workplace.picture.parent, "--texts", texts, "--out", out]
        assert run_command(*command, "--batch-size", size) == 0
        found.append(load_file(out))
    shapes = {name: tuple(tensor.shape) for name, tensor in found[0].items()}
    assert shapes == {
        "image_embeds": (4, 3, 16),
        "image_embeds_proj": (4, 3, 8),
        "text_embeds": (4, 16),
        "text_embeds_proj": (4, 8),
        "multimodal_embeds": (4, 3, 16),
        "itm": (4,),
        "itc": (4,),
    }
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=1e-5), name
    similarity = torch.einsum("nqp,np->nq", found[0]["image_embeds_proj"], found[0]["text_embeds_proj"]).amax(1)
    assert torch.allclose(similarity, found[0]["itc"], atol=1e-5)
    assert ((found[0]["itm"] > 0) & (found[0]["itm"] < 1)).all()
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["texts"])[1] == "zwei blaue Sterne oben links"
        assert len(json.loads(file.metadata()["pictures"])) == 4


def test_pictures_and_texts_alone(workplace: Workplace, first_stage: Path, texts: Path, tmp_path: Path) -> None:
    assert run_command("features", first_stage, workplace.picture, "--out", tmp_path / "i") == 0
    assert set(load_file(tmp_path / "i")) == {"image_embeds", "image_embeds_proj"}
    assert run_command("features", first_stage, "--texts", texts, "--out", tmp_path / "t") == 0
    assert set(load_file(tmp_path / "t")) == {"text_embeds", "text_embeds_proj"}


def test_a_model_that_answers_gives_tower_and_connector(workplace: Workplace, tmp_path: Path) -> None:
    assert run_command("features", workplace.model, workplace.picture, "--out", tmp_path / "i") == 0
    found = load_file(tmp_path / "i")
    model, processor = sightbridge.load(workplace.model)
    with torch.no_grad():
        features = model.encode_images(processor.transform(load_image(workplace.picture))[None])
        assert torch.equal(found["image_features"], features)
        assert torch.equal(found["image_tokens"], model.connect(features))


def test_mistakes_are_one_line(
    workplace: Workplace, first_stage: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gap.txt").write_text("one\n\nthree\n")
    (tmp_path / "there").write_text("precious")
    for arguments, message in (
        ([first_stage], "give pictures, or texts"),
        ([first_stage, workplace.picture, "--texts", texts], "1 pictures and 4 texts are no pairs"),
        ([first_stage, "--texts", tmp_path / "gap.txt"], "line 2: is empty"),
        ([first_stage, "--texts", tmp_path / "gone.txt"], "cannot read"),
        ([workplace.model, "--texts", texts], "no first-stage model"),
        ([first_stage, workplace.picture, "--out", tmp_path / "there"], "there already"),
    ):
        if "--out" not in arguments:
            arguments = [*arguments, "--out", tmp_path / "new"]
        assert run_command("features", *arguments) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "there").read_text() == "precious"


def test_a_file_that_cannot_be_written_is_told_before_the_model_is_loaded(
    workplace: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightbridge.cli.features._extract", lambda *_: pytest.fail("the model was loaded"))
    for out, flags in ((tmp_path / "nowhere" / "f.safetensors", []), (tmp_path, ["--overwrite"])):
        assert run_command("features", workplace.model, workplace.picture, "--out", out, *flags) == 1
        assert capsys.readouterr().err == f"error: --out: cannot write a file at {out}\n"
