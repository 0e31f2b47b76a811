"""Losses of two short runs on scenes, from files to weights: a change anywhere on the way shows here.

Run this file as a script to write them anew, after a change that is meant to change them.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
from training_models import OPTIM, PATCHES, SIZE, run_settings, tiny_model

from sightbridge.config.model import ImageSettings, PromptSettings
from sightbridge.data.bad_samples import BadSamples
from sightbridge.data.dataset import RecordDataset, TrainingBatches
from sightbridge.data.order import RecordOrder
from sightbridge.data.processor import Processor
from sightbridge.data.readers import READERS
from sightbridge.data.scenes.write import ScenesSettings, write_scenes
from sightbridge.data.tokenizer import load_tokenizer
from sightbridge.training.loop import train

GOLDEN = Path(__file__).parents[1] / "golden"
LOSSES = GOLDEN / "losses" / "scenes.json"
TOKENIZERS = {"llama": GOLDEN / "llava" / "tokenizers" / "llama", "t5": GOLDEN / "llava" / "tokenizers" / "t5"}
TEMPLATES = {"llama": "vicuna_v1", "t5": "t5_v1"}


def losses(language_model: str, folder: Path) -> list[float]:
    """Train connector and language model for ten steps on 20 pictures of shapes."""
    scenes = ScenesSettings(train=20, test=4, size=48, languages=("en", "de"), one_question_per_row=True)
    write_scenes(folder / "scenes", scenes)
    records = list(READERS["llava"](folder / "scenes" / "train.json", folder / "scenes"))
    tokenizer = load_tokenizer(TOKENIZERS[language_model])
    processor = Processor(
        tokenizer,
        PromptSettings(template=TEMPLATES[language_model], system=""),
        ImageSettings(size=SIZE, fit="squash"),
        tokens_per_image=PATCHES,
        encoder_decoder=language_model == "t5",
    )
    dataset = RecordDataset(records, processor, training=True, replace_bad=True)
    order = RecordOrder([len(records)], seed=3)
    batches = TrainingBatches(dataset, 4, order=order, bad_samples=BadSamples(len(records), limit=0.0))
    model = tiny_model("connector", "language_model", language_model=language_model, vocab_size=len(tokenizer))
    optim = OPTIM.model_copy(update={"eps": 1e-4})  # else rounding moves weights whose gradient is all but zero
    history = train(model, batches, run_settings(steps=10, accumulation=2), optim, folder / "run")
    return [line["loss"] for line in history]


@pytest.mark.parametrize("language_model", TOKENIZERS)
def test_losses_are_those_of_before(language_model, tmp_path):
    now, before = losses(language_model, tmp_path), json.loads(LOSSES.read_text())[language_model]
    difference = max(abs(a - b) for a, b in zip(now, before, strict=True))
    print(f"losses of ten steps, {language_model}: widest difference {difference:.1e}")
    assert difference < 1e-4
    assert now[-1] < 0.9 * now[0]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = {name: losses(name, Path(place) / name) for name in TOKENIZERS}
    LOSSES.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(LOSSES.read_text())
