"""Rows are measured by their types and tags, each apart."""

from sightbridge.evaluation.metrics import Row
from sightbridge.evaluation.results import group


def test_a_type_that_is_called_like_a_tag_is_kept_beside_it() -> None:
    needs = [["ocr"], ["math", "ocr"], ["math"], ["ocr"], ["math", "ocr"]]
    rows = [Row(str(number), meta={"type": "+".join(tags), "tags": tags}) for number, tags in enumerate(needs)]
    counts = {name: len(own) for name, own in group(rows).items()}
    assert counts == {"math alone": 1, "math+ocr": 2, "ocr alone": 2, "math": 3, "ocr": 4}
