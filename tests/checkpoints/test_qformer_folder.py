"""Folders of first-stage models: what was saved comes back, and they are told from models that answer."""

from pathlib import Path

import pytest
import torch

import sightbridge
from sightbridge.batch import QFormerBatch
from sightbridge.checkpoints.describe import describe
from sightbridge.checkpoints.folder import load_any_model, load_model, load_processor, save_model
from sightbridge.checkpoints.manifest import MANIFEST
from sightbridge.cli.inspect_model import inspect_model
from sightbridge.config.model import ImageSettings
from sightbridge.config.qformer_recipe import CaptionTextSettings, QFormerModelSettings
from sightbridge.data.qformer_processor import QFormerProcessor, load_caption_tokenizer
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.build_qformer import build_qformer_model, check_qformer

LLAMA = str(Path(__file__).parents[1] / "golden" / "llava" / "tokenizers" / "llama")
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
QFORMER = {
    "num_queries": 3,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 24,
    "projection_size": 8,
    "text_positions": 16,
    "max_text_length": 16,
}


def make_settings(**qformer):
    vocabulary = len(load_caption_tokenizer(LLAMA))
    return QFormerModelSettings.model_validate(
        {
            "vision_tower": {"config": VISION, "layers": [-1]},
            "qformer": QFORMER | {"text_vocabulary": vocabulary} | qformer,
            "text": CaptionTextSettings(tokenizer=LLAMA, max_length=8),
            "image": ImageSettings(size=16),
        }
    )


@pytest.fixture
def saved(tmp_path):
    settings = make_settings()
    model = build_qformer_model(settings, seed=1)
    processor = QFormerProcessor(load_caption_tokenizer(LLAMA), settings.text, settings.image)
    save_model(model, processor, settings, tmp_path / "m", trained_parts=["qformer"], provenance={"steps": 3})
    return model, processor, tmp_path / "m"


def test_what_was_saved_comes_back(saved):
    model, processor, folder = saved
    loaded, again = sightbridge.load(folder)
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not loaded.training
    ids, mask = processor.texts(["a red circle", "two"])
    assert torch.equal(again.texts(["a red circle", "two"])[0], ids)
    batch = QFormerBatch(ids, mask, torch.tensor([0, 1]), pixel_values=torch.randn(2, 3, 16, 16), ids=("a", "b"))
    losses = []
    for each in (model, loaded):
        torch.manual_seed(5)  # of the negatives
        losses.append({name: loss.sum.item() for name, loss in each(batch).items()})
    assert losses[0] == losses[1]


def test_the_folder_says_what_it_is(saved):
    _, _, folder = saved
    found = describe(folder)
    assert [(part.name, part.what, part.stored, part.trained) for part in found.parts] == [
        ("vision_tower", "siglip_vision_model", True, False),
        ("qformer", "qformer", True, True),
    ]
    assert found.template is None
    assert found.manifest.kind == "qformer" and found.manifest.tokens_per_image == 3
    for load in (load_model, load_processor):
        with pytest.raises(CheckpointError, match=r"Q-Former of BLIP-2's first stage, .*training.init_from=FOLDER"):
            load(folder)


def test_inspect_shows_it(saved, capsys):
    _, _, folder = saved
    inspect_model(folder)
    shown = capsys.readouterr().out
    assert "first stage of BLIP-2" in shown and "at most 8 tokens" in shown and "3 tokens each" in shown
    assert "template" not in shown


def test_a_manifest_of_another_kind_is_noticed(saved):
    _, _, folder = saved
    path = folder / MANIFEST
    text = path.read_text()
    path.write_text(text.replace('"kind": "qformer"', '"kind": "other"'))
    with pytest.raises(CheckpointError, match="damaged at 'kind': 'other' is none of generation, qformer"):
        load_any_model(folder)
    path.write_text(text.replace('"kind": "qformer"', '"kind": "generation"'))
    with pytest.raises(CheckpointError, match=r"the manifest is damaged at 'settings.connector'"):
        load_any_model(folder)


def test_building_is_seeded_and_leaves_the_random_state_alone():
    settings = make_settings()
    state = torch.get_rng_state()
    first, same, other = (build_qformer_model(settings, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["qformer.queries"], other["qformer.queries"])


@pytest.mark.parametrize(
    ("change", "message", "key"),
    [
        ({"num_querys": 3}, "The Q-Former has no option 'num_querys'; .* Did you mean 'num_queries'?", "num_querys"),
        ({"temperature": 0}, "Option 'temperature' of the Q-Former: Input should be greater than 0", "temperature"),
        ({"hidden_size": "x"}, "Option 'hidden_size' of the Q-Former", "hidden_size"),
    ],
)
def test_wrong_options_are_named(change, message, key):
    with pytest.raises(SettingsError, match=message) as caught:
        check_qformer(make_settings(**change).qformer)
    assert caught.value.key == f"model.qformer.{key}"
