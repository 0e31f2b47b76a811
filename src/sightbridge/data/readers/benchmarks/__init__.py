"""Published files of benchmarks that are only tested on: one reader per format, all of them yielding records.

A reader is a function ``(path, images_folder, **options)``. The last user turn of a record holds the question or
statement alone, without any prompt; true answers are in ``meta["answers"]``, captions in ``meta["references"]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sightbridge.data.readers.benchmarks.captions import read_flickr, read_karpathy, read_nocaps, read_xm3600
from sightbridge.data.readers.benchmarks.matches import (
    Comparison,
    read_figures,
    read_genai_bench,
    read_pick_a_pic,
    read_seetrue,
    read_tifa160,
    read_two_by_two,
)
from sightbridge.data.readers.benchmarks.questions import read_chair, read_maxm, read_pope, read_vip_bench
from sightbridge.data.readers.benchmarks.statements import read_nlvr2, read_xvnli
from sightbridge.data.readers.vip_llava import read_region_test
from sightbridge.data.record import Record

BENCHMARK_READERS: dict[str, Callable[..., Iterable[Record]]] = {
    "karpathy": read_karpathy,
    "nocaps": read_nocaps,
    "flickr": read_flickr,
    "xm3600": read_xm3600,
    "maxm": read_maxm,
    "pope": read_pope,
    "chair": read_chair,
    "vip_bench": read_vip_bench,
    "xvnli": read_xvnli,
    "nlvr2": read_nlvr2,
    "region_test": read_region_test,
}

MATCH_READERS: dict[str, Callable[..., Iterable[Comparison]]] = {
    "two_by_two": read_two_by_two,
    "tifa160": read_tifa160,
    "genai_bench": read_genai_bench,
    "seetrue": read_seetrue,
    "pick_a_pic": read_pick_a_pic,
    "figures": read_figures,
}
"""Of tasks whose pictures and texts are scored."""
