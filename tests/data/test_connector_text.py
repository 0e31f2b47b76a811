"""What is asked about a picture reaches the connector: the right words, for the right picture, padded by mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightbridge.config.model import ImageSettings, PromptSettings
from sightbridge.data.connector_text import ConnectorText, questions
from sightbridge.data.processor import Processor, prompt_record
from sightbridge.data.qformer_processor import load_caption_tokenizer
from sightbridge.data.record import Record
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.text.turns import Role, Turn

ROLES: list[Role] = ["user", "assistant"] * 5
TOKENIZERS = Path(__file__).parents[1] / "golden" / "llava" / "tokenizers"


@pytest.fixture(scope="module")
def processor() -> Processor:
    """One whose connector reads up to six tokens, with another tokenizer than the language model's."""
    return Processor(
        load_tokenizer(TOKENIZERS / "t5"),
        PromptSettings(template="blip2_question_t5"),
        ImageSettings(size=28),
        tokens_per_image=2,
        encoder_decoder=True,
        connector_text=ConnectorText(load_caption_tokenizer(str(TOKENIZERS / "llama")), max_length=6),
    )


def record(name: str, *texts: str, images: int = 1) -> Record:
    turns = tuple(Turn(role, text) for role, text in zip(ROLES, texts, strict=False))
    return Record(name, (np.zeros((28, 28, 3), dtype=np.uint8),) * images, turns)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["<image>\nWhat is it?", "A bus."], ["What is it?"]),
        (["What is it?\n<image>", "A bus."], ["What is it?"]),
        (["<image><image>\nWhich is red?", "The first."], ["Which is red?"] * 2),
        (["<image>\nWhat is it?", "A bus.", "<image>\nAnd this?", "A cat."], ["What is it?", "And this?"]),
        (["<image>", "A bus."], [""]),
        (["Hello", "<image>", "What is it?", "A bus."], [""]),
        (["Hello", "Hi."], []),
    ],
)
def test_the_question_is_the_users_words_around_a_picture(texts: list[str], expected: list[str]) -> None:
    turns = [Turn(role, text) for role, text in zip(ROLES, texts, strict=False)]
    assert questions(turns) == expected


def test_ids_are_those_of_the_connectors_own_tokenizer(processor: Processor) -> None:
    batch = processor([record("a", "<image>\nWhat is it?", "A bus."), record("b", "<image>", "A bus.")])
    llama = load_tokenizer(TOKENIZERS / "llama")
    words = llama("What is it?", add_special_tokens=False)["input_ids"]
    expected = [llama.bos_token_id, *words[:4], llama.eos_token_id]
    assert batch.connector_ids is not None and batch.connector_mask is not None
    assert batch.connector_ids[0].tolist() == expected
    assert batch.connector_mask.tolist() == [[1] * len(expected), [0] * len(expected)]


def test_there_is_a_row_per_picture(processor: Processor) -> None:
    rows = [record("two", "<image><image>Is it?", "No.", images=2), record("none", "Hi", "Ho", images=0)]
    batch = processor([*rows, record("one", "<image>What is it?", "A bus.")])
    assert batch.connector_ids is not None and batch.pixel_values is not None
    assert len(batch.connector_ids) == len(batch.pixel_values) == 3
    assert batch.connector_ids[0].tolist() == batch.connector_ids[1].tolist()


def test_a_long_question_is_cut(processor: Processor) -> None:
    batch = processor.prompt(np.zeros((28, 28, 3), dtype=np.uint8), "What is it? " * 9)
    assert batch.connector_ids is not None
    assert batch.connector_ids.shape == (1, 6)
    assert batch.connector_ids[0, -1] == load_tokenizer(TOKENIZERS / "llama").eos_token_id


def test_nothing_is_asked_without_words_or_without_such_a_connector(processor: Processor) -> None:
    assert processor([record("a", "<image>", "A bus.")]).connector_ids is None
    plain = Processor(
        processor.tokenizer,
        processor.prompt_settings,
        processor.image_settings,
        tokens_per_image=2,
        encoder_decoder=True,
    )
    assert plain([record("a", "<image>\nWhat is it?", "A bus.")]).connector_ids is None
    asked = plain([prompt_record(np.zeros((28, 28, 3), dtype=np.uint8), "What?")], for_generation=True)
    assert asked.connector_ids is None
