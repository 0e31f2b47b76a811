"""The main job, shrunk to few pictures and steps; whether it learns enough is measured by the slow test."""

import json

import pytest
from rich.console import Console

from sightbridge.data.record import Record
from sightbridge.quickstart.accuracy import Answered, accuracy_by, chance, with_mean, without_pictures
from sightbridge.quickstart.run import QuickstartSettings, run_quickstart
from sightbridge.text.turns import Turn

CHANCE_LIKE = ("training.steps=6", "training.evaluate_every=3", "training.log_every=2")


def answered(truth: str, said: str, type_: str = "colour", language: str = "en") -> Answered:
    turns = (Turn("user", "<image>\nWhich?"), Turn("assistant", truth))
    return Answered(Record("r", ("p.png",), turns, language=language, meta={"type": type_}), truth, said)


def test_accuracy_is_exact_match_per_type_and_the_mean_weighs_types_alike():
    answers = [
        answered("red", "Red"),
        answered("red", "reddish"),
        answered("2", "2", "count"),
        answered("ja", "ja", "count"),
    ]
    by_type = accuracy_by(answers, "type")
    assert by_type == {"colour": 0.5, "count": 1.0}
    assert with_mean(by_type)["mean"] == 0.75


def test_chance_is_the_commonest_answer_of_a_type_in_its_language():
    truths = [("red", "en"), ("red", "en"), ("blue", "en"), ("rot", "de")]
    assert chance([answered(truth, "", language=code) for truth, code in truths]) == {"colour": 0.75}


def test_without_pictures_keeps_the_question_alone():
    blind = without_pictures([answered("red", "").record])[0]
    assert blind.images == () and blind.turns[0].text == "Which?" and blind.turns[1].text == "red"


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    settings = QuickstartSettings(
        folder=folder, connector="linear", train_pictures=24, test_pictures=16, overrides=CHANCE_LIKE
    )
    return settings, run_quickstart(settings, Console(quiet=True))


def test_results_say_everything_that_is_promised(shrunk):
    settings, results = shrunk
    assert json.loads((settings.folder / "results.json").read_text("utf-8")) == results
    types = {"colour", "shape", "count", "position", "existence", "mean"}
    assert set(results["accuracy"]) == set(results["text_only_baseline"]) == set(results["chance"]) == types
    assert 0 <= results["accuracy_new_combinations"] <= 1
    assert {"drawing", "training", "evaluation"} <= set(results["seconds"])
    assert results["trained_parameters"] == 128 * 128 + 128
    assert results["frozen_parameters"] > 10 * results["trained_parameters"]
    assert results["frozen_weights_unchanged"]


def test_the_report_shows_pictures_and_loads_nothing_from_elsewhere(shrunk):
    settings, results = shrunk
    html = (settings.folder / "report.html").read_text("utf-8")
    assert f"{100 * results['accuracy']['mean']:.0f} %" in html
    assert html.count("data:image/png;base64,") == 12 + 1  # pictures, and the curves
    assert "http://" not in html and "https://" not in html and "<script" not in html


def test_the_result_is_an_ordinary_model_folder(shrunk):
    import sightbridge

    settings, _ = shrunk
    model, processor = sightbridge.load(settings.folder / "model")
    picture = next((settings.folder / "scenes" / "images" / "test").iterdir())
    assert isinstance(sightbridge.ask(model, processor, picture, "How many shapes are there?"), str)


@pytest.mark.slow
@pytest.mark.parametrize("language_model", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize(("connector", "bar"), [("mlp", 0.90), ("linear", 0.80), ("qformer", 0.80)])
def test_the_bridge_learns_to_see(connector, bar, language_model, tmp_path):
    settings = QuickstartSettings(folder=tmp_path / "run", connector=connector, language_model=language_model)
    results = run_quickstart(settings, Console(quiet=True))
    mean = results["accuracy"]["mean"]
    print({key: results[key] for key in ("accuracy", "accuracy_new_combinations", "seconds")})
    assert mean >= bar
    assert mean >= results["text_only_baseline"]["mean"] + 0.30
    assert results["accuracy_new_combinations"] >= 0.70
