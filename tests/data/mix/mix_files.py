"""Small raw files in the formats that people have, and mixtures of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightbridge.data.mix.plan import plan_mix
from sightbridge.data.mix.settings import MixSettings
from sightbridge.data.mix.write import MixResult, write_mix

WORDS = ("bus", "cat", "dog", "cup", "tree", "boat", "kite", "shoe")


def captions(count: int) -> list[dict[str, Any]]:
    """LAVIS' rows, each of a picture of its own."""
    return [{"image": f"{n}.jpg", "caption": f"A {WORDS[n % 8]} number {n}.", "image_id": n} for n in range(count)]


def vqa_questions(count: int) -> dict[str, Any]:
    """VQAv2's official questions."""
    rows = [{"image_id": n, "question": f"What is # {n}?", "question_id": 10 * n} for n in range(count)]
    return {"info": {}, "data_subtype": "train2014", "questions": rows}


def vqa_annotations(count: int) -> dict[str, Any]:
    """VQAv2's official annotations: the answer to question n is word n, given most often."""
    rows = []
    for n in range(count):
        said = [WORDS[n % 8], "thing", WORDS[n % 8]]
        answers = [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(said, 1)]
        rows.append(
            {"question_id": 10 * n, "answers": answers, "answer_type": "other", "multiple_choice_answer": said[0]}
        )
    return {"info": {}, "annotations": rows}


LLAVA = {
    "id": "000000033471",
    "image": "000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is\nit?"},
        {"from": "gpt", "value": "It is a bus. It is red."},
        {"from": "human", "value": "Tell me all."},
        {"from": "gpt", "value": "One. Two. Three. Four."},
    ],
}
AOKVQA = {
    "split": "train",
    "image_id": 299207,
    "question_id": "22MexNkBPpdZGX6sxbxVBH",
    "question": "What is the man by the bags awaiting?",
    "choices": ["skateboarder", "train", "delivery", "cab"],
    "correct_choice_idx": 3,
    "direct_answers": ["ride", "taxi"],
    "difficult_direct_answer": False,
    "rationales": ["A train would not be on the street.", "He has bags", "The man has luggage..."],
}
SNLI_VE = {
    "annotator_labels": ["neutral", "entailment"],
    "captionID": "4.jpg#0",
    "gold_label": "contradiction",
    "pairID": "4.jpg#0r1n",
    "sentence1": "A woman.",
    "sentence2": "The woman has a dog.",
    "Flickr30K_ID": "4485090958",
}
NLVR2 = {
    "sentence": "Both are red.",
    "left_url": "http://a",
    "right_url": "http://b",
    "label": "True",
    "identifier": "train-10171-0-0",
    "directory": 55,
}
MARVL = {
    "concept": "39-Pañci",
    "language": "id",
    "caption": "Panci di salah satu foto.",
    "left_img": "39-0.jpg",
    "right_img": "39-11.jpg",
    "id": "id-0",
    "label": False,
}
KARPATHY = {
    "images": [
        {
            "filepath": "val2014",
            "filename": "a.jpg",
            "split": split,
            "sentences": [{"raw": f"Of {split}.", "tokens": []}],
        }
        for split in ("train", "restval", "val")
    ],
    "dataset": "coco",
}


def write(path: Path, content: Any) -> Path:
    """Write JSON, or JSON lines if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) for row in content] if path.suffix == ".jsonl" else [json.dumps(content)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def settings(root: Path, part: dict[str, Any] | None = None, **given: Any) -> MixSettings:
    """A mixture of one part, ``part``, or of ``parts``; pictures are not looked for."""
    defaults: dict[str, Any] = {"description": "", "missing_pictures": "ignore", "languages": "en", "order": "parts"}
    parts = {"parts": {"one": part}} if part is not None else {}
    return MixSettings.model_validate(defaults | {"root": str(root)} | parts | given)


def build(root: Path, part: dict[str, Any] | None = None, **given: Any) -> tuple[list[dict[str, Any]], MixResult]:
    """Write the mixture and read it back."""
    out = root / "out" / "mix.json"
    result = write_mix(plan_mix(settings(root, part, **given)), out, examples=4)
    return json.loads(out.read_text(encoding="utf-8")), result
