"""Tiny pictures, a tokenizer trained on the spot, and a model that was trained on them for three steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sightbridge.cli import main as frame
from sightbridge.data.scenes.write import ScenesSettings, write_scenes


def run_command(*arguments: object) -> int:
    """Exit status of a command, run in this process."""
    with pytest.raises(SystemExit) as caught:
        frame.main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def save_tokenizer(texts: list[str], folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(folder)


class Workplace:
    """``scenes`` and ``tokenizer`` are folders, ``overrides`` make ``tiny/random`` train on them."""

    def __init__(self, folder: Path) -> None:
        self.scenes = folder / "scenes"
        self.tokenizer = folder / "tokenizer"
        write_scenes(self.scenes, ScenesSettings(train=8, test=4, languages=("en", "de"), size=48, questions=2))
        rows = json.loads((self.scenes / "train.json").read_text())
        save_tokenizer([turn["value"] for row in rows for turn in row["conversations"]], self.tokenizer)
        self.overrides = [
            f"data.root={self.scenes}",
            "data.train.0.images=.",
            "data.validation.0.images=.",
            "data.validation.0.path=test.json",
            f"model.language_model.tokenizer={self.tokenizer}",
            "model.prompt.template=vicuna_v1",
            "model.prompt.system=''",
            "training.steps=3",
        ]
        self.run = folder / "run"
        self.model = self.run / "model"
        self.picture = self.scenes / "images" / "test" / "00000.png"

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> str:
        """Write an annotation file beside the scenes; returns its name."""
        (self.scenes / name).write_text(json.dumps(rows), encoding="utf-8")
        return name
