"""Our models in lmms-eval: a task of its own kind, from files of this test, with answers and with choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_workplace import Workplace

from sightbridge.checkpoints.folder import load_model
from sightbridge.generation.answer import ask
from sightbridge.scoring import load_scorer, rank_options

pytest.importorskip("lmms_eval")

TASK = """
task: tiny_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_visual: !function tiny_utils.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
ANSWERS = """
generation_kwargs: {max_new_tokens: 6, temperature: 0, do_sample: false, until: ["zz"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICES = """
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
UTILS = """
from PIL import Image

def pictures(doc):
    return [Image.open(path).convert("RGB") for path in doc["pictures"]]
"""


@pytest.fixture
def rows(workplace: Workplace, tmp_path: Path) -> list[dict[str, Any]]:
    pictures = [str(path) for path in sorted(workplace.picture.parent.glob("*.png"))]
    rows = [
        {
            "question": f"What is it, number {number}?",
            "pictures": pictures[: 1 + number % 2],  # every second question is about two pictures
            "choices": ["a bus", "two red squares and a cat", "no"],
            "answer": number % 3,
        }
        for number in range(5)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "tiny_utils.py").write_text(UTILS, "utf-8")
    for kind, more in (("generate_until", ANSWERS), ("multiple_choice", CHOICES)):
        text = TASK.format(kind=kind, data=tmp_path / "rows.json", more=more)
        (tmp_path / f"tiny_{kind}.yaml").write_text(text, "utf-8")
    return rows


def evaluate(workplace: Workplace, folder: Path, task: str, batch_size: int) -> list[dict[str, Any]]:
    """What lmms-eval kept of every document, in order."""
    from lmms_eval.evaluator import simple_evaluate  # type: ignore[import-not-found]
    from lmms_eval.tasks import TaskManager  # type: ignore[import-not-found]

    results = simple_evaluate(
        model="sightbridge",
        model_args=f"pretrained={workplace.model}",
        tasks=[task],
        batch_size=batch_size,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False, model_name="sightbridge"),
        log_samples=True,
        bootstrap_iters=0,
    )
    return sorted(results["samples"][task], key=lambda sample: sample["doc_id"])


def test_answers_are_those_of_ask(workplace: Workplace, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    samples = evaluate(workplace, tmp_path, "tiny_generate_until", 3)
    model, processor = load_model(workplace.model)
    wanted = [ask(model, processor, row["pictures"], row["question"], max_new_tokens=6) for row in rows]
    assert [sample["filtered_resps"][0] for sample in samples] == wanted and all(wanted)


def test_losses_of_choices_are_those_of_options(
    workplace: Workplace, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    samples = evaluate(workplace, tmp_path, "tiny_multiple_choice", 4)
    scorer = load_scorer(workplace.model, "options")
    seen = set()
    for sample, row in zip(samples, rows, strict=True):
        found = [float(response[0]) for response in sample["filtered_resps"]]
        if len(row["pictures"]) == 1:  # our own ranking is of one picture
            asked = {"image": row["pictures"][0], "question": row["question"], "options": row["choices"]}
            torch.testing.assert_close(torch.tensor(found), -torch.tensor(rank_options(scorer, [asked])[0].scores))
        alone = evaluate_one(workplace, row)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(alone))
        seen |= set(found)
        assert sample["acc"] == (found.index(min(found)) == row["answer"]), "the likeliest is chosen"
    assert len(seen) == 15, "no question and picture gives what another one does"


def evaluate_one(workplace: Workplace, row: dict[str, Any]) -> list[float]:
    """Each choice by itself, as a loss of training."""
    from sightbridge.data.processor import prompt_record
    from sightbridge.text.turns import Turn

    model, processor = load_model(workplace.model)
    asked = prompt_record(row["pictures"], row["question"])
    turns = [(*asked.turns[:-1], Turn("assistant", choice)) for choice in row["choices"]]
    records = [type(asked)("x", asked.images, own) for own in turns]
    with torch.no_grad():
        return [model.eval()(processor([record]))["lm"].sum.item() for record in records]


def test_generation_settings_of_lmms_eval_become_ours() -> None:
    from sightbridge.evaluation.lmms_model import read_generation

    assert not read_generation({"do_sample": False, "temperature": 0, "top_p": None, "image_aspect_ratio": "x"}).sample
    drawn = read_generation({"temperature": 0.2, "top_p": 0.9, "until": "END", "max_new_tokens": 5})
    assert (drawn.sample, drawn.temperature, drawn.top_p, drawn.stop) == (True, 0.2, 0.9, ["END"])
    assert read_generation({"num_beams": 3, "until": ["", "x"]}).stop == ["x"]
