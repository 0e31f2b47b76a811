"""A run that stops anywhere goes on as if it had not: log, rates, order, random state and weights, bit by bit."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from pydantic import Field
from safetensors.torch import load_file
from training_models import OPTIM, ListedBatches, batches_of, run_settings, tiny_model

from sightbridge.config.base import Settings
from sightbridge.config.model import LoraSettings
from sightbridge.config.training import TrainingSettings
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.lora import add_lora
from sightbridge.models.parts import set_trainable
from sightbridge.training.checkpoints import Checkpoints, _hash, find_checkpoint
from sightbridge.training.loop import make_accelerator, train, with_accumulation
from sightbridge.training.resume import changed_settings, resume_from
from sightbridge.training.state import OPTIMIZER

TIMES = {"samples_per_second", "target_tokens_per_second", "data_wait", "memory_gb"}
ROWS = [(0, 1), (2, 3), (4, 5), (6, 7, 1), (3,)]


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Nobody pulls the plug on a test, and waiting for a busy disk takes most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


class Dying(ListedBatches):
    """Batches that kill the run when it asks for one too many; they keep what was taken."""

    def __init__(self, batches, alive):
        super().__init__(batches)
        self.alive = alive
        self.taken = []

    def epoch(self, number, skip=0):
        for place, batch in enumerate(self.batches[skip:], start=skip):
            if self.alive == 0:
                raise KilledError
            self.alive -= 1
            self.taken.append((number, place))
            yield batch


class Counting:
    """Something with a state of its own."""

    def __init__(self):
        self.seen = []

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


def go(
    folder: Path,
    alive=math.inf,
    resume=False,
    trained=("connector", "language_model"),
    rows=ROWS,
    optim=OPTIM,
    vocab_size=40,
    lora=None,
    **changes,
):
    """Train (on), up to a kill after ``alive`` batches: history, weights, places taken, metric values."""
    settings = {"steps": 6, "log_every": 4, "save_every": 2, "evaluate_every": 3, "accumulation": 2} | changes
    settings = run_settings(**settings)
    model = tiny_model(*trained, language_model="t5", dropout_rate=0.3, vocab_size=vocab_size)
    if lora:
        torch.manual_seed(5)
        add_lora(model.language_model, LoraSettings.model_validate(lora))
        set_trainable(model, settings.parts)
    batches = Dying(batches_of(rows, encoder_decoder=True).batches, alive)
    saved, data = {}, Counting()

    def evaluate(bare, step):
        data.seen.append((step, torch.rand(()).item()))
        return {"score": METRIC.get(step, 0.9), "drawn": data.seen[-1][1]}

    def save(bare, step):
        saved[step] = {name: value.clone() for name, value in bare.state_dict().items()}

    history = train(
        model,
        batches,
        settings,
        optim,
        folder,
        evaluate=evaluate,
        save=save,
        checkpoints=Checkpoints(folder, settings.model_dump(mode="json"), settings.keep_checkpoints),
        resume=find_checkpoint(folder, print) if resume else None,
        data=data,
    )
    return history, model.state_dict(), batches.taken, data.seen, saved


METRIC = {3: 0.5, 6: 0.25, 9: math.nan}


def without_times(lines):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def steps_of(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted((folder / "checkpoints").iterdir())]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return *go(folder), folder


@pytest.mark.parametrize("alive", [3, 4, 11])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(alive, straight, tmp_path):
    history, weights, taken, seen, _, folder = straight
    with pytest.raises(KilledError):
        go(tmp_path, alive)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')  # cut off by the kill
    torch.manual_seed(alive)
    resumed = go(tmp_path, resume=True)
    assert without_times(resumed[0]) == without_times(history)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert without_times(lines) == without_times(history)
    assert all(torch.equal(resumed[1][name], weights[name]) for name in weights)
    assert resumed[2] == taken[-len(resumed[2]) :] and len(resumed[2]) == 12 - alive // 4 * 4
    assert resumed[3] == seen
    last = ["weights.safetensors", "optimizer.pt", "processes.pt"]
    for name in last:
        places = [run / "checkpoints" / "step-00000006" / name for run in (folder, tmp_path)]
        assert places[0].read_bytes() == places[1].read_bytes(), name


def test_adapters_and_connector_resume_bit_for_bit(tmp_path):
    lora = {"preset": "lora_all", "r": 2, "dropout": 0.3}
    parts = {"language_model": {"train": "lora", "lr": 0.03, "gradient_checkpointing": True}}
    history, weights, _, _, _ = go(tmp_path / "straight", lora=lora, parts=parts)
    with pytest.raises(KilledError):
        go(tmp_path / "killed", 9, lora=lora, parts=parts)
    resumed, resumed_weights, _, _, _ = go(tmp_path / "killed", resume=True, lora=lora, parts=parts)
    assert without_times(resumed) == without_times(history)
    for name, weight in weights.items():
        assert torch.equal(weight, resumed_weights[name]), name
    held = load_file(tmp_path / "straight" / "checkpoints" / "step-00000006" / "weights.safetensors")
    assert {name.split(".")[0] for name in held} == {"connector", "language_model"}
    assert all(".lora_" in name for name in held if name.startswith("language_model"))
    assert any(weight.abs().max() > 0 for name, weight in held.items() if ".lora_B" in name), "adapters learnt"
    rates = next(line for line in history if line["kind"] == "train")
    assert rates["lr/language_model"] == pytest.approx(3 * rates["lr/connector"])


def test_dropout_was_on(straight, tmp_path):
    history, *_ = straight
    other = go(tmp_path, seed=7)[0]
    assert other[1]["loss"] != history[1]["loss"], "another seed, the same batches: only dropout differs"


def test_checkpoints_hold_what_trains_and_a_few_stay(tmp_path):
    go(tmp_path, steps=4, trained=("connector",), save_every=1, keep_checkpoints=3)
    assert steps_of(tmp_path) == [2, 3, 4]
    weights = torch.load(tmp_path / "checkpoints" / "step-00000004" / "optimizer.pt", weights_only=True)["state"]
    assert weights and all(name.startswith("connector.") for name in weights)
    assert load_file(tmp_path / "checkpoints" / "step-00000004" / "weights.safetensors").keys() == weights.keys()


@pytest.mark.parametrize(("mode", "written"), [("min", [3, 6]), ("max", [3])])
def test_the_best_model_is_saved_and_its_checkpoint_kept(mode, written, tmp_path):
    settings = {"trained": ("connector",), "best": "score", "best_mode": mode, "save_every": None}
    *_, saved = go(tmp_path, steps=9, keep_checkpoints=1, **settings)
    assert list(saved) == written
    assert steps_of(tmp_path) == [written[-1], 9]


def test_a_metric_that_no_evaluation_has_is_told(tmp_path):
    with pytest.raises(SettingsError, match=r"measure no 'scor', only score, drawn\. Did you mean 'score'\?") as caught:
        go(tmp_path, best="scor")
    assert caught.value.key == "training.best"


def test_a_value_that_is_no_number_is_null_in_the_log(tmp_path):
    history = go(tmp_path, steps=9, trained=("connector",))[0]
    assert [line["score"] for line in history if line["kind"] == "evaluation"] == [0.5, 0.25, None]
    assert '"score": null' in (tmp_path / "log.jsonl").read_text()


def rewrite_state(checkpoint, **changes):
    """Change what a checkpoint says, as if it had been written so."""
    state = json.loads((checkpoint / "state.json").read_text()) | changes
    del state["sha256"]
    (checkpoint / "state.json").write_text(json.dumps(state | {"sha256": _hash(state)}))


def test_a_damaged_checkpoint_is_passed_over(straight, tmp_path):
    with pytest.raises(KilledError):
        go(tmp_path, 11)
    newest = tmp_path / "checkpoints" / "step-00000004"
    content = (newest / "optimizer.pt").read_bytes()
    said = []
    for change in (content[:-100], content.replace(b"exp_avg", b"exp_evg", 1)):
        (newest / "optimizer.pt").write_bytes(change)
        found = find_checkpoint(tmp_path, said.append)
        assert found is not None and found.step == 2
    assert len(said) == 2 and all("step-00000004" in text and "optimizer.pt is damaged" in text for text in said)
    (newest / "optimizer.pt").write_bytes(content)
    state = json.loads((newest / "state.json").read_text())
    for change in ({"progress": None}, {"meter": []}, {"total_steps": "11"}, {}):
        (newest / "state.json").write_text(json.dumps(state | change))
        found = find_checkpoint(tmp_path, said.append)
        assert found is not None and found.step == (2 if change else 4)
    assert len(said) == 5 and all("state.json is damaged" in text for text in said[2:])
    (newest / "optimizer.pt").unlink()
    (tmp_path / "checkpoints" / ".step-00000006.partial").mkdir()
    resumed = go(tmp_path, resume=True)
    assert without_times(resumed[0]) == without_times(straight[0])
    Checkpoints(tmp_path, {}, 2).go_back_to(2)
    assert steps_of(tmp_path) == []


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(KilledError):
        go(tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"holds other weights than .* such as 'language_model"):
        go(tmp_path, resume=True, trained=("connector",))
    with pytest.raises(CheckpointError, match="5 batches per epoch, and now there are 4"):
        go(tmp_path, resume=True, rows=ROWS[1:])
    with pytest.raises(SettingsError, match="taken 2 steps already") as caught:
        go(tmp_path, resume=True, steps=2)
    assert caught.value.key == "training.steps"
    found = find_checkpoint(tmp_path, print)
    assert found is not None
    rewrite_state(found.folder, processes=2)
    with pytest.raises(CheckpointError, match="trained by 2 processes, and this run has 1"):
        go(tmp_path, resume=True)


def test_new_rates_hold_from_the_checkpoint_on(tmp_path):
    with pytest.raises(KilledError):
        go(tmp_path, 5)
    parts = {"connector": {"train": "full", "lr": 1e-4, "weight_decay": 0.7}, "language_model": {"train": "full"}}
    history = go(tmp_path, resume=True, parts=parts)[0]
    assert history[-2]["lr/connector"] < 1e-4 < history[-2]["lr/language_model"]


class Recipe(Settings):
    """What ``resume_from`` is given: a recipe."""

    training: TrainingSettings
    model: dict[str, str] = Field(default={})


def test_changed_settings_are_shown_or_refused(tmp_path):
    with pytest.raises(KilledError):
        go(tmp_path, 5)
    found = find_checkpoint(tmp_path, print)
    assert found is not None
    settings = Recipe(training=run_settings(steps=6), model={"kind": "a"}).model_dump(mode="json")
    rewrite_state(found.folder, settings=settings)
    said = []
    resume_from(tmp_path, Recipe(training=run_settings(steps=9, save_every=4), model={"kind": "a"}), said.append)
    assert said[0].endswith("resumed after step 2")
    assert said[1:] == [
        "  changed from here on: training.steps: 6 -> 9",
        "  changed from here on: training.save_every: None -> 4",
    ]
    for newer in (settings["training"], settings["training"]["parts"]["connector"]):
        del newer["evaluate_first" if "evaluate_first" in newer else "only"]  # settings that did not exist then
    rewrite_state(found.folder, settings=settings)
    said.clear()
    resume_from(tmp_path, Recipe(training=run_settings(steps=6), model={"kind": "a"}), said.append)
    assert len(said) == 1
    for changed, key in [
        (Recipe(training=run_settings(steps=6), model={"kind": "b"}), "model.kind"),
        (Recipe(training=run_settings(steps=6, seed=1), model={"kind": "a"}), "training.seed"),
        (
            Recipe(training=run_settings(steps=6, parts={"vision_tower": {"train": "full"}}), model={"kind": "a"}),
            "training.parts.vision_tower.train",
        ),
    ]:
        with pytest.raises(SettingsError, match=f"cannot be resumed with another {key}") as caught:
            resume_from(tmp_path, changed, said.append)
        assert caught.value.key == key


def test_eight_bit_state_is_resumed_too(tmp_path):
    pytest.importorskip("bitsandbytes")
    large = {"optim": OPTIM.model_copy(update={"kind": "adamw_8bit"}), "vocab_size": 512}  # 8 bits from 4096 weights on
    history, weights, *_ = go(tmp_path / "straight", **large)
    with pytest.raises(KilledError):
        go(tmp_path / "killed", 6, **large)
    resumed, same, *_ = go(tmp_path / "killed", resume=True, **large)
    assert without_times(resumed) == without_times(history)
    assert all(torch.equal(same[name], weights[name]) for name in weights)
    saved = torch.load(tmp_path / "killed" / "checkpoints" / "step-00000006" / OPTIMIZER, weights_only=True)["state"]
    assert saved["language_model.model.lm_head.weight"]["state1"].dtype == torch.uint8


def test_without_a_checkpoint_the_run_begins(tmp_path):
    said = []
    assert resume_from(tmp_path, Recipe(training=run_settings()), said.append) is None
    assert "no checkpoint to resume from, so the run starts from the beginning" in said[0]


def test_changes_are_named_by_key():
    old = {"a": {"b": [1, 2]}, "c": None, "d": []}
    new = {"a": {"b": [1]}, "c": 3, "d": [{"e": 1}]}
    assert changed_settings(old, new) == {
        "a.b.1": "2 -> not given",
        "c": "None -> 3",
        "d": "[] -> not given",
        "d.0.e": "not given -> 1",
    }


def test_a_global_batch_is_dealt_out():
    training = run_settings(batch_size=4, global_batch=48)
    assert [with_accumulation(training, processes).accumulation for processes in (1, 2, 3, 12)] == [12, 6, 4, 1]
    with pytest.raises(SettingsError, match="must be a multiple of 20") as caught:
        with_accumulation(training, 5)
    assert caught.value.key == "training.global_batch"
    with pytest.raises(ValueError, match="follows from 'global_batch'"):
        run_settings(global_batch=8, accumulation=2)


def test_fp16_without_a_gpu_is_told():
    with pytest.raises(SettingsError, match="fp16 needs a GPU") as caught:
        make_accelerator("fp16")
    assert caught.value.key == "training.precision"
