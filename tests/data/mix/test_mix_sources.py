"""Every kind of part, from small files in the real formats; broken rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mix_files import (
    AOKVQA,
    KARPATHY,
    LLAVA,
    MARVL,
    NLVR2,
    SNLI_VE,
    build,
    captions,
    vqa_annotations,
    vqa_questions,
    write,
)

from sightbridge.errors import SightbridgeError

BABEL = {"EN": [[0, 1, 2], ["tench", "goldfish", "shark"]], "DE": [[0, 2], ["Schleie", "Hai"]], "XQQ": [[0], ["?"]]}
INDEX = {"0": ["n01", "tench"], "1": ["n02", "goldfish"], "2": ["n03", "shark"]}


def texts(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(row["context"], row["label"], row["image_id"]) for row in rows]


def test_captions(tmp_path: Path) -> None:
    write(tmp_path / "c.json", [*captions(6), {"image": "x.jpg", "caption": ["One  bus.\n", "Two {cats}."]}])
    rows, result = build(tmp_path, {"kind": "captions", "path": "c.json", "images": "coco"})
    assert texts(rows)[0] == ("Caption the image in English.", "A bus number 0.", "coco/0.jpg")
    assert texts(rows)[6:] == [
        ("Caption the image.", "One bus.", "coco/x.jpg"),  # the seventh of 6 prompts with and 5 without a language
        ("Short image caption: ", "Two {cats}.", "coco/x.jpg"),
    ]
    assert set(rows[0]) == {"context", "label", "image_id", "language", "part"}
    assert result.total == 8 and result.parts["one"].rows == {"en": 8}


def test_captions_under_other_names(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", [{"sentences": ["Ein Hund."], "id": "9", "img_path": "9.jpg"}])
    columns = {"image": "img_path", "caption": "sentences"}
    part = {"kind": "captions", "path": "test.jsonl", "columns": columns, "templates": "captions_prompt"}
    rows, _ = build(tmp_path, part, source_language="de", languages="de", rows="evaluation")
    assert rows == [
        {"context": "Caption in German: ", "label": "", "text_label": "Ein Hund.", "image_id": "9.jpg"}
        | {"language": "de", "part": "one"}
    ]


def test_karpathys_own_file(tmp_path: Path) -> None:
    write(tmp_path / "dataset_coco.json", KARPATHY)
    part = {"kind": "captions", "format": "karpathy", "path": "dataset_coco.json", "split": "train"}
    rows, _ = build(tmp_path, part)
    assert [(row["label"], row["image_id"]) for row in rows] == [
        ("Of train.", "val2014/a.jpg"),
        ("Of restval.", "val2014/a.jpg"),
    ]


def test_questions_and_their_making_use_the_answer_of_the_same_row(tmp_path: Path) -> None:
    write(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", vqa_questions(6))
    write(tmp_path / "v2_mscoco_train2014_annotations.json", vqa_annotations(6))
    path = "v2_OpenEnded_mscoco_train2014_questions.json"
    rows, _ = build(tmp_path, parts={kind: {"kind": kind, "path": path} for kind in ("vqa", "vqg")})
    vqa, vqg = texts(rows)[:6], texts(rows)[6:]
    assert vqa[:2] == [
        ("What is # 0? Short English answer:", "bus", "COCO_train2014_000000000000.jpg"),
        ("Question: What is # 1? Brief answer (in English):", "cat", "COCO_train2014_000000000001.jpg"),
    ]
    assert vqg[1] == (
        'Based on the image, create a question (in English) for which the answer is "cat".',
        "What is # 1?",
        "COCO_train2014_000000000001.jpg",
    )
    for (_, answer, _), (prompt, question, _) in zip(vqa, vqg, strict=True):
        assert answer in prompt and question.startswith("What is #")


def test_answers_to_evaluate_with_are_all_kept(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "question": "How many?", "answer": ["2", "two", "2"], "question_id": 1}
    write(tmp_path / "vqa.json", [row, row | {"answer": []}])
    rows, result = build(tmp_path, {"kind": "vqa", "path": "vqa.json", "templates": "vqa_prompt"}, rows="evaluation")
    assert [row["text_label"] for row in rows] == [["2", "two", "2"]]
    assert rows[0]["context"] == "Question: How many? Short answer in English:"
    assert result.parts["one"].dropped == {"no answer": 1}


def test_gqas_answers_are_english_in_every_language(tmp_path: Path) -> None:
    row = {"question": "Ist es rot?", "imageId": "n4", "answer": "yes", "fullAnswer": "Yes.", "semantic": []}
    write(tmp_path / "train_5.json", {"2090": row})
    part = {"kind": "vqa", "format": "gqa", "path": "train_5.json", "templates": "vqa_prompt", "answer_language": "en"}
    rows, _ = build(tmp_path, part, source_language="de", languages="de")
    assert texts(rows) == [("Question: Ist es rot? Short answer in English:", "yes", "n4.jpg")]
    assert rows[0]["language"] == "de"


def test_conversations(tmp_path: Path) -> None:
    text_alone = {"id": "t", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    write(tmp_path / "conversation_58k.json", [LLAVA, text_alone])
    part = {"kind": "conversation", "path": "conversation_58k.json", "image_name": "COCO_train2014_{}.jpg"}
    rows, result = build(tmp_path, part)
    assert texts(rows) == [("What is it?", "It is a bus. It is red.", "COCO_train2014_000000033471.jpg")]
    assert result.parts["one"].dropped == {"answer of too many sentences": 1, "not one picture": 1}
    rows, _ = build(tmp_path, part | {"max_sentences": 4})
    assert len(rows) == 2
    rows, _ = build(tmp_path, {"kind": "detail", "path": "conversation_58k.json"})
    assert texts(rows)[1] == ("Tell me all.", "One. Two. Three. Four.", "000000033471.jpg")


def test_reasons(tmp_path: Path) -> None:
    write(tmp_path / "aokvqa_v1p0_train.json", [AOKVQA] * 8)
    part = {"path": "aokvqa_v1p0_train.json", "image_name": "COCO_train2014_{:0>12}.jpg"}
    rows, _ = build(tmp_path, {"kind": "cot", **part}, languages="registry")  # English only, whatever the mixture's
    assert len(rows) == 24
    assert {row["image_id"] for row in rows} == {"COCO_train2014_000000299207.jpg"}
    assert rows[0]["context"].endswith("question. What is the man by the bags awaiting?")
    labels = {row["label"] for row in rows}
    assert "cab because A train would not be on the street." in labels or "cab because He has bags." in labels
    assert not any("because cab" in label or ".." in label for label in labels)
    rows, _ = build(tmp_path, {"kind": "explanation", **part})
    assert rows[0]["context"] == "Question: What is the man by the bags awaiting? Answer: cab. Explanation:"
    assert [row["label"] for row in rows[:3]] == AOKVQA["rationales"]
    rows, _ = build(tmp_path, {"kind": "cot", "path": "aokvqa_v1p0_train.json"})
    assert rows[0]["image_id"] == "000000299207.jpg"


def test_visual_entailment(tmp_path: Path) -> None:
    undecided = SNLI_VE | {"gold_label": "-"}
    nobody = {key: value for key, value in undecided.items() if key != "annotator_labels"}
    xvnli = {"gold_label": "entailment", "sentence2": "Il lit.", "pairID": "1", "Flikr30kID": "75"}
    write(tmp_path / "train.jsonl", [SNLI_VE, undecided, nobody, xvnli])
    rows, result = build(tmp_path, {"kind": "entailment", "path": "train.jsonl"})
    prompt = 'Is it guaranteed true that "The woman has a dog."? Yes, no, or maybe? Answer in English:'
    assert texts(rows)[:2] == [(prompt, "no", "4485090958.jpg"), (prompt, "maybe", "4485090958.jpg")]
    assert texts(rows)[2][1:] == ("yes", "75.jpg")
    assert result.parts["one"].dropped == {"annotators disagree": 1}


def test_two_images(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [NLVR2])
    rows, _ = build(tmp_path, {"kind": "two_images", "path": "train.jsonl", "images": "nlvr2"})
    assert rows == [
        {
            "context": 'Based on the two images, is it correct to say "Both are red."? Yes or no?',
            "label": "yes",
            "left_image": "nlvr2/55/train-10171-0-img0.png",
            "right_image": "nlvr2/55/train-10171-0-img1.png",
            "language": "en",
            "part": "one",
        }
    ]
    write(tmp_path / "marvl-id.jsonl", [MARVL])
    part = {"kind": "two_images", "path": "marvl-id.jsonl", "templates": "two_images_english"}
    rows, _ = build(tmp_path, part, languages="row", rows="evaluation")
    assert rows[0]["left_image"] == "id/images/39-Pan\u0303ci/39-0.jpg"  # decomposed, as in MaRVL's archives
    assert (rows[0]["text_label"], rows[0]["language"]) == ("no", "id")
    assert rows[0]["context"].endswith("Yes or no? Answer in English:")


@pytest.mark.parametrize("as_folder", [True, False])
def test_imagenet(tmp_path: Path, as_folder: bool) -> None:
    names = [f"{folder}/{n}.JPEG" for folder in ("n01", "n02", "n03") for n in range(3)]
    if as_folder:
        for name in names:
            write(tmp_path / "train" / name, "")
    else:
        (tmp_path / "train").write_text("\n".join(names))
        (tmp_path / "train").rename(tmp_path / "train.txt")
    write(tmp_path / "babel.json", BABEL)
    write(tmp_path / "index.json", INDEX)
    part = {
        "path": "train" if as_folder else "train.txt",
        "classes": "babel.json",
        "synsets": "index.json",
        "passes": 2,
    }
    rows, result = build(tmp_path, {"kind": "classify", **part}, languages=["en", "de", "sw"])
    assert result.parts["one"].rows == {"en": 6, "de": 2}
    assert result.parts["one"].dropped == {"no picture of the class left": 2}  # 4 wanted of n01 and n03, 3 there
    assert result.parts["one"].lost == ["sw"]
    assert texts(rows)[:2] == [
        ("What is the main focus of the image? Short English answer:", "tench", "n01/0.JPEG"),
        ("What is in the image? Answer briefly in English.", "goldfish", "n02/0.JPEG"),
    ]
    assert rows[3]["context"] == "What is the main focus of the image? Short German answer:"
    assert [row["label"] for row in rows if row["language"] == "de"] == ["Schleie", "Hai"]
    assert len({row["image_id"] for row in rows}) == 8

    rows, _ = build(tmp_path, {"kind": "decide", **part}, languages=["en"])
    assert rows[0]["image_id"] == "n01/2.JPEG"
    for row in rows:
        right = {"n01": "tench", "n02": "goldfish", "n03": "shark"}[row["image_id"][:3]]
        assert row["label"].startswith("Yes") == (right in row["context"])
    assert {row["label"][:2] for row in rows} == {"Ye", "No"}


def test_matching_asks_about_right_and_wrong_captions(tmp_path: Path) -> None:
    given = captions(200)
    for row in given[:100]:
        row["negatives"] = [f"not {row['image']}", row["caption"]]
    write(tmp_path / "c.json", given)
    rows, _ = build(tmp_path, {"kind": "matching", "path": "c.json"})
    yes = [row for row in rows if row["label"].startswith("Yes")]
    assert 70 < len(yes) < 130
    own = {row["image"]: row["caption"] for row in given}
    for row in rows:
        assert (own[row["image_id"]] in row["context"]) == row["label"].startswith("Yes")
    assert 10 < sum("not " in row["context"] for row in rows) < 60  # half of the wrong ones, where the row has any


def test_mblips_own_rows_are_taken_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "m.json", [
        {"context": "Wie {viele}?", "label": "zwei", "image_id": "a.jpg", "language": "de"},
        {"context": "Both?", "label": "yes", "left_image": "a.jpg", "right_image": "b.jpg"},
        {"context": "What?", "label": "", "image_id": "a.jpg"},
    ])  # fmt: skip
    rows, result = build(tmp_path, {"kind": "rows", "path": "m.json"})
    assert [(row["context"], row["label"], row["language"]) for row in rows] == [
        ("Wie {viele}?", "zwei", "de"),
        ("Both?", "yes", "en"),
    ]
    assert rows[1]["right_image"] == "b.jpg" and result.parts["one"].dropped == {"no answer": 1}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("captions", [{"image": "a.jpg"}], r"raw.json, row 1: key 'caption' is missing"),
        ("captions", [{"url": "http://a/b.jpg", "caption": "A"}], r"row 1: has an 'url' .* download them first"),
        ("captions", [{"image": "../a.jpg", "caption": "A"}], r"row 1: the picture '../a.jpg' is outside"),
        ("captions", [{"image": "a.jpg", "caption": "A", "language": "de"}], r"its language is 'de'.*languages=row"),
        ("vqa", [{"image": "a.jpg", "question": "Q?"}], r"row 1: key 'answer' is missing"),
        ("vqa", vqa_questions(1), r"question 1: the annotations have no answers to question 0"),
        ("conversation", [LLAVA | {"conversations": LLAVA["conversations"][:1]}], r"row 1, .*one after the other"),
        (
            "cot",
            [AOKVQA | {"correct_choice_idx": 4}],
            r"row 1, key 'correct_choice_idx': is 4, but there are 4 choices",
        ),
        ("entailment", [SNLI_VE | {"gold_label": "maybe"}], r"row 1, key 'gold_label': expected one of entailment"),
        ("two_images", [NLVR2 | {"label": "perhaps"}], r"row 1, key 'label': expected true or false, got 'perhaps'"),
        ("rows", [{"label": "x", "image_id": "a.jpg"}], r"row 1: key 'context' is missing"),
    ],
)
def test_broken_rows_are_named_and_nothing_is_written(tmp_path: Path, kind: str, content: Any, message: str) -> None:
    write(tmp_path / "raw.json", content)
    with pytest.raises(SightbridgeError, match=message):
        build(tmp_path, {"kind": kind, "path": "raw.json"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"EN": [[0, 1], ["tench"]]}, r"language 'EN': 2 numbers of classes, but 1 names"),
        ({"EN": [[7], ["tench"]]}, r"'synsets' has no class number 7"),
        ({"EN": "tench"}, r"language 'EN': expected \[\[numbers\], \[names\]\]"),
        ({"EN": [[1], ["goldfish"]]}, r"holds no picture|no picture of any class"),
    ],
)
def test_broken_tables_of_classes(tmp_path: Path, classes: Any, message: str) -> None:
    (tmp_path / "train.txt").write_text("n01/a.JPEG")
    write(tmp_path / "babel.json", classes)
    write(tmp_path / "index.json", INDEX)
    part = {"kind": "classify", "path": "train.txt", "classes": "babel.json", "synsets": "index.json"}
    with pytest.raises(SightbridgeError, match=message):
        build(tmp_path, part)
