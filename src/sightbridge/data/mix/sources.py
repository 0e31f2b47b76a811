"""Raw annotation files of other people, read as samples: pictures and the texts that come with them.

One function per format; each reads lazily, checks every row and names file, row and key of a broken one.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sightbridge.data.mix.files import read_object
from sightbridge.data.mix.imagenet import read_imagenet
from sightbridge.data.mix.sample import Sample, name_picture
from sightbridge.data.mix.settings import PartSettings
from sightbridge.data.readers.llava import conversation_record
from sightbridge.data.readers.mblip import mblip_record
from sightbridge.data.readers.rows import Row, read_rows, take, take_texts
from sightbridge.data.readers.vqa import read_annotations
from sightbridge.errors import DataError
from sightbridge.text.turns import IMAGE_MARKER

ANSWER_KEYS = ("answer", "answers")


@dataclass(frozen=True)
class Source:
    """A part's raw file, and the languages that the part is made in."""

    path: Path
    part: PartSettings
    root: Path
    languages: Sequence[str] = ()


def read_captions(source: Source) -> Iterator[Sample]:
    """Rows with a picture and a caption or a list of them (LAVIS, BLIP's web captions, xFlickrCO): a sample each.

    ``columns`` renames the keys ``image``, ``caption``, ``language`` and ``negatives`` (captions that do not fit).
    """
    keys = {key: source.part.columns.get(key, key) for key in ("image", "caption", "language", "negatives")}
    for _, where, row in read_rows(source.path):
        if keys["image"] not in row and "url" in row:
            raise DataError(
                f"{where}: has an 'url' and no '{keys['image']}'. Pictures are not fetched: download them first and "
                "write the file's name into the row."
            )
        picture = name_picture(source.part, take_name(row, keys["image"], where), where)
        negatives = take_texts(row, keys["negatives"], where, "a list of texts") if keys["negatives"] in row else []
        for caption in take_texts(row, keys["caption"], where, "a caption or a list of captions"):
            fields = {"caption": _line(caption), "negatives": [_line(text) for text in negatives]}
            yield Sample((picture,), fields, where, _language(row, keys["language"], where))


def read_karpathy(source: Source) -> Iterator[Sample]:
    """Karpathy's own file, ``dataset_coco.json``: a sample for every caption of the split ``part.split``."""
    content = read_object(source.path)
    found = False
    for number, image in enumerate(take(content, "images", (list,), str(source.path), "a list of pictures"), start=1):
        where = f"{source.path}, image {number}"
        split = take(_object(image, where), "split", (str,), where, "a text")
        # restval are pictures of the validation set that everybody trains on
        if source.part.split not in (None, split) and (source.part.split, split) != ("train", "restval"):
            continue
        found = True
        name = f"{image.get('filepath', '')}/{take(image, 'filename', (str,), where, 'a file name')}".lstrip("/")
        for sentence in take(image, "sentences", (list,), where, "a list of sentences"):
            caption = take(_object(sentence, where), "raw", (str,), where, "a text")
            yield Sample((name_picture(source.part, name, where),), {"caption": _line(caption), "negatives": []}, where)
    if not found:
        raise DataError(f"{source.path}: has no picture in the split '{source.part.split}'.")


def read_questions(source: Source) -> Iterator[Sample]:
    """Questions with answers: LAVIS' rows of VQAv2 and OK-VQA, or the official questions and annotations.

    The answer is the one given most often, the first of them in a tie.
    """
    for _, where, row in read_rows(source.path):
        if "questions" in row:
            yield from _read_official(source, row)
            continue
        yield _question(source.part, row, take_name(row, "image", where), where)


def _read_official(source: Source, content: Row) -> Iterator[Sample]:
    where = str(source.path)
    subtype = take(content, "data_subtype", (str,), where, "a text such as 'train2014'").replace("-dev", "")
    given = source.part.annotations
    answers = read_annotations(source.path, source.root / given if given else None)
    for number, row in enumerate(take(content, "questions", (list,), where, "a list of questions"), start=1):
        here = f"{source.path}, question {number}"
        question_id = take(_object(row, here), "question_id", (int, str), here, "a number")
        if question_id not in answers:
            raise DataError(f"{here}: the annotations have no answers to question {question_id}.")
        image_id = take(row, "image_id", (int,), here, "a number")
        name = str(image_id) if source.part.image_name else f"COCO_{subtype}_{image_id:012d}.jpg"
        yield _question(source.part, row | answers[question_id], name, here)


def read_gqa_questions(source: Source) -> Iterator[Sample]:
    """GQA's and xGQA's questions: official files, or LAVIS' rows."""
    for _, where, row in read_rows(source.path):
        if row and all(isinstance(value, dict) for value in row.values()):
            for question_id, question in row.items():
                here = f"{source.path}, question '{question_id}'"
                name = f"{take_name(question, 'imageId', here)}.jpg"
                yield _question(source.part, question, name, here)
            continue
        yield _question(source.part, row, take_name(row, "image", where), where)


def _question(part: PartSettings, row: Row, image: str, where: str) -> Sample:
    key = next((key for key in ANSWER_KEYS if row.get(key) is not None), "answer")
    answers = [_line(text) for text in take_texts(row, key, where, "an answer or a list of answers")]
    question = _line(take(row, "question", (str,), where, "a text"))
    picture, language = name_picture(part, image, where), _language(row, "language", where)
    if not answers:
        return Sample((picture,), {}, where, language, dropped="no answer")
    fields = {"question": question, "answer": Counter(answers).most_common(1)[0][0], "answers": answers}
    return Sample((picture,), fields, where, language)


def read_conversations(source: Source) -> Iterator[Sample]:
    """LLaVA's conversations: a sample for every question with its answer; rows without a picture are dropped."""
    for number, where, row in read_rows(source.path):
        names = take_texts(row, "image", where, "a file name or a list of them") if row.get("image") else []
        record = conversation_record(row, names, str(number), where)
        language = _language(row, "language", where)
        if len(names) != 1:
            yield Sample((), {}, where, language, dropped="not one picture")
            continue
        turns = [turn for turn in record.turns if turn.role != "system"]
        if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
            raise DataError(f"{where}, key 'conversations': expected turns of human and gpt, one after the other.")
        picture = name_picture(source.part, names[0], where)
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            # mBLIP deletes line ends, and so joins words; here they become spaces
            fields = {"question": _line((question.text or "").replace(IMAGE_MARKER, " ")), "answer": answer.text}
            yield Sample((picture,), fields, where, language)


def read_aokvqa(source: Source) -> Iterator[Sample]:
    """A-OKVQA: a sample for every rationale. Pictures are COCO's, by number: ``000000299207.jpg``."""
    for _, where, row in read_rows(source.path):
        choices = take_texts(row, "choices", where, "a list of answers")
        right = take(row, "correct_choice_idx", (int,), where, "the number of the right choice")
        if not 0 <= right < len(choices):
            raise DataError(f"{where}, key 'correct_choice_idx': is {right}, but there are {len(choices)} choices.")
        image = take(row, "image_id", (int, str), where, "a number")
        name = str(image) if source.part.image_name else f"{int(image):012d}.jpg"
        question = _line(take(row, "question", (str,), where, "a text"))
        for rationale in take_texts(row, "rationales", where, "a list of texts"):
            fields = {"question": question, "answer": choices[right], "rationale": _line(rationale)}
            yield Sample((name_picture(source.part, name, where),), fields, where)


ENTAILMENT = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}


def read_entailment(source: Source) -> Iterator[Sample]:
    """SNLI-VE and XVNLI. Where there is no gold label, the first annotator's counts, as in mBLIP's training."""
    for _, where, row in read_rows(source.path):
        key = next((key for key in ("Flikr30kID", "Flickr30K_ID", "Flickr30kID") if key in row), "Flickr30K_ID")
        image = take_name(row, key, where)
        fields = {"statement": _line(take(row, "sentence2", (str,), where, "a text"))}
        annotators = take_texts(row, "annotator_labels", where, "a list") if "annotator_labels" in row else []
        label = row.get("gold_label", "-")
        label = annotators[0] if label == "-" and annotators else label
        if label in ENTAILMENT:
            name = image if source.part.image_name or PurePosixPath(image).suffix else f"{image}.jpg"
            picture, language = name_picture(source.part, name, where), _language(row, "language", where)
            yield Sample((picture,), fields | {"label": ENTAILMENT[label]}, where, language)
        elif label == "-":
            yield Sample((), {}, where, dropped="annotators disagree")
        else:
            raise DataError(f"{where}, key 'gold_label': expected one of {', '.join(ENTAILMENT)}, got {label!r}.")


def read_two_images(source: Source) -> Iterator[Sample]:
    """NLVR2 (``train/DIRECTORY/...-img0.png``, other splits without a folder) and MaRVL (as unpacked)."""
    for _, where, row in read_rows(source.path):
        if "left_img" in row:
            text = take(row, "caption", (str,), where, "a text")
            folder = f"{take_name(row, 'language', where)}/images/{take_name(row, 'concept', where)}"
            # MaRVL's archives hold decomposed file names
            pair = [unicodedata.normalize("NFKD", f"{folder}/{take_name(row, k, where)}") for k in MARVL_KEYS]
        else:
            text = take(row, "sentence", (str,), where, "a text")
            name = take_name(row, "identifier", where).rpartition("-")[0]
            folder = f"{row['directory']}/" if "directory" in row else ""
            pair = [f"{folder}{name}-img{side}.png" for side in (0, 1)]
        label = str(row.get("label")).lower()
        if label not in ("true", "false"):
            raise DataError(f"{where}, key 'label': expected true or false, got {row.get('label')!r}.")
        pictures = tuple(name_picture(source.part, name, where) for name in pair)
        fields = {"statement": _line(text), "label": "yes" if label == "true" else "no"}
        yield Sample(pictures, fields, where, _language(row, "language", where))


MARVL_KEYS = ("left_img", "right_img")


def read_regions(source: Source) -> Iterator[Sample]:
    """Boxes with phrases, as ``data scenes`` writes them: a sample for every phrase."""
    for _, where, row in read_rows(source.path):
        picture = name_picture(source.part, take_name(row, "image", where), where)
        language = _language(row, "language", where)
        for phrase in take_texts(row, "phrases", where, "a list of phrases"):
            yield Sample((picture,), {"caption": _line(phrase), "negatives": []}, where, language)


def read_mblip_rows(source: Source) -> Iterator[Sample]:
    """Rows that are mBLIP's already; those without a label are dropped."""
    for number, where, row in read_rows(source.path):
        record = mblip_record(row, Path(), str(number), where)
        label = record.turns[-1].text or (record.meta.get("answers") or [None])[0]
        pictures = tuple(name_picture(source.part, str(image), where) for image in record.images)
        language = _language(row, "language", where)
        if label is None:
            yield Sample(pictures, {}, where, language, dropped="no answer")
            continue
        yield Sample(pictures, {"context": row["context"], "label": label}, where, language)


FORMATS: dict[str, Callable[[Source], Iterator[Sample]]] = {
    "captions": read_captions,
    "karpathy": read_karpathy,
    "regions": read_regions,
    "vqa": read_questions,
    "gqa": read_gqa_questions,
    "llava": read_conversations,
    "aokvqa": read_aokvqa,
    "snli_ve": read_entailment,
    "nlvr2": read_two_images,
    "imagenet": lambda source: read_imagenet(source.path, source.part, source.root, source.languages),
    "mblip": read_mblip_rows,
}
"""How raw files are read."""


def take_name(row: Row, key: str, where: str) -> str:
    """Return ``row[key]``, the name or number of a picture, which must be there."""
    return str(take(row, key, (str, int), where, "a name or a number"))


def _language(row: Row, key: str, where: str) -> str | None:
    return take(row, key, (str,), where, "a language code") if row.get(key) is not None else None


def _line(text: str) -> str:
    """A text on one line, without white space around it."""
    return " ".join(text.split())


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object {{...}}, got {value!r}.")
    return value
