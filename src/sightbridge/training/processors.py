"""The processor of a run, and all that a model's settings can be checked for without a weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sightbridge.checkpoints.connector_text import open_connector_text
from sightbridge.checkpoints.folder import AnyProcessor
from sightbridge.config.qformer_recipe import ModelRecipe, QFormerRecipe
from sightbridge.config.recipe import Recipe
from sightbridge.data.processor import Processor
from sightbridge.data.qformer_processor import QFormerProcessor, load_caption_tokenizer
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.errors import SettingsError
from sightbridge.models.build import resolve_source
from sightbridge.models.outline import check_qformer_outline, outline


def make_any_processor(recipe: ModelRecipe) -> AnyProcessor:
    """Make the processor that the recipe's model needs; see ``make_processor``."""
    if isinstance(recipe, QFormerRecipe):
        return make_caption_processor(recipe)
    return make_processor(recipe)


def make_processor(recipe: Recipe) -> Processor:
    """Open tokenizer and template, and find out from configurations how many slots a picture fills.

    Raises:
        SettingsError: settings are wrong, or tokenizer and language model do not belong together.
        CheckpointError: a tokenizer or a part's configuration was not found.
    """
    model = recipe.model
    shape = outline(model)
    source = model.language_model.tokenizer or model.language_model.source
    if source is None:
        raise SettingsError(
            "a language model with random weights brings no tokenizer; give a folder with the tokenizer's files",
            key="model.language_model.tokenizer",
        )
    tokenizer = load_tokenizer(resolve_source(source), model.language_model.tokenizer_legacy)
    if len(tokenizer) > shape.vocabulary:
        raise SettingsError(
            f"the tokenizer in '{source}' has {len(tokenizer)} tokens, but the language model knows only "
            f"{shape.vocabulary}. Give the tokenizer that belongs to it.",
            key="model.language_model.tokenizer",
        )
    with inside("model"):
        return Processor(
            tokenizer,
            model.prompt,
            model.image,
            tokens_per_image=shape.tokens_per_image,
            encoder_decoder=shape.encoder_decoder,
            seed=recipe.training.seed,
            decode=recipe.data.decode,
            connector_text=open_connector_text(model.connector),
        )


def make_caption_processor(recipe: QFormerRecipe) -> QFormerProcessor:
    """Open the captions' tokenizer, which must have as many tokens as the Q-Former has words; errors likewise."""
    model = recipe.model
    options = check_qformer_outline(model)
    tokenizer = load_caption_tokenizer(resolve_source(model.text.tokenizer))
    if len(tokenizer) != options.text_vocabulary:
        raise SettingsError(
            f"the tokenizer in '{model.text.tokenizer}' has {len(tokenizer)} tokens, [DEC] included; set "
            f"model.qformer.text_vocabulary={len(tokenizer)}, which is {options.text_vocabulary} now",
            key="model.qformer.text_vocabulary",
        )
    if model.text.max_length > options.text_positions:
        raise SettingsError(
            f"captions may be {model.text.max_length} tokens long, but the Q-Former has {options.text_positions} "
            "positions for text",
            key="model.text.max_length",
        )
    return QFormerProcessor(tokenizer, model.text, model.image, seed=recipe.training.seed, decode=recipe.data.decode)


@contextmanager
def inside(group: str) -> Iterator[None]:
    """Give the key of a ``SettingsError`` its place in the recipe: rooms below know only their own settings."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(str(error), f"{group}.{error.key}" if error.key else group) from error
