"""Published files of benchmarks: rows as they are published become records and comparisons, wrong ones are told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sightbridge.data.readers.benchmarks import BENCHMARK_READERS, MATCH_READERS
from sightbridge.errors import DataError

REAL = Path(os.environ.get("SIGHTBRIDGE_PUBLISHED_FILES", Path(__file__).parents[3] / "shared/data"))
"""Files of benchmarks as their publishers give them out; not part of this repository."""


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, "utf-8")
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    else:
        path.write_text(json.dumps(content, indent=1), "utf-8")
    return path


def read(name: str, path: Path, **options: Any) -> list[Any]:
    return list({**BENCHMARK_READERS, **MATCH_READERS}[name](path, path.parent / "pictures", **options))


def test_xvnli(tmp_path: Path) -> None:
    rows = [
        {"gold_label": label, "sentence2": f"It is {label}.", "Flikr30kID": "7", "pairID": f"7#{label}"}
        for label in ("entailment", "neutral", "contradiction", "-")
    ]
    found = read("xvnli", write(tmp_path, "test.jsonl", rows))
    assert [record.meta.get("answers") for record in found] == [["yes"], ["maybe"], ["no"], None]
    assert found[0].images == (tmp_path / "pictures/7.jpg",)
    assert found[0].turns[0].text == "<image>\nIt is entailment." and found[3].turns[1].text is None
    with pytest.raises(DataError, match="line 1, key 'gold_label': expected entailment"):
        read("xvnli", write(tmp_path, "test.jsonl", [rows[0] | {"gold_label": "yes"}]))


def test_nlvr2_and_marvl(tmp_path: Path) -> None:
    marvl = {"id": "sw-1", "caption": "Picha", "concept": "3-Ngo\u0302", "left_img": "l.jpg", "right_img": "r.jpg"}
    nlvr2 = {"identifier": "test1-0-1-0", "sentence": "Two dogs.", "label": "False"}
    write(tmp_path, "pictures/3-Ng\u00f4/l.jpg", "")  # one accent stored apart, one in its letter
    path = write(tmp_path, "rows.jsonl", [marvl | {"label": True}, nlvr2])
    first, second = read("nlvr2", path)
    assert first.turns[0].text == "<image>\n<image>\nPicha" and first.meta["answers"] == ["yes"]
    assert [image.name for image in second.images] == ["test1-0-1-img0.png", "test1-0-1-img1.png"]
    assert second.meta["answers"] == ["no"]
    with pytest.raises(DataError, match="key 'label': expected true or false"):
        read("nlvr2", write(tmp_path, "rows.jsonl", [marvl | {"label": "maybe"}]))


def test_karpathy(tmp_path: Path) -> None:
    image = {"filename": "a.jpg", "filepath": "val2014", "split": "test", "cocoid": 3, "sentences": [{"raw": "A."}]}
    path = write(tmp_path, "dataset_coco.json", {"images": [image, image | {"split": "train"}]})
    (record,) = read("karpathy", path)
    assert record.id == "3" and record.images == (tmp_path / "pictures/val2014/a.jpg",)
    assert record.meta["references"] == ["A."]
    with pytest.raises(DataError, match=r"no split 'val'; it has test \(1\), train \(1\)"):
        read("karpathy", path, split="val")
    with pytest.raises(DataError, match="images 1: key 'sentences' is missing"):
        read("karpathy", write(tmp_path, "d.json", {"images": [{"filename": "a", "split": "test"}]}))


def test_nocaps(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "domain": "near-domain"} for n in range(2)]
    captions = [{"image_id": n, "caption": f"{n}, {m}"} for m in range(2) for n in range(2)]
    first, _ = read("nocaps", write(tmp_path, "n.json", {"images": images, "annotations": captions}))
    assert first.meta["references"] == ["0, 0", "0, 1"] and first.meta["type"] == "near-domain"
    with pytest.raises(DataError, match="images 2: picture 1 has no captions"):
        read("nocaps", write(tmp_path, "n.json", {"images": images, "annotations": captions[:1]}))


def test_flickr_and_xm3600(tmp_path: Path) -> None:
    row = {"id": 5, "img_path": "5.jpg", "sentences": ["Ein Hund.", "Hund"]}
    (record,) = read("flickr", write(tmp_path, "f.jsonl", [row]))
    assert record.id == "5" and record.meta["references"] == ["Ein Hund.", "Hund"]
    row = {"image/key": "0a", "image/locale": "de", "de": {"caption": ["Ein Hund."]}, "en": {"caption": ["A dog."]}}
    path = write(tmp_path, "captions.jsonl", [row])
    assert read("xm3600", path, language="de")[0].meta["references"] == ["Ein Hund."]
    with pytest.raises(DataError, match="key 'fr' is missing"):
        read("xm3600", path, language="fr")


def test_maxm_and_pope(tmp_path: Path) -> None:
    pair = {"question_id": "q", "question": "Was?", "answers": ["Hund"], "processed_answers": ["hund", "der hund"]}
    content = {"annotations": [{"image_id": "0a", "qa_pairs": [pair | {"is_collection": "true"}]}]}
    (record,) = read("maxm", write(tmp_path, "m.json", content))
    assert record.meta == {"answers": ["hund", "der hund"], "type": "collection"}
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a car?", "label": "no"}
    (record,) = read("pope", write(tmp_path, "p.json", json.dumps(row) + "\n"))
    assert record.turns[0].text == "<image>\nIs there a car?" and record.meta["answers"] == ["no"]
    with pytest.raises(DataError, match="expected yes or no, got 'No'"):
        read("pope", write(tmp_path, "p.jsonl", [row | {"label": "No"}]))


def test_vip_bench(tmp_path: Path) -> None:
    truth = {"question": "What is in <obj>?", "answer": "4", "capability": ["ocr", "math"]}
    write(tmp_path, "vip-bench-meta-data.json", {"v1_0": truth})
    rows = [{"question_id": 0, "image": "0.png", "text": "What is in the red box?"}]
    (record,) = read("vip_bench", write(tmp_path, "bbox/questions.jsonl", rows))
    assert record.id == "v1_0" and record.meta["tags"] == ["math", "ocr"] and record.meta["type"] == "math+ocr"
    with pytest.raises(DataError, match="question v1_1 is not in"):
        read("vip_bench", write(tmp_path, "bbox/questions.jsonl", [rows[0] | {"question_id": 1}]))


def test_two_by_two_in_all_three_spellings(tmp_path: Path) -> None:
    captions = {"caption_0": "a b", "caption_1": "b a"}
    winoground = {"id": 3, "image_0": "ex_3_img_0", "image_1": "ex_3_img_1", "collapsed_tag": "Object", **captions}
    (one,) = read("two_by_two", write(tmp_path, "examples.jsonl", [winoground]))
    assert one.id == "3" and one.meta == {"type": "Object"}
    assert [image.name for image in one.images] == ["ex_3_img_0.png", "ex_3_img_1.png"]
    csv = "id,image_0,image_1,caption_0,caption_1\n0,images/a.png,images/b.png,x y,y x\n"
    (one,) = read("two_by_two", write(tmp_path, "metadata.csv", csv))
    assert one.texts == ("x y", "y x") and one.images[0] == tmp_path / "pictures/images/a.png"
    eqben = [{"image0": "eqbensd/1.jpg", "image1": "eqbensd/2.jpg", "caption0": "x", "caption1": "y"}]
    (one,) = read("two_by_two", write(tmp_path, "all_select.json", eqben))
    assert one.meta == {"type": "eqbensd"} and one.id == "0"


def test_rated_pictures(tmp_path: Path) -> None:
    tifa = {"coco_1_stable_diffusion_v1_5": {"text_id": "coco_1", "image_path": "x.jpg", "text": "A tree"}}
    path = write(tmp_path, "tifa160.json", tifa)
    header = "model_type,source_id,answer\n"
    write(tmp_path, "dsg_tifa160_anns.csv", header + "sd1dot5,coco_1,4\nsd1dot5,coco_1,5\n")
    (one,) = read("tifa160", path)
    assert one.meta == {"rating": 4.5, "type": "stable_diffusion_v1_5"}
    write(tmp_path, "dsg_tifa160_anns.csv", header + "mini-dalle,coco_1,4\n")
    with pytest.raises(DataError, match="has no rating"):
        read("tifa160", path)
    genai = {"00001": {"prompt": "A tree", "models": {"DALLE_3": [5, 4], "SDXL_Base": [1]}}}
    write(tmp_path, "skills.json", {"counting": ["00001"], "scene": ["00002"]})
    both = read("genai_bench", write(tmp_path, "genai.json", genai), skills="skills.json")
    assert [one.meta["rating"] for one in both] == [4.5, 1] and both[0].meta["tags"] == ["counting"]
    assert both[0].images == (tmp_path / "pictures/DALLE_3/00001.jpeg",)


def test_labelled_pictures(tmp_path: Path) -> None:
    csv = "image,text,label,original_dataset_id,dataset_source\na.jpg,a cat,1,9,editbench\nb.jpg,a dog,0,9,drawbench\n"
    both = read("seetrue", write(tmp_path, "SeeTRUE.csv", csv))
    assert [one.meta["label"] for one in both] == [1, 0] and both[1].meta["type"] == "drawbench"
    rows = [{"caption": "a cat", "image_0": "a.jpg", "image_1": "b.jpg", "label_0": 1}]
    assert read("pick_a_pic", write(tmp_path, "pick.json", rows))[0].meta == {"label": 0}
    with pytest.raises(DataError, match="expected 0 or 1, got 2"):
        read("pick_a_pic", write(tmp_path, "pick.json", [rows[0] | {"label_0": 2}]))


@pytest.mark.skipif(not REAL.is_dir(), reason="the published files are not here")
@pytest.mark.parametrize(
    ("name", "path", "count"),
    [
        ("xvnli", "xvnli/en/test.jsonl", 1164),
        ("xvnli", "xvnli/fr/test.jsonl", 1164),
        ("nlvr2", "marvl/marvl-id.jsonl", 1128),
        ("nlvr2", "marvl/marvl-sw.jsonl", 1108),
        ("flickr", "xflickrco/de/test.jsonl", 2000),
        ("pope", "pope/coco_pope_random.json", 3000),
        ("tifa160", "tifa160/tifa160.json", 800),
    ],
)
def test_published_files(name: str, path: str, count: int) -> None:
    found = read(name, REAL / path)
    assert len(found) == count and len({one.id for one in found}) == count


def test_scenes_as_pairs_that_fit_or_do_not(tmp_path: Path) -> None:
    from sightbridge.data.scenes.write import ScenesSettings, write_scenes

    write_scenes(tmp_path, ScenesSettings(train=2, test=4, languages=("en", "de"), size=48))
    pairs = list(MATCH_READERS["figures"](tmp_path / "figures_test.json", tmp_path))
    assert len(pairs) == 8 and {pair.meta["label"] for pair in pairs} == {0, 1}
    assert all(pair.images[0].is_file() and '"' not in pair.texts[0] for pair in pairs)
    fours = list(MATCH_READERS["two_by_two"](tmp_path / "two_by_two_test.json", tmp_path))
    assert len(fours) == 4 and all(len(four.images) == len(four.texts) == 2 for four in fours)
    assert fours[0].images[0].name == "00000.png" and fours[0].images[1].name == "00002.png"  # the next in its language
    (tmp_path / "wrong.json").write_text(json.dumps([{"image": "a.png", "conversations": [{"value": "What?"}]}]))
    with pytest.raises(DataError, match="a text in quotation marks"):
        list(MATCH_READERS["figures"](tmp_path / "wrong.json", tmp_path))
