"""The loop: length, hooks, what stays frozen, what is written down."""

import json
import sys
import time

import pytest
import torch
from training_models import OPTIM, ListedBatches, batches_of, make_batch, run_settings, tiny_model

from sightbridge.errors import DataError, SettingsError
from sightbridge.training.log import RunLog
from sightbridge.training.loop import _step_batches, total_steps, train
from sightbridge.training.state import Progress


def run(tmp_path, model=None, batches=None, **changes):
    hooks = {name: changes.pop(name) for name in ("evaluate", "save", "title") if name in changes}
    model, batches = model or tiny_model(), batches or batches_of([(0, 1), (2, 3)])
    return train(model, batches, run_settings(**changes), OPTIM, tmp_path, **hooks)


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "accumulation", "steps"),
    [
        (1, 10, 1, 10),
        (2, 10, 4, 5),  # 2.5 steps an epoch: the third one takes two batches of either epoch
        (1, 10, 4, 3),
        (0.5, 10, 2, 3),
        (3, 1.25, 1, 4),  # ten records by eight: 3.75 batches in three epochs
        (0.07, 100, 1, 7),  # 7.000000000000001
        (0.01, 3, 1, 1),
        (4, 2.5, 1, 10),
    ],
)
def test_epochs_to_steps(epochs, per_epoch, accumulation, steps):
    assert total_steps(run_settings(epochs=epochs, accumulation=accumulation), per_epoch) == steps


def test_steps_are_taken_as_they_are():
    assert total_steps(run_settings(steps=5, accumulation=3), 2) == 5


def test_no_batches_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nothing to train on.*data\.train"):
        run(tmp_path, batches=ListedBatches([]))


def test_left_over_micro_batches_carry_over_into_the_next_epoch():
    batches = batches_of([[0], [1], [2]])
    stream = _step_batches(batches, 2, Progress())
    taken = [[batch.ids[0] for batch in next(stream)] for _ in range(4)]
    assert taken == [
        ["record-0", "record-1"],
        ["record-2", "record-0"],
        ["record-1", "record-2"],
        ["record-0", "record-1"],
    ]


def test_accumulation_is_the_same_run_as_larger_batches(tmp_path):
    large = run(tmp_path / "large", batches=batches_of([(0, 1, 2, 3), (4, 5, 6, 7)]))
    small = run(tmp_path / "small", batches=batches_of([(0, 1), (2, 3), (4, 5), (6, 7)]), accumulation=2)
    assert [line["loss"] for line in small] == pytest.approx([line["loss"] for line in large], abs=1e-5)


def test_training_learns(tmp_path):
    history = run(tmp_path, batches=batches_of([(0, 1, 3)]), steps=25)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


@pytest.mark.parametrize("trained", ["connector", "language_model", "vision_tower"])
def test_frozen_parts_stay_what_they_are(tmp_path, trained):
    model, before = tiny_model(trained), tiny_model(trained)
    modes = []
    model.language_model.register_forward_pre_hook(
        lambda *_: modes.append({name: part.training for name, part in model.named_children()})
    )
    run(tmp_path, model)
    for name, part in model.named_children():
        same = [torch.equal(a, b) for a, b in zip(part.parameters(), getattr(before, name).parameters(), strict=True)]
        assert (not all(same)) if name == trained else all(same), name
        if name != trained:
            assert all(parameter.grad is None for parameter in part.parameters())
    assert modes == [{name: name == trained for name in modes[0]}] * 3
    assert not model.training and not model.connector.training


def test_hooks_are_called_when_due(tmp_path):
    evaluated, saved, modes = [], [], []

    def evaluate(model, step):
        evaluated.append(step)
        modes.append((model.training, model.connector.training, torch.is_grad_enabled()))
        return {"accuracy": step / 10}

    history = run(
        tmp_path,
        steps=7,
        log_every=5,
        evaluate_every=3,
        save_every=2,
        evaluate=evaluate,
        save=lambda model, step: saved.append((step, model.connector.training)),
    )
    assert evaluated == [3, 6, 7]
    assert modes == [(False, False, False)] * 3
    assert saved == [(2, True), (4, True), (6, True), (7, True)]
    assert [(line["kind"], line["step"]) for line in history] == [
        ("evaluation", 3),
        ("train", 5),
        ("evaluation", 6),
        ("train", 7),
        ("evaluation", 7),
    ]
    assert history[0]["accuracy"] == 0.3


def test_hooks_are_called_once_at_the_end_if_no_interval_is_given(tmp_path):
    calls = []
    run(tmp_path, evaluate=lambda m, step: calls.append(step) or {}, save=lambda m, step: calls.append(-step))
    assert calls == [3, -3]


def test_an_evaluation_between_two_lines_does_not_cut_the_mean_loss(tmp_path):
    every = run(tmp_path / "every", steps=4)
    seldom = run(tmp_path / "seldom", steps=4, log_every=4, evaluate_every=3, evaluate=lambda m, step: {})
    tokens = [1 + 9, 2 + 14] * 2
    mean = sum(line["loss"] * n for line, n in zip(every, tokens, strict=True)) / sum(tokens)
    (line,) = [line for line in seldom if line["kind"] == "train"]
    assert line["loss"] == pytest.approx(mean, abs=1e-6)


def test_learning_rates_of_the_parts_are_set_and_logged(tmp_path):
    parts = {"language_model": {"train": "full", "lr": 1e-3}}
    history = run(tmp_path, tiny_model("connector", "language_model"), parts=parts, steps=3)
    assert [line["lr/connector"] for line in history] == pytest.approx([1e-3, 1e-2, 5e-3])
    assert [line["lr/language_model"] for line in history] == pytest.approx([1e-3, 1e-3, 5e-4])
    assert {key for key in history[0] if key.startswith("lr/")} == {"lr/connector", "lr/language_model"}


def test_the_log_has_a_json_line_for_every_logged_step(tmp_path, capsys):
    history = run(tmp_path, evaluate=lambda m, step: {"accuracy": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == history
    assert set(lines[0]) == {
        *("kind", "step", "loss", "grad_norm", "samples_per_second", "target_tokens_per_second"),
        *("data_wait", "memory_gb", "lr/connector"),
    }
    assert lines[-1] == {"kind": "evaluation", "step": 3, "accuracy": 0.5}
    assert 0.01 < lines[0]["memory_gb"] < 100
    assert capsys.readouterr() == ("", ""), "there is no progress bar without a terminal"


def test_waiting_for_data_is_measured(tmp_path):
    class Slow(ListedBatches):
        def epoch(self, number, skip=0):
            for batch in self.batches:
                time.sleep(0.2)
                yield batch

    history = run(tmp_path, batches=Slow([make_batch([0])]))
    for line in history:
        seconds = 1 / line["samples_per_second"]
        assert 0.2 <= line["data_wait"] * seconds <= seconds


def test_two_runs_of_one_seed_are_the_same(tmp_path):
    first, second = (run(tmp_path / name)[-1]["loss"] for name in ("first", "second"))
    assert first == second


def test_runs_of_different_precision_follow_each_other_in_one_process(tmp_path):
    model = tiny_model()
    dtypes = []
    model.connector.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    run(tmp_path / "bf16", model, precision="bf16")
    assert set(dtypes) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model(make_batch([0]))
    assert dtypes[-1] == torch.float32, "the run's autocast stays on the model"
    run(tmp_path / "fp32", model)
    assert set(dtypes[-3:]) == {torch.float32}


def test_tensorboard_files_are_written_when_asked(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = run(tmp_path, tensorboard=True, evaluate=lambda m, step: {"accuracy": 0.25, "note": "words"})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([h["loss"] for h in history[:3]])
    assert [event.value for event in events.Scalars("evaluation/accuracy")] == [0.25]
    assert "evaluation/note" not in events.Tags()["scalars"]


def test_without_tensorboard_nothing_is_written_unasked(tmp_path):
    run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_missing_tensorboard_is_told_before_an_old_log_is_lost(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    (tmp_path / "log.jsonl").write_text("kept\n")
    with pytest.raises(SettingsError, match=r"pip install 'sightbridge\[train\]'") as caught:
        RunLog(tmp_path, 3, main_process=True, tensorboard=True, title="")
    assert caught.value.key == "training.tensorboard"
    assert (tmp_path / "log.jsonl").read_text() == "kept\n"


def test_other_processes_write_nothing(tmp_path):
    with RunLog(tmp_path / "run", 3, main_process=False, tensorboard=True, title="") as log:
        log.advance()
        log.write("evaluation", 1, {"accuracy": 1.0})
    assert not (tmp_path / "run").exists()
    assert log.history == [{"kind": "evaluation", "step": 1, "accuracy": 1.0}]
