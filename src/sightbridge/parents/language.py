"""Training a language parent: a small decoder or encoder-decoder that has read about scenes and never seen one."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sightbridge.batch import IGNORE_INDEX, Batch
from sightbridge.config.model import LanguageModelSettings
from sightbridge.config.parent import ParentRecipe
from sightbridge.data.processor import Processor
from sightbridge.data.scenes.language import dictionary
from sightbridge.models.build import build_language_model
from sightbridge.models.language_model import LanguageModel
from sightbridge.models.splice import splice
from sightbridge.models.vision_tower import VisionTower
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.parents.folder import write_parent
from sightbridge.parents.text import Lessons, SceneTexts, train_tokenizer
from sightbridge.training.loop import train


class BagOfWords(nn.Module):
    """Stands where a connector will stand: one position per phrase, the sum of its words' embeddings."""

    tokens_per_image = 1


class PhraseReader(VisionLanguageModel):
    """A language model that reads phrases from the slots where a picture's tokens go later. It has no eyes."""

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__(cast(VisionTower, nn.Identity()), BagOfWords(), language_model)

    def embed(self, batch: Batch) -> Tensor:
        """Word embeddings, with a bag of words in each slot; ``image_features`` are word ids (N, 1, W), 0 = none."""
        embeddings = self.language_model.embed(batch.input_ids)
        if batch.image_features is None:
            return embeddings
        words = self.language_model.embed(batch.image_features) * (batch.image_features > 0).unsqueeze(-1)
        return splice(embeddings, batch.image_slots, words.sum(dim=2))


@torch.no_grad()
def start_by_matching(model: nn.Module) -> None:
    """Start every attention head by looking at positions that resemble its own, and by passing on what it finds there.

    Queries and keys get the same orthogonal weights and the output the transpose of the values, after "Mimetic
    Initialization of Self-Attention Layers" (Trockman and Kolter, 2023). Finding the object a question is about *is*
    such a match; from independent random weights a model of this size takes thousands of steps to begin.
    """
    names = {"q_proj": "q_proj k_proj v_proj o_proj", "q": "q k v o"}
    for module in model.modules():
        for first, four in names.items():
            if not isinstance(getattr(module, first, None), nn.Linear):
                continue
            query, key, value, output = (getattr(module, name).weight for name in four.split())
            # T5 does not divide the scores by the square root of the head's size, so its weights start smaller
            nn.init.orthogonal_(query, gain=1.0 if first == "q_proj" else query.shape[0] ** -0.125)
            key.copy_(query)
            nn.init.orthogonal_(value)
            output.copy_(0.5 * value.T)


@torch.no_grad()
def learn_dictionary(embeddings: nn.Embedding, tokenizer: Any, own: float = 0.3) -> None:
    """Give every word the embedding of the first language's word for the same, so that languages need not start anew.

    As in transfer to new languages by a bilingual dictionary (Minixhofer et al., WECHSEL, 2022). ``own`` is the share
    of its own random vector that a word keeps. A word of several tokens (a Chinese one) is represented by its first
    that is no punctuation.
    """
    for words in dictionary():
        tokens = [tokenizer(" " + word, add_special_tokens=False).input_ids for word in words]
        first, *others = dict.fromkeys(next(i for i in word if tokenizer.decode([i]).strip(" ¿")) for word in tokens)
        shared = embeddings.weight[first]
        embeddings.weight[others] = (shared + own * embeddings.weight[others]) / (1 + own**2) ** 0.5


def train_language_parent(recipe: ParentRecipe, folder: Path) -> dict[str, Any]:
    """Train tokenizer and language model, write them as a Hugging Face folder; returns accuracy per way of telling."""
    tokenizer = train_tokenizer(recipe)
    config = recipe.config | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(recipe.training.seed)
    language_model = build_language_model(LanguageModelSettings(config=config))  # type: ignore[call-arg]
    start_by_matching(language_model.model)
    processor = Processor(
        tokenizer,
        recipe.prompt,
        recipe.image,
        tokens_per_image=1,
        encoder_decoder=language_model.is_encoder_decoder,
    )
    texts = SceneTexts(recipe, processor)
    model = PhraseReader(language_model)
    if recipe.first_language_steps:
        study(model, recipe, processor, "first", recipe.first_language_steps, folder)
    learn_dictionary(language_model.model.get_input_embeddings(), tokenizer)

    def evaluate(reader: nn.Module, step: int) -> dict[str, float]:
        return answer_accuracy(cast(PhraseReader, reader), texts)

    def save(reader: nn.Module, step: int) -> None:
        language_model.assert_heads_untied()
        write_parent(language_model.model, folder)
        tokenizer.save_pretrained(folder)

    history = train(
        model, texts, recipe.training, recipe.optim, folder / "run", evaluate=evaluate, save=save, title="reading"
    )
    if recipe.drill_steps:
        study(model, recipe, processor, "drill", recipe.drill_steps, folder)
        save(model, recipe.drill_steps)
        history = [answer_accuracy(model, texts)]
    return history[-1]


def study(
    model: PhraseReader, recipe: ParentRecipe, processor: Processor, lessons: Lessons, steps: int, folder: Path
) -> None:
    """Train on other lessons than the usual ones, before or (at half the learning rate) after them."""
    training = recipe.training.model_copy(update={"steps": steps})
    optim = recipe.optim.model_copy(update={"lr": recipe.optim.lr / 2}) if lessons == "drill" else recipe.optim
    train(model, SceneTexts(recipe, processor, lessons), training, optim, folder / "run" / lessons, title=lessons)


@torch.no_grad()
def answer_accuracy(model: PhraseReader, texts: SceneTexts, batches: int = 4) -> dict[str, float]:
    """Share of answers whose every token is the likeliest one, per way of telling, on scenes not trained on."""
    result = {}
    for way in ("phrases", "caption", "nothing"):
        made = [texts.batch(random.Random(f"held out/{way}/{index}"), way=way) for index in range(batches)]
        right = [hit for batch in made for hit in _right_answers(model, batch)]
        result[f"accuracy/{way}"] = sum(right) / len(right)
    return result


def _right_answers(model: PhraseReader, batch: Batch) -> Iterable[bool]:
    """Whether each answer of the batch (a run of labels) is predicted throughout."""
    assert batch.labels is not None
    logits, labels = model.logits(batch), batch.labels
    if not model.language_model.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    hits = (logits.argmax(-1) == labels).tolist()
    for row, row_labels in zip(hits, labels.tolist(), strict=True):
        run: list[bool] = []
        for hit, label in zip([*row, False], [*row_labels, IGNORE_INDEX], strict=True):
            if label != IGNORE_INDEX:
                run.append(hit)
            elif run:
                yield all(run)
                run = []
