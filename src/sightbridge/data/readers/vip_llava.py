"""ViP-LLaVA's rows: conversations about marked parts of pictures, among ordinary LLaVA rows and rows of text alone.

Anybody's own data:

    {"id": "1", "image": "a.jpg", "bboxes": [[10, 20, 110, 80]],
     "conversations": [{"from": "human", "value": "<image>\\nWhat is <bbox0>?"}, {"from": "gpt", "value": "A bus."}]}

``bbox`` is one box or a list of them, ``bboxes`` a list: left, top, right, bottom in pixels. ``segmentations`` gives
the polygons of each, ``bbox_image`` the picture each is on if there are several. ``shape``, ``color``, ``width`` and
``alpha``, one for all or a list of one for each box, say how they are marked; what is not said is drawn, anew in every
epoch. ``<bbox0>``, ``<bbox1>`` become phrases such as "within the red rectangle"; ``<bbox>`` is that of an only box.

The rows of ViP-LLaVA's six data sets have no conversation, or one written by GPT-4V; ids say which: ``refcocog-...``,
``vcr-...``, ``vg_rel-...``, ``flickr30k-...``, ``v7w-...``, ``pointQA_twice-...``, and ``refcocog-gpt4v-...``. See
``docs/visual-prompts.md`` for their keys.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sightbridge.data.readers.llava import conversation_record
from sightbridge.data.readers.region_rows import BOX_KEYS, REGION_KEYS, RegionRow
from sightbridge.data.readers.row_index import index_records
from sightbridge.data.readers.rows import Row, find_image, read_rows, take, take_id, take_texts
from sightbridge.data.record import Plan, Record
from sightbridge.data.regions.plans import (
    DATA_SETS,
    PLACEHOLDER,
    Conversation,
    Counting,
    DataSet,
    Description,
    GroundedCaption,
    Pointing,
    Relation,
)
from sightbridge.data.regions.vcr import TEST_ALPHA, Reasoning, ReasoningTest
from sightbridge.errors import DataError, SettingsError, nearest
from sightbridge.images.load import ImageSource
from sightbridge.text.turns import IMAGE_MARKER
from sightbridge.visual_prompts import SHAPES

MISSPELT = re.compile(r"<\s*bbox[^<>]{0,20}>", re.IGNORECASE)
"""What somebody wrote who meant a placeholder: ``<BBOX0>``, ``<bbox 1>``, ``<bbox-1>``."""

FIDELITIES = ("corrected", "exact")
"""Whether region data is as it was meant to be, or exactly as ViP-LLaVA's code made it, slips included."""


def read_vip_llava(path: Path, images_folder: Path, *, regions: str = "corrected") -> Sequence[Record]:
    """Read every row of ``path``; relative names of files are looked up in ``images_folder``.

    Rows are checked at once. Those of files with a line for each are not held in memory but read again when they are
    looked at.

    ``regions="exact"``: RefCOCOg's and Visual Genome's rows without their pictures, and the former without phrases,
    which the original loses; a subject's colour for its object too; no phrase of a colour without a name in Flickr30k's
    captions. Raises ``DataError`` naming file, row and key for a row that is not as it should be.
    """
    make = partial(_make_record, images_folder=images_folder, stem=path.stem, exact=regions == "exact")
    return index_records(path, make)


def _make_record(row: Row, number: int, where: str, *, images_folder: Path, stem: str, exact: bool) -> Record:
    row_of = RegionRow(row, where, images_folder)
    if "conversations" in row:
        return _conversation(row_of, f"{stem}-{number}", exact)
    return _planned(row_of, _data_set_plan(row_of, exact), exact)


def read_region_test(path: Path, images_folder: Path, test: str) -> Iterator[Record]:
    """Yield the questions of a test, in its fixed wording, with marks in the constant style and at one opacity.

    Args:
        path: the published file of questions.
        images_folder: of the pictures.
        test: one of ``TESTS``.

    Raises ``SettingsError`` for an unknown test and ``DataError`` for a wrong row.
    """
    if test not in TESTS:
        known = ", ".join(TESTS)
        raise SettingsError(f"unknown test of regions '{test}'. Known: {known}.{nearest(test, list(TESTS))}")
    for _, where, row in read_rows(path):
        row_of = RegionRow(row, where, images_folder)
        yield _planned(row_of, TESTS[test](row_of), exact=False)


def _conversation(row_of: RegionRow, default_id: str, exact: bool) -> Record:
    """A row with a conversation: an ordinary one, or one about regions."""
    row, where = row_of.row, row_of.where
    names = take_texts(row, "image", where, "a file name or a list of them") if row.get("image") is not None else []
    images = [find_image(name, row_of.folder) for name in names]
    has_boxes = any(key in row for key in BOX_KEYS)
    data_set = _gpt4v_data_set(row)
    rest = {key: value for key, value in row.items() if not (has_boxes and key in REGION_KEYS)}
    if data_set is not None and has_boxes:
        rest = _with_marker(rest, images)
    record = conversation_record(rest, images, default_id, where)
    if not has_boxes:
        _check_placeholders(record, 0)
        return record
    regions = row_of.regions(pictures=len(images))
    wishes = row_of.wishes(len(regions))
    _check_placeholders(record, len(regions))
    look = data_set or DataSet(SHAPES)
    pair = look.pair and not any(wish.shape or wish.colour for wish in wishes)
    plan = Conversation(record.turns, regions, wishes, look.shapes, look.constant, pair, exact, look.drops_article)
    realised = _seen(record, plan)
    return replace(realised, plan=None) if all(wish.is_certain for wish in wishes) else realised


def _gpt4v_data_set(row: Row) -> DataSet | None:
    """The data set whose conversations GPT-4V wrote, if the row's id says so."""
    name, _, rest = str(row.get("id", "")).partition("-")
    return DATA_SETS.get(name) if rest.partition("-")[0] == "gpt4v" else None


def _with_marker(row: Row, images: Sequence[ImageSource]) -> Row:
    """RefCOCOg's conversations were written without the place of the picture; it goes in front."""
    messages = row["conversations"]
    texts = [message.get("value") for message in messages if isinstance(message, dict)]
    if len(images) != 1 or not texts or not isinstance(texts[0], str) or IMAGE_MARKER in "".join(map(str, texts)):
        return row
    return row | {"conversations": [messages[0] | {"value": f"{IMAGE_MARKER}\n{texts[0]}"}, *messages[1:]]}


def _check_placeholders(record: Record, count: int) -> None:
    """Every ``<bbox0>`` needs its box."""
    for turn in record.turns:
        if count and (slip := MISSPELT.search(PLACEHOLDER.sub("", turn.text or ""))):
            raise DataError(
                f"{record.where}: says '{slip[0]}', which stands for no box. Write '<bbox0>', '<bbox1>', ..."
            )
        for found in PLACEHOLDER.finditer(turn.text or ""):
            if count == 0:
                raise DataError(f"{record.where}: says '{found[0]}', but has no 'bbox' or 'bboxes'.")
            if not found[1] and count > 1:
                raise DataError(
                    f"{record.where}: says '<bbox>', but has {count} boxes. Write '<bbox0>' to '<bbox{count - 1}>'."
                )
            if found[1] and int(found[1]) >= count:
                boxes = "the only box is '<bbox0>'" if count == 1 else f"the boxes are '<bbox0>' to '<bbox{count - 1}>'"
                raise DataError(f"{record.where}: says '{found[0]}', but {boxes}.")


def _planned(row_of: RegionRow, plan: Plan, exact: bool) -> Record:
    """A record of a row without a conversation."""
    name = take(row_of.row, "image", (str,), row_of.where, "a file name")
    record = Record(
        id=take_id(row_of.row, "id", row_of.where) or row_of.where,
        images=(find_image(name, row_of.folder),),
        turns=(),
        meta={"dataset": _data_set_name(row_of)},
        where=row_of.where,
    )
    seen = _seen(record, plan)
    return seen if seen.count_markers() or not exact else replace(seen, images=())


def _seen(record: Record, plan: Plan) -> Record:
    """The record as evaluation sees it, the same in every run; training draws from its plan."""
    turns, marks = plan.realise(random.Random(f"plan/{record.id}"))
    return replace(record, turns=turns, marks=marks, plan=plan)


def _data_set_name(row_of: RegionRow) -> str:
    return str(row_of.row.get("id", "")).partition("-")[0]


def _data_set_plan(row_of: RegionRow, exact: bool) -> Plan:
    name = _data_set_name(row_of)
    if name not in PLANS:
        known = ", ".join(f"'{known}-'" for known in PLANS)
        raise DataError(
            f"{row_of.where}: has no 'conversations', and its id '{row_of.row.get('id', '')}' begins with none of "
            f"{known}.{nearest(name, list(PLANS))}"
        )
    return PLANS[name](row_of, exact)


def _describe(row_of: RegionRow, exact: bool) -> Plan:
    (region,) = _exactly(row_of, 1)
    return Description(region, row_of.text("answer"), exact)


def _relate(row_of: RegionRow, exact: bool) -> Plan:
    subject, object_ = _exactly(row_of, 2)
    return Relation((subject, object_), row_of.text("answer"), exact)


def _caption(row_of: RegionRow, exact: bool) -> Plan:
    caption, groups = row_of.text("grounding"), row_of.groups()
    for found in PLACEHOLDER.finditer(caption):
        if not found[1] or int(found[1]) >= len(groups):
            raise row_of.wrong("grounding", f"says '{found[0]}', but 'bbox' has boxes of {len(groups)} phrases")
    return GroundedCaption(caption, groups, exact)


def _reason(row_of: RegionRow, exact: bool = False) -> Reasoning:
    answers, rationales = (row_of.choice(f"{kind}_choices", f"{kind}_label") for kind in ("answer", "rationale"))
    return Reasoning(row_of.words("question"), answers, rationales, row_of.names(), row_of.stored_regions())


def _reason_test(asks_why: bool) -> Callable[[RegionRow], Plan]:
    def plan(row_of: RegionRow) -> Plan:
        training = _reason(row_of)
        parts = (training.question, training.answers, training.rationales, training.names, training.regions)
        return ReasoningTest(*parts, asks_why=asks_why)

    return plan


def _point(row_of: RegionRow, exact: bool = False, alpha: int | None = None) -> Plan:
    regions, answer = row_of.regions(), row_of.box(row_of.row.get("answer"), "answer")
    label = next((number for number, region in enumerate(regions) if region.box == answer), None)
    if label is None:
        raise row_of.wrong("answer", f"the box {list(answer)} is none of 'bboxes'")
    return Pointing(row_of.text("question"), regions, label, alpha)


def _count(row_of: RegionRow, exact: bool = False, alpha: int | None = None) -> Plan:
    (region,) = _exactly(row_of, 1)
    return Counting(row_of.text("general_question"), row_of.text("answer"), region, alpha)


def _exactly(row_of: RegionRow, count: int) -> Sequence:
    regions = row_of.regions()
    if len(regions) != count:
        raise row_of.wrong("bboxes", f"expected {count} box{'es' * (count != 1)}, got {len(regions)}")
    return regions


PLANS: dict[str, Callable[[RegionRow, bool], Plan]] = {
    "refcocog": _describe,
    "vcr": _reason,
    "vg_rel": _relate,
    "flickr30k": _caption,
    "v7w": _point,
    "pointQA_twice": _count,
}
"""Makes a plan of a row without a conversation, by the first part of its id."""

TESTS: dict[str, Callable[[RegionRow], Plan]] = {
    "v7w": lambda row_of: _point(row_of, alpha=TEST_ALPHA),
    "pointQA_twice": lambda row_of: _count(row_of, alpha=TEST_ALPHA),
    "vcr_qa": _reason_test(asks_why=False),
    "vcr_qar": _reason_test(asks_why=True),
}
"""Visual7W, PointQA-LookTwice, and VCR's two questions: Q -> A, and QA -> R."""
