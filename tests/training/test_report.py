import io
import json
from pathlib import Path

import pytest
from PIL import Image

from sightbridge.errors import DataError
from sightbridge.training.charts import LEARNING_RATES, Panel, draw_panels, run_panels
from sightbridge.training.report import read_lines, tables_of_parts, write_run_report

pytestmark = pytest.mark.usefixtures("drawn_curves")

TRAIN = {"kind": "train", "samples_per_second": 10.0, "memory_gb": 0.5}
HISTORY = [
    TRAIN | {"step": 1, "loss": 2.0, "loss/itc": 1.5, "lr/connector": 0.1, "lr/connector/no_decay": 0.1},
    TRAIN | {"step": 2, "loss": 1.0, "loss/itc": 0.5, "lr/connector": 0.05, "lr/connector/no_decay": 0.05},
    {"kind": "evaluation", "step": 2, "validation_loss": 1.25, "validation_loss/itc": 0.75, "accuracy": 0.5},
]


def panels() -> dict[str, Panel]:
    return {panel.title: panel for panel in run_panels(HISTORY)}


def test_training_and_validation_losses_share_a_panel():
    assert panels()["loss"].curves == {"training": [(1, 2.0), (2, 1.0)], "validation": [(2, 1.25)]}
    assert panels()["loss: itc"].curves == {"training": [(1, 1.5), (2, 0.5)], "validation": [(2, 0.75)]}


def test_learning_rates_that_are_the_same_are_drawn_once():
    assert panels()[LEARNING_RATES].curves == {"connector": [(1, 0.1), (2, 0.05)]}


def test_a_measure_and_its_languages_share_a_panel():
    values = {"accuracy": 0.5, "accuracy/de": 0.25, "accuracy/zh": 0.75, "recall_at_1/text": 0.1}
    drawn = run_panels([*HISTORY, {"kind": "evaluation", "step": 4, **values}])
    curves = {panel.title: panel.curves for panel in drawn}
    assert curves["accuracy"] == {"all": [(2, 0.5), (4, 0.5)], "de": [(4, 0.25)], "zh": [(4, 0.75)]}
    assert curves["recall at 1/text"] == {"": [(4, 0.1)]} and "accuracy/de" not in curves


def test_every_number_of_the_log_is_in_exactly_one_panel():
    titles = [panel.title for panel in run_panels(HISTORY)]
    assert titles == ["loss", "loss: itc", "accuracy", LEARNING_RATES, "samples per second", "memory gb"]


def test_what_is_not_a_number_has_no_point():
    lines = [*HISTORY, {"kind": "evaluation", "step": 3, "validation_loss": None, "note": "text", "done": True}]
    assert [panel.title for panel in run_panels(lines)] == [panel.title for panel in run_panels(HISTORY)]
    assert run_panels(lines)[0].curves["validation"] == [(2, 1.25)]


def test_a_drawing_is_a_png_of_the_grids_size():
    small, large = (Image.open(io.BytesIO(draw_panels(run_panels(HISTORY), n))) for n in (1, 3))
    assert small.format == "PNG" and small.height == 3 * large.height and large.width == 3 * small.width


def test_curves_and_panels_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    from matplotlib.axes import Axes

    drawn, hidden = [], []
    monkeypatch.setattr(
        Axes,
        "legend",
        lambda axes, **_: drawn.append([(line.get_color(), line.get_linestyle()) for line in axes.lines]),
    )
    monkeypatch.setattr(Axes, "set_axis_off", lambda axes: hidden.append(axes))
    curves = {name: [(2, 0.5), (4, 0.25)] for name in ("all", *map(str, range(30)))}
    draw_panels([Panel("accuracy", curves), Panel("loss", {"": [(2, 0.5)]}), Panel("rate", {"": [(2, 0.5)]})])
    (looks,) = drawn
    assert len(set(looks)) == len(looks) == 31 and len({colour for colour, _ in looks[:9]}) == 9
    assert len(hidden) == 1  # the fourth place in the grid


MARKED = {"accuracy": 0.75, "accuracy/arrow": 1.0, "accuracy/mask": 0.5}
UNMARKED = {"unmarked_accuracy": 0.25, "unmarked_accuracy/arrow": 0.0, "unmarked_accuracy/mask": 0.5}


def test_what_is_measured_in_parts_is_a_table():
    assert tables_of_parts(HISTORY) == [] and tables_of_parts(HISTORY[:2]) == []
    start = {"kind": "evaluation", "step": 0, "accuracy": 0.25, "accuracy/arrow": 0.5}
    (table,) = tables_of_parts([start, {"kind": "evaluation", "step": 9, **MARKED, "validation_loss": 1.0}])
    assert table.columns == ("accuracy, step 0", "accuracy, step 9")
    assert table.rows == (("all", ("0.250", "0.750")), ("arrow", ("0.500", "1.000")), ("mask", ("", "0.500")))


def test_marks_stand_beside_what_they_are_worth(tmp_path: Path):
    line = {"kind": "evaluation", "step": 9, **MARKED, **UNMARKED, "bleu_4": 0.5, "bleu_4/de": 0.5}
    table, languages = tables_of_parts([line])
    assert table.columns == ("accuracy", "unmarked accuracy", "accuracy, difference")
    assert [cells for _, cells in table.rows] == [
        ("0.750", "0.250", "+0.500"),
        ("1.000", "0.000", "+1.000"),
        ("0.500", "0.500", "+0.000"),
    ]
    assert (languages.columns, [name for name, _ in languages.rows]) == (("bleu 4",), ["all", "de"])
    folder = make_run(tmp_path / "run")
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    html = write_run_report(folder).read_text("utf-8")
    assert html.count('class="card"') == 7, "the whole has a tile, its parts have the table"
    assert "<td>arrow</td>" in html and "+1.000" in html


def make_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in HISTORY))
    (folder / "settings.yaml").write_text("optim: {lr: 0.1} # <b>\n")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "command": ["sightbridge", "train", "a b"]}))
    Image.new("RGB", (640, 40), "red").save(folder / "red.png")
    samples = [
        {"images": [str(folder / "red.png")], "question": "What <colour>?", "answer": "rot", "truth": "red"},
        {"images": [str(folder / "gone.png")], "question": "", "answer": "", "truth": "blue"},
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    return folder


def test_the_page_shows_figures_samples_and_how_to_run_it_again(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    html = write_run_report(folder).read_text("utf-8")
    assert "1.2500" in html and "validation loss" in html
    assert "What &lt;colour&gt;?" in html and "(nothing)" in html
    assert "sightbridge train &#39;a b&#39;" in html
    assert f"sightbridge train {folder}/settings.yaml --out {folder}-again" in html
    assert html.count("data:image/png") == html.count("data:image/jpeg") == 1
    assert 'src="http' not in html and "&lt;b&gt;" in html
    assert Image.open(folder / "curves.png").format == "PNG"


def test_a_line_still_being_written_is_left_out(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"kind": "tra')
    assert read_lines(folder / "log.jsonl") == HISTORY


def test_a_run_without_a_logged_step_says_so(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    (folder / "log.jsonl").write_text("")
    with pytest.raises(DataError, match=r"log\.jsonl: has no logged step"):
        write_run_report(folder)
