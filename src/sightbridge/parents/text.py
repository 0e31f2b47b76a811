"""Text about scenes, for language models that have never seen one.

A scene is told in one of two ways. As a *caption*, it is ordinary text. As *phrases*, each object (``red circle top
left``) takes a single position, whose embedding is the sum of its words' embeddings: a bag of words. The second way
trains a language model to read several facts from one position, which is how a picture's tokens will reach it; it is
text all the same, and nothing in it comes from pixels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sightbridge.batch import Batch
from sightbridge.config.parent import ParentRecipe
from sightbridge.data.processor import Processor, Row
from sightbridge.data.scenes.language import (
    QUESTION_TYPES,
    Question,
    caption,
    caption_prompt,
    colour_word,
    join_phrases,
    kind_word,
    nothing,
    phrase,
    position_word,
    questions,
    statement,
)
from sightbridge.data.scenes.world import POSITIONS, Scene, sample_scene
from sightbridge.parents.drawn import DrawnBatches
from sightbridge.text.encode import encode
from sightbridge.text.render import render
from sightbridge.text.turns import IMAGE_MARKER, Turn

WORDS_PER_PHRASE = 48
"""Most tokens of one phrase (in all languages at once, it has at most 24)."""


def train_tokenizer(recipe: ParentRecipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on text about scenes; Chinese characters stand alone, as there are no spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(recipe), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )


def _corpus(recipe: ParentRecipe, scenes: int = 4000) -> Iterator[str]:
    rng = random.Random(recipe.training.seed)
    for _ in range(scenes):
        scene = sample_scene(rng, rng.choice(["shapes", "digits"]))
        for code in recipe.languages:
            yield f"USER: {caption(scene, code)}\n"
            for asked in [*questions(scene, code, rng, 5), statement(scene, code, rng)]:
                yield f"\n{asked.text} ASSISTANT: {asked.answer}"
                yield f"USER: {asked.text} ASSISTANT: {asked.answer}"
            empty = " ".join(nothing(cell, code) for cell in range(POSITIONS))
            yield f"\n{caption_prompt(rng, code)} ASSISTANT: {empty}"


Lessons = Literal["first", "all", "drill"]
"""``first``: easy questions about shapes in the first language. ``drill``: what stays hard, asked more often."""

DRILL_TYPES = ("count", "count", "count", "existence", "existence", "colour", "position", "shape")


@dataclass
class SceneTexts(DrawnBatches[Batch]):
    """Endless conversations about scenes told in words; a fresh batch each time, fixed by the seed."""

    recipe: ParentRecipe
    processor: Processor
    lessons: Lessons = "all"
    batches_per_epoch: int = 1000

    def draw(self, number: int) -> Batch:
        """Make up batch ``number``."""
        part = "drill/" if self.lessons == "drill" else ""
        return self.batch(random.Random(f"{self.recipe.training.seed}/{part}{number}"), self._lesson(number))

    def _lesson(self, step: int) -> float:
        """How far the first lessons have come at a step: 0 to 1, 1 = they are over."""
        if self.lessons != "all":
            return 0.0 if self.lessons == "first" else 1.0
        lessons = (self.recipe.training.steps or 0) * self.recipe.first_lessons
        return min(1.0, step / lessons) if lessons else 1.0

    def batch(self, rng: random.Random, lesson: float = 1.0, way: str | None = None) -> Batch:
        """One batch, all of its rows told the same way: ``phrases``, ``caption`` or ``nothing`` at all.

        (A model that is also asked without having been told anything learns how to guess.) The first lessons are easy
        ones; some of them stay, so that what they taught is kept.
        """
        if way is None:
            way = "phrases" if lesson < 1 else rng.choices(["phrases", "caption", "nothing"], [82, 15, 3])[0]
        share_of_easy = 1.0 if lesson < 1 else 0.3 if way == "phrases" and self.lessons == "all" else 0.0
        rows = [
            self._row(rng, rng.random() < share_of_easy, way, str(index))
            for index in range(self.recipe.training.batch_size)
        ]
        return self.processor.collate(rows)

    def _row(self, rng: random.Random, easy: bool, way: str, name: str) -> Row:
        languages = self.recipe.languages[:1] if self.lessons == "first" else self.recipe.languages
        code = rng.choice(languages)
        scene, asked = self._ask(rng, code, easy)
        told, words = "", None
        if way == "caption":
            told = _caption(scene, rng.choice([code, code, *languages]), rng) + "\n"
        elif way == "phrases":
            words = self._phrases(scene, [code] if easy else _languages_told(code, languages, rng), rng)
            told = IMAGE_MARKER * len(words) + "\n"
        turns = []
        for index, question in enumerate(asked):
            turns.append(Turn("user", (told if index == 0 else "") + question.text))
            turns.append(Turn("assistant", question.answer))
        return Row(name, self.encode(turns, name), features=words)

    def encode(self, turns: list[Turn], name: str = "") -> Any:
        """Ids, slots and labels of a conversation whose markers stand for phrases."""
        prompt = self.recipe.prompt
        rendered = render(
            self.processor.template, turns, switches=prompt.switches, system=prompt.system, record_id=name
        )
        return encode(rendered, self.processor.tokenizer, tokens_per_image=1)

    def _ask(self, rng: random.Random, code: str, easy: bool) -> tuple[Scene, list[Question]]:
        """A scene with questions about it, among them now and then a caption or a statement.

        The easy ones can only be answered by finding the object that is meant: all objects differ in everything.
        """
        wanted = self.recipe.questions
        kinds = DRILL_TYPES if self.lessons == "drill" else ("colour", "shape", "position") if easy else QUESTION_TYPES
        while True:
            scene = sample_scene(
                rng, "shapes" if self.lessons == "first" else rng.choice(["shapes", "shapes", "digits"])
            )
            if easy and not _all_different(scene):
                continue
            if asked := questions(scene, code, rng, wanted, types=kinds):
                break
        if not easy and rng.random() < (0.05 if self.lessons == "drill" else 0.25):
            asked[rng.randrange(len(asked))] = Question(
                "caption", caption_prompt(rng, code), caption(scene, code), code
            )
        if not easy and rng.random() < 0.1:
            asked[rng.randrange(len(asked))] = statement(scene, code, rng)
        return scene, asked

    def _phrases(self, scene: Scene, codes: list[str], rng: random.Random) -> torch.Tensor:
        """Token ids of each phrase (n, 1, WORDS_PER_PHRASE), 0 = padding; empty cells are told or left out."""
        texts = [
            [f" {colour_word(o.colour, c)} {kind_word(o.kind, c)} {position_word(o.position, c)}" for c in codes]
            for o in scene.objects
        ]
        empty = sorted(set(range(POSITIONS)) - {thing.position for thing in scene.objects})
        told = rng.sample(empty, rng.choice([0, len(empty), rng.randint(0, len(empty))]))
        texts += [[" " + nothing(cell, code) for code in codes] for cell in told]
        if rng.random() < 0.5:
            rng.shuffle(texts)
        words = torch.zeros(len(texts), 1, WORDS_PER_PHRASE, dtype=torch.long)
        for row, versions in enumerate(texts):
            ids = [i for text in versions for i in self.processor.tokenizer(text, add_special_tokens=False).input_ids]
            words[row, 0, : len(ids)] = torch.tensor(ids)
        return words


def _all_different(scene: Scene) -> bool:
    """Whether there are several objects, no two of the same kind or colour."""
    kinds, colours = {o.kind for o in scene.objects}, {o.colour for o in scene.objects}
    return len(scene.objects) > 1 and len(kinds) == len(colours) == len(scene.objects)


def _languages_told(code: str, languages: list[str], rng: random.Random) -> list[str]:
    """The languages of a row's phrases: one, two or all of them; the question's own more often than not."""
    codes = rng.sample(languages, rng.choice([1, min(2, len(languages)), len(languages)]))
    if code not in codes and rng.random() < 0.6:
        codes[0] = code
    return codes


def _caption(scene: Scene, code: str, rng: random.Random) -> str:
    """A caption, its objects in reading order or not."""
    if rng.random() < 0.5:
        return caption(scene, code)
    phrases = [phrase(scene, thing, code) for thing in scene.objects]
    rng.shuffle(phrases)
    return join_phrases(phrases, code)
