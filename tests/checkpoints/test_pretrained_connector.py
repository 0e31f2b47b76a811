"""A second stage starts from a first stage's folder: with its Q-Former, and with a fresh projection."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sightbridge.checkpoints.folder import save_model
from sightbridge.checkpoints.init_from import init_from
from sightbridge.checkpoints.manifest import PartEntry
from sightbridge.checkpoints.weights import file_hash, save_part
from sightbridge.config.model import ImageSettings
from sightbridge.config.qformer_recipe import CaptionTextSettings, QFormerModelSettings
from sightbridge.data.qformer_processor import QFormerProcessor, load_caption_tokenizer
from sightbridge.errors import CheckpointError
from sightbridge.models.build_qformer import build_qformer_model
from sightbridge.models.connectors.qformer import QFormerConnector, QFormerOptions

LLAMA = str(Path(__file__).parents[1] / "golden" / "llava" / "tokenizers" / "llama")
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
OPTIONS = {"num_queries": 3, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    """A first-stage model, a batch for it, and its folder."""
    tokenizer = load_caption_tokenizer(LLAMA)
    settings = QFormerModelSettings.model_validate(
        {
            "vision_tower": {"config": VISION, "layers": [-1]},
            "qformer": OPTIONS | {"text_vocabulary": len(tokenizer)},
            "text": CaptionTextSettings(tokenizer=LLAMA),
            "image": ImageSettings(size=16),
        }
    )
    model = build_qformer_model(settings, seed=1)
    for weight in model.qformer.parameters():  # norms and biases, too
        nn.init.normal_(weight, std=0.3)
    processor = QFormerProcessor(tokenizer, settings.text, settings.image)
    folder = tmp_path_factory.mktemp("stage1") / "model"
    return model, len(tokenizer), save_model(model, processor, settings, folder, trained_parts=["qformer"])


class SecondStage(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.connector = QFormerConnector(QFormerOptions.model_validate(OPTIONS | options), 16, 4, 10).eval()


def test_the_connector_reads_what_the_first_stage_read(stage1):
    model, _, folder = stage1
    second = SecondStage()
    projection = second.connector.output.weight.clone()
    report = init_from(second, folder)

    features = torch.randn(2, 4, 16)
    read = model.qformer.read_pictures(features).queries
    assert torch.allclose(second.connector.read(features), read, atol=2e-6)
    assert torch.equal(second.connector.output.weight, projection)
    count = sum(w.numel() for name, w in second.connector.named_parameters() if not name.startswith("output"))
    assert report.taken == [f"connector: {count:,} weights of input_norm, qformer, queries"]
    assert "connector: output stays fresh" in report.left
    assert any("embeddings, itm_head, language_head, qformer, temperature" in line for line in report.left)


def test_a_connector_that_reads_questions_takes_the_text_branch(stage1):
    model, vocabulary, folder = stage1
    second = SecondStage(text_input=True, text_tokenizer=LLAMA, text_vocabulary=vocabulary)
    report = init_from(second, folder)
    assert "embeddings" in report.taken[0]

    features, ids, mask = torch.randn(2, 4, 16), torch.randint(5, 50, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    read = model.qformer.read_pairs(model.qformer.look(features), ids, mask)
    assert torch.allclose(second.connector.read(features, ids, mask), read, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 3}, r"it has not qformer.encoder.layer.2\S+ and \d+ more"),
        ({"num_layers": 1}, r"it also has qformer.encoder.layer.1\S+ and \d+ more"),
        ({"num_queries": 4}, r"another size or number queries"),
        ({"input_norm": False}, r"it also has input_norm.bias and 1 more"),
        ({"num_heads": 4}, r"another size or number attention heads"),
    ],
)
def test_another_build_is_refused(stage1, options, message):
    with pytest.raises(CheckpointError, match=message):
        init_from(SecondStage(**options), stage1[2])


def test_a_damaged_file_is_noticed(stage1, tmp_path):
    shutil.copytree(stage1[2], tmp_path / "copy")
    with (tmp_path / "copy" / "qformer.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        init_from(SecondStage(), tmp_path / "copy")


def test_a_connector_that_reads_questions_takes_the_rest_from_a_second_stage(stage1, tmp_path):
    """As for VQA: the text branch of the first stage, everything else of the second."""
    _, vocabulary, first = stage1
    second, third = SecondStage(), SecondStage(text_input=True, text_tokenizer=LLAMA, text_vocabulary=vocabulary)
    for weight in second.connector.parameters():
        nn.init.normal_(weight, std=0.3)
    path = tmp_path / "connector.safetensors"
    save_part(second.connector, path)
    entry = PartEntry(
        file=path.name, sha256=file_hash(path), source=None, trained=True, parameters=1, dtype="float32", fingerprint=""
    )
    manifest = SimpleNamespace(parts={"connector": entry})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sightbridge.checkpoints.init_from.read_manifest", lambda folder: manifest)
        with pytest.raises(CheckpointError, match=r"does not read questions.*init_from=\[FIRST_STAGE,SECOND_STAGE\]"):
            init_from(third, tmp_path)
    init_from(third, first)
    words = third.connector.embeddings.word_embeddings.weight.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sightbridge.checkpoints.init_from.read_manifest", lambda folder: manifest)
        report = init_from(third, tmp_path, after_another=True)
    assert "its text branch as it was before" in report.taken[0]
    assert torch.equal(third.connector.embeddings.word_embeddings.weight, words)
    features = torch.randn(2, 4, 16)
    assert torch.allclose(third.connector(features), second.connector(features), atol=2e-6)
