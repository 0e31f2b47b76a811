"""The shipped parents' recipes, shrunk until they train in a second or two."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from sightbridge.config.load import read_recipe
from sightbridge.config.model import LanguageModelSettings
from sightbridge.config.parent import ParentRecipe
from sightbridge.data.processor import Processor
from sightbridge.models.build import build_language_model
from sightbridge.parents import text
from sightbridge.parents.language import PhraseReader
from sightbridge.parents.text import SceneTexts, train_tokenizer

SMALL = {
    "tiny/parent-decoder": "hidden_size=32 intermediate_size=48 num_attention_heads=2 num_key_value_heads=2",
    "tiny/parent-encdec": "d_model=32 d_ff=48 num_heads=2",
    "tiny/parent-vision": "hidden_size=32 intermediate_size=48 num_attention_heads=2",
}
LANGUAGE_PARENTS = ("tiny/parent-decoder", "tiny/parent-encdec")
TRAINING = ["training.steps=3", "training.batch_size=4", "training.log_every=1", "optim.warmup_steps=1"]


def small_recipe(name: str, *overrides: str) -> ParentRecipe:
    """A parent's recipe, shrunk."""
    small = [f"config.{option}" for option in SMALL[name].split()]
    recipe = read_recipe(name, [*small, *TRAINING, *overrides]).recipe
    assert isinstance(recipe, ParentRecipe)
    return recipe


def read_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train tokenizers on few scenes."""
    corpus = text._corpus
    monkeypatch.setattr(text, "_corpus", lambda recipe, scenes=150: corpus(recipe, scenes=scenes))


@cache
def tokenizer() -> Any:
    """A tokenizer of the language parents, trained on few scenes."""
    with pytest.MonkeyPatch.context() as patch:
        read_little(patch)
        return train_tokenizer(small_recipe("tiny/parent-decoder"))


def texts_of(name: str, *overrides: str) -> SceneTexts:
    """The conversations that a language parent learns from."""
    recipe = small_recipe(name, *overrides)
    processor = Processor(
        tokenizer(), recipe.prompt, recipe.image, tokens_per_image=1, encoder_decoder=name == "tiny/parent-encdec"
    )
    return SceneTexts(recipe, processor)


def reader_of(name: str) -> PhraseReader:
    """A language parent that has read nothing yet."""
    config = small_recipe(name).config | {"vocab_size": len(tokenizer()), "pad_token_id": 0, "eos_token_id": 2}
    return PhraseReader(build_language_model(LanguageModelSettings(config=config)))  # type: ignore[call-arg]
