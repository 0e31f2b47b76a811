"""Shares of languages, translators, and that the same seed makes the same bytes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mix_files import WORDS, build, captions, settings, vqa_annotations, vqa_questions, write

import sightbridge
from sightbridge.data.mix.instructions import find_instructions
from sightbridge.data.mix.kinds import KINDS
from sightbridge.data.mix.plan import plan_mix
from sightbridge.data.mix.settings import mix_names, read_mix
from sightbridge.data.mix.shares import assign, resolve_languages, share_out
from sightbridge.data.mix.write import write_mix
from sightbridge.errors import DataError, SettingsError, SightbridgeError
from sightbridge.text.languages import LANGUAGES

CAPTIONS = {"kind": "captions", "path": "c.json"}
IDENTITY = {"kind": "identity"}


def german(text: str) -> str:
    return f"<{text}>"


def table(count: int) -> dict[str, str]:
    prompts = find_instructions("captions", None).translated
    return {text: german(text) for text in (*(row["caption"] for row in captions(count)), *prompts)}


def test_shares_are_exact_and_small_ones_are_seen_to() -> None:
    shares = {code: language.share for code, language in LANGUAGES.items()}
    for total in (1, 97, 23_000, 2_273_005):
        rows = share_out(total, shares)
        assert sum(rows.values()) == total
        assert all(abs(rows[code] - total * share / 100) < 1 + 1e-5 * total for code, share in shares.items())
    assert sum(count == 0 for count in share_out(23_000, shares).values()) == 11  # mBLIP loses 19
    assert min(share_out(23_000, shares, min_rows=2).values()) == 2
    with pytest.raises(SettingsError, match="95 rows cannot give each of 96 languages 1"):
        share_out(95, shares, min_rows=1)
    places = assign({"en": 3, "de": 2}, Random(0))
    assert Counter(places) == {0: 3, 1: 2}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("row", None),
        ("de", {"de": 1.0}),
        (["en", "he"], {"en": 1.0, "iw": 1.0}),
        ({"en": 2, "tl": 1}, {"en": 2, "fil": 1}),
    ],
)
def test_languages_can_be_given_in_several_ways(given: Any, expected: Any) -> None:
    assert resolve_languages(given) == expected
    assert len(resolve_languages("registry") or {}) == 96


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["en", "germn"], r"unknown language 'germn'.*'de' \(German\)"),
        (["he", "iw"], "the language 'iw' is given twice"),
        ({"en": 0}, "the share of 'en' is 0"),
        ([], "names no language"),
    ],
)
def test_wrong_languages(tmp_path: Path, given: Any, message: str) -> None:
    write(tmp_path / "c.json", captions(2))
    with pytest.raises(SettingsError, match=f"part 'one': .*{message}"):
        build(tmp_path, CAPTIONS, languages=given)


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "c.json", captions(300))
    made = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        given = settings(tmp_path, CAPTIONS | {"sample": 200}, languages="registry", translator=IDENTITY, seed=seed)
        given = given.model_copy(update={"order": "shuffled"})
        write_mix(plan_mix(given), tmp_path / f"{name}.json")
        made[name] = (tmp_path / f"{name}.json").read_bytes()
    assert made["a"] == made["b"] != made["c"]
    rows = json.loads(made["a"])
    assert len(rows) == 200 and len({row["image_id"] for row in rows}) == 200
    assert [row["image_id"] for row in rows] != sorted(row["image_id"] for row in rows)
    assert sorted(path.name for path in tmp_path.glob(".*")) == []  # no temporary files are left


def test_untranslated_rows_and_lost_languages_are_told(tmp_path: Path) -> None:
    write(tmp_path / "c.json", captions(100))
    rows, result = build(tmp_path, CAPTIONS, languages={"en": 90, "de": 9.9, "sw": 0.1}, translator=IDENTITY)
    counts = result.parts["one"]
    assert counts.rows == {"en": 90, "de": 10} and counts.lost == ["sw"] and counts.untranslated == 10
    # nobody has translated the prompts that do not name the language
    assert all("German" in row["context"] for row in rows if row["language"] == "de")
    statistics = json.loads((tmp_path / "out" / "mix.statistics.json").read_text())
    assert statistics["parts"]["one"]["languages_without_rows"] == ["sw"]
    assert statistics["parts"]["one"]["untranslated_rows"] == 10 and statistics["settings"]["seed"] == 42
    _, result = build(tmp_path, CAPTIONS, languages={"en": 90, "sw": 0.1}, translator=IDENTITY, min_rows=3)
    assert result.parts["one"].rows == {"en": 97, "sw": 3} and not result.parts["one"].lost


def test_rows_keep_their_own_languages(tmp_path: Path) -> None:
    given = [row | {"language": code} for row, code in zip(captions(3), ("en", "he", "zh-TW"), strict=True)]
    write(tmp_path / "c.json", given)
    rows, result = build(tmp_path, CAPTIONS, languages="row", names={"zh": "Taiwanese Mandarin"})
    assert [row["context"] for row in rows] == [
        f"Caption the image in {name}." for name in ("English", "Hebrew", "Taiwanese Mandarin")
    ]
    assert result.parts["one"].rows == {"en": 1, "iw": 1, "zh": 1}
    rows, _ = build(tmp_path, CAPTIONS, languages="row", names="mblip")
    assert rows[1]["context"] == "Caption the image in former Hebrew."
    write(tmp_path / "c.json", captions(1))
    with pytest.raises(DataError, match="row 1: has no 'language'"):
        build(tmp_path, CAPTIONS, languages="row")


@pytest.mark.parametrize("form", ["de.json", "de.tsv", "all.json"])
def test_a_table_of_translations(tmp_path: Path, form: str) -> None:
    write(tmp_path / "c.json", captions(40))
    path = tmp_path / "translations"
    if form == "all.json":
        path = write(tmp_path / "all.json", {"German": table(40)})
    elif form == "de.json":
        write(path / form, table(40))
    else:
        path.mkdir()
        (path / form).write_text("".join(f"{here}\t{there}\n\n" for here, there in table(40).items()))
    rows, _ = build(tmp_path, CAPTIONS, languages=["en", "de"], translator={"kind": "file", "path": path.name})
    assert Counter(row["language"] for row in rows) == {"en": 20, "de": 20}
    own = {row["image"]: row["caption"] for row in captions(40)}
    for row in rows:
        caption = own[row["image_id"]]
        assert row["label"] == (caption if row["language"] == "en" else german(caption))
    prompts = {row["context"] for row in rows if row["language"] == "de"}
    assert "<Caption the image.>" in prompts and "Caption the image in German." in prompts
    # as in mBLIP, a translation that still says "image caption" is not used
    assert "<Short image caption: >" not in prompts and "Caption the image." not in prompts


def test_a_missing_translation_stops_or_drops(tmp_path: Path) -> None:
    write(tmp_path / "c.json", captions(10))
    known = table(10)
    del known[captions(10)[4]["caption"]]
    write(tmp_path / "t" / "de.json", known)
    translator = {"kind": "file", "path": "t"}
    with pytest.raises(DataError, match=r"no translation into 'de' of 'A tree number 4.'"):
        build(tmp_path, CAPTIONS, languages="de", translator=translator)
    assert not list((tmp_path / "out").glob("*"))
    rows, result = build(tmp_path, CAPTIONS, languages="de", translator=translator | {"missing": "drop"})
    assert len(rows) == 9 and result.parts["one"].dropped == {"no translation": 1}
    with pytest.raises(DataError, match=r"has no translations into 'sw'; expected sw.json or sw.tsv"):
        build(tmp_path, CAPTIONS, languages="sw", translator=translator)


def test_answers_are_translated_if_common_and_translated_back(tmp_path: Path) -> None:
    count = 80
    questions = write(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", vqa_questions(count))
    write(tmp_path / "v2_mscoco_train2014_annotations.json", vqa_annotations(count))
    known = {row["question"]: german(row["question"]) for row in vqa_questions(count)["questions"]}
    known |= {word: german(word) for word in WORDS} | {"cat": "<bus>", "dog": "dog"}
    write(tmp_path / "t" / "de.json", known)
    part = {"kind": "vqa", "path": questions.name, "translate_answers": 1.0, "min_answer_count": 10}
    translator = {"kind": "file", "path": "t"}
    rows, _ = build(tmp_path, part, languages="de", translator=translator)
    for row in rows:
        assert "<What is #" in row["context"]
        word = WORDS[int(row["image_id"][-6:-4]) % 8]
        # "<bus>" translates back to "bus", not to "cat"; "dog" is the same in both languages
        is_english = word in ("cat", "dog")
        assert row["label"] == (word if is_english else german(word))
        assert ("English" if is_english else "German") in row["context"]
    rare, _ = build(tmp_path, part | {"min_answer_count": 11}, languages="de", translator=translator)
    assert {row["label"] for row in rare} == set(WORDS)
    half, _ = build(tmp_path, part | {"translate_answers": 0.5}, languages="de", translator=translator)
    assert 15 < sum(row["label"].startswith("<") for row in half) < 45
    asked, _ = build(tmp_path, part | {"kind": "vqg"}, languages="de", translator=translator)
    assert "in German whose answer is: <bus>" in asked[0]["context"]
    assert asked[0]["label"] == "<What is # 0?>"


@pytest.mark.parametrize(
    ("part", "mixture", "message"),
    [
        ({"kind": "caption"}, {}, r"part 'one': unknown kind 'caption'.*Did you mean 'captions'"),
        ({"format": "vqa"}, {}, r"made of files in the format captions or karpathy or regions, got 'vqa'"),
        ({"passes": 2}, {}, r"'passes' is for kind classify or decide, not for 'captions'"),
        ({"split": "train"}, {}, r"'split' is for files in the format karpathy"),
        ({"path": "none.json"}, {}, r"part 'one': path: there is no '.*none.json'"),
        ({"templates": "vqa"}, {}, r"no set of templates 'vqa'.* That set is for kind 'vqa'"),
        ({"templates": ["In {langauge}"]}, {}, r"slot \{langauge\}.*Did you mean 'language'"),
        ({"templates": ["In {language!r}"]}, {}, r"a slot is a name in braces"),
        ({"templates": ["In {caption.__class__}"]}, {}, r"slots have names"),
        ({"templates": ["In {"]}, {}, r"is broken"),
        ({"image_name": "{:012d}"}, {}, r"image_name: '\{:012d\}' cannot be filled in with '0'"),
        ({"sample": 9}, {}, r"sample: 9 rows are asked for, but there are only 5"),
        ({"skip": 5}, {}, r"no row is left"),
        ({}, {"languages": ["en", "de"]}, r"wanted in de, but there is no translator"),
        (
            {},
            {"languages": "de", "translator": {"kind": "file"}},
            r"translator.path: a translator of kind 'file' needs",
        ),
        ({}, {"languages": "de", "translator": {"kind": "file", "path": "x"}}, r"translator.path: there is no"),
        ({}, {"languages": "de", "translator": {"kind": "model", "path": "."}}, r"no folder of a translation model"),
        ({}, {"names": "xm36"}, r"no task 'xm36'"),
        ({}, {"source_language": "engl"}, r"unknown language 'engl'"),
        ({}, {"missing_pictures": "error"}, r"c.json, row 1: there is no picture '.*0.jpg'.*missing_pictures=drop"),
        ({}, {"missing_pictures": "drop"}, r"no row is left of it. picture missing: 5"),
    ],
)
def test_wrong_settings(tmp_path: Path, part: dict[str, Any], mixture: dict[str, Any], message: str) -> None:
    write(tmp_path / "c.json", captions(5))
    with pytest.raises(SightbridgeError, match=message):
        build(tmp_path, CAPTIONS | part, **mixture)
    assert not (tmp_path / "out").exists()


def test_missing_pictures_are_dropped_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "c.json", captions(5))
    write(tmp_path / "pictures" / "coco" / "3.jpg", "")
    part = CAPTIONS | {"images": "coco", "missing_pictures": "drop"}
    rows, result = build(tmp_path, part, missing_pictures="error", images="pictures")
    assert [row["image_id"] for row in rows] == ["coco/3.jpg"]
    assert result.parts["one"].dropped == {"picture missing": 4}


def test_skip_limit_and_sample(tmp_path: Path) -> None:
    write(tmp_path / "c.json", captions(50))
    rows, result = build(tmp_path, CAPTIONS | {"skip": 10, "limit": 20, "sample": 5})
    numbers = [int(row["image_id"][:-4]) for row in rows]
    assert len(numbers) == 5 and numbers == sorted(numbers) and numbers[0] >= 10 and numbers[-1] < 30
    assert result.parts["one"].dropped == {"not chosen": 45}


def test_a_mixture_is_read_as_the_training_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "c.json", captions(4))
    for name in ("mix.json", "mix.jsonl"):
        write_mix(plan_mix(settings(tmp_path, CAPTIONS)), tmp_path / name)
        record = sightbridge.records("mblip", tmp_path / name)[1]
        assert (record.turns[0].text, record.turns[1].text) == (
            "<image>\nShort English image caption: ",
            "A cat number 1.",
        )
        assert record.images == (tmp_path / "1.jpg",) and record.meta["part"] == "one"
    with pytest.raises(SettingsError, match=r"should end in \.json"):
        write_mix(plan_mix(settings(tmp_path, CAPTIONS)), tmp_path / "mix.txt")


def test_the_shipped_mixtures_are_valid() -> None:
    assert {"scenes", "scenes_test", "mblip_v1", "mblip_v2"} <= set(mix_names())
    for name in mix_names():
        for part in read_mix(name).parts.values():
            kind = KINDS[part.kind]
            find_instructions(part.kind, part.templates).check_slots((*kind.slots, "language"))
    assert list(read_mix("mblip_v2").parts) == [
        "web_captions", "coco_captions", "llava_detail", "llava_conversation", "aokvqa_cot", "aokvqa_explanation",
        "vqa", "vqg", "matching", "imagenet", "imagenet_decide",
    ]  # fmt: skip
    v1 = read_mix("mblip_v1", ["parts.vqg=null", "parts.vqa.limit=5"])
    assert len(v1.parts) == 7 and v1.parts["vqa"].translate_answers == 0 and v1.parts["vqa"].limit == 5
    with pytest.raises(SettingsError, match=r"unknown mixture 'scene'\. Did you mean 'scenes'"):
        read_mix("scene")
    with pytest.raises(SettingsError, match=r"parts.vqa.kinds: unknown setting. Did you mean 'kind'"):
        read_mix("mblip_v2", ["parts.vqa.kinds=vqa"])


def test_every_kind_has_instructions_with_known_slots() -> None:
    for name, kind in KINDS.items():
        instructions = find_instructions(name, None)
        instructions.check_slots((*kind.slots, "language"))
        assert instructions.labels or all(prompt.answers for prompt in instructions.prompts)
    counts = {name: len(find_instructions(name, None).prompts) for name in KINDS}
    assert counts | {"captions": 6, "vqa": 6, "vqg": 5, "matching": 12, "cot": 5, "explanation": 5} == counts
    assert (counts["classify"], counts["decide"]) == (11, 8)
    assert len(find_instructions("captions", None).translated) == len(find_instructions("cot", None).labels) == 5
