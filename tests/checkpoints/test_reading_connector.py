"""A model whose Q-Former reads the question: trained, asked, saved and loaded like any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sightbridge.checkpoints.connector_text import open_connector_text
from sightbridge.checkpoints.folder import load_model, load_processor, save_model
from sightbridge.config.generation import GenerationSettings
from sightbridge.config.model import ConnectorSettings, ModelSettings
from sightbridge.data.feature_store import keep_in_memory
from sightbridge.data.processor import Processor
from sightbridge.data.record import Record
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.generation.answer import answer, answer_batch
from sightbridge.models.build import build_model
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.text.turns import Turn

TOKENIZERS = Path(__file__).parents[1] / "golden" / "llava" / "tokenizers"
CONNECTOR = {
    "kind": "qformer",
    "num_queries": 3,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.5,
    "text_input": True,
    "text_tokenizer": str(TOKENIZERS / "llama"),
    "text_vocabulary": 901,  # the tokenizer's 900 and [DEC]
}
SETTINGS = ModelSettings.model_validate(
    {
        "vision_tower": {
            "config": {
                "model_type": "blip_2_vision_model",
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "layers": [-1],
        },
        "connector": CONNECTOR,
        "language_model": {
            "config": {
                "model_type": "t5",
                "vocab_size": 600,
                "d_model": 32,
                "d_kv": 8,
                "d_ff": 48,
                "num_layers": 2,
                "num_heads": 4,
                "decoder_start_token_id": 0,
            },
            "tokenizer": str(TOKENIZERS / "t5"),
        },
        "prompt": {"template": "blip2_plain_t5"},
        "image": {"size": 28},
    }
)
SHORT = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return build_model(SETTINGS, seed=1)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(
        load_tokenizer(TOKENIZERS / "t5"),
        SETTINGS.prompt,
        SETTINGS.image,
        tokens_per_image=3,
        encoder_decoder=True,
        connector_text=open_connector_text(SETTINGS.connector),
    )


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)


def records() -> list[Record]:
    asked = [(0, "<image>\nWhat is it?"), (1, "<image>"), (0, "<image>\nIs the large one red, or is it blue?")]
    return [
        Record(str(i), (picture(seed),), (Turn("user", text), Turn("assistant", "A bus.")))
        for i, (seed, text) in enumerate(asked)
    ]


def logits(model: VisionLanguageModel, processor: Processor, *rows: Record) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(processor(list(rows)))


def test_the_question_reaches_the_queries(model: VisionLanguageModel, processor: Processor) -> None:
    def tokens(row: Record) -> torch.Tensor:
        batch = processor([row])
        assert batch.pixel_values is not None
        with torch.no_grad():
            return model.connect(model.encode_images(batch.pixel_values), batch.connector_ids, batch.connector_mask)

    first, _, second = records()
    assert (tokens(first) - tokens(second)).abs().max() > 1e-2  # one picture, two questions


def test_a_row_does_not_depend_on_its_neighbours(model: VisionLanguageModel, processor: Processor) -> None:
    together = logits(model, processor, *records())
    alone = torch.cat([logits(model, processor, row) for row in records()])
    assert (together - alone).abs().max() <= 1e-5


def test_kept_features_are_the_towers_alone(model: VisionLanguageModel, processor: Processor) -> None:
    store = keep_in_memory(records(), SETTINGS.image, model.encode_images)
    kept = processor.collate([processor.prepare(row, features=store) for row in records()])
    with torch.no_grad():
        difference = (model.logits(kept) - logits(model, processor, *records())).abs().max()
    assert difference <= 1e-5


def test_answers_are_those_of_one_record_at_a_time(model: VisionLanguageModel, processor: Processor) -> None:
    one_by_one = [
        answer(model, processor, row.images[0], (row.turns[0].text or "").removeprefix("<image>\n"), SHORT)
        for row in records()
        if row.turns[0].text != "<image>"
    ]
    assert [answer_batch(model, processor, records(), SHORT)[i] for i in (0, 2)] == one_by_one


def test_the_second_tokenizer_travels_in_the_folder(
    model: VisionLanguageModel, processor: Processor, tmp_path: Path
) -> None:
    here = tmp_path / "tokenizer_that_goes_away"
    shutil.copytree(TOKENIZERS / "llama", here)
    settings = SETTINGS.model_copy(
        update={"connector": ConnectorSettings.model_validate(CONNECTOR | {"text_tokenizer": str(here)})}
    )
    folder = save_model(model, processor, settings, tmp_path / "model", trained_parts=["connector"])
    shutil.rmtree(here)
    loaded, loaded_processor = load_model(folder)
    assert torch.equal(logits(loaded, loaded_processor, *records()), logits(model, processor, *records()))
    assert load_processor(folder).connector_text is not None
    (folder / "connector_tokenizer" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"connector_tokenizer/tokenizer_config\.json: the file is damaged"):
        load_model(folder)


def test_a_tokenizer_larger_than_the_table_is_refused() -> None:
    settings = ConnectorSettings.model_validate(CONNECTOR | {"text_vocabulary": 100})
    with pytest.raises(SettingsError, match=r"the Q-Former has embeddings of 100\. Give the tokenizer"):
        open_connector_text(settings)
