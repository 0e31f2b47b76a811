"""Retrieval: ranks equal those of every pair scored by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sightbridge.config.model import ImageSettings
from sightbridge.config.qformer_recipe import CaptionTextSettings, QFormerModelSettings
from sightbridge.data.qformer_processor import QFormerProcessor, load_caption_tokenizer
from sightbridge.data.record import Record
from sightbridge.evaluation.predictions import read_lines
from sightbridge.evaluation.retrieval import BEHIND, rank_pairs
from sightbridge.evaluation.run import Work, do_part, retrieving
from sightbridge.evaluation.task import load_task
from sightbridge.images.load import load_image
from sightbridge.models.build_qformer import build_qformer_model
from sightbridge.models.qformer_pretraining import QFormerPretraining, normalize
from sightbridge.text.turns import Turn
from small_models import TOKENIZERS, TOWER

CAPTIONS = [["a dog", "a yellow dog near a bus"], ["two cats"], ["a bus", "a red bus", "one bus"], ["a man on a horse"]]


@pytest.fixture(scope="module")
def first_stage() -> tuple[QFormerPretraining, QFormerProcessor]:
    torch.manual_seed(7)
    tokenizer = load_caption_tokenizer(str(TOKENIZERS / "llama"))
    sizes = {"num_queries": 3, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
    settings = {
        "vision_tower": {"config": TOWER},
        "qformer": {**sizes, "projection_size": 8, "text_vocabulary": len(tokenizer)},
        "text": {"tokenizer": str(TOKENIZERS / "llama")},
        "image": {"size": 28},
    }
    model = build_qformer_model(QFormerModelSettings.model_validate(settings)).eval()
    for weight in model.qformer.parameters():
        if weight.dim() == 2:
            weight.data = weight.data * 8
    return model, QFormerProcessor(tokenizer, CaptionTextSettings(tokenizer="x"), ImageSettings(size=28))


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for number, captions in enumerate(CAPTIONS):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(path)
        turns = (Turn("user", "<image>"), Turn("assistant", captions[0]))
        made.append(Record(str(number), (path,), turns, meta={"references": captions}))
    return made


@torch.no_grad()
def scores_one_by_one(first_stage: Any, records: list[Record]) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity and logit of "match" of every picture with every caption, each pair by itself."""
    model, processor = first_stage
    texts = [text for record in records for text in record.meta["references"]]
    similar, logits = torch.zeros(len(records), len(texts)), torch.zeros(len(records), len(texts))
    for row, record in enumerate(records):
        features = model.vision_tower(processor.transform(load_image(record.images[0]))[None])
        queries = normalize(model.qformer.vision_projection, model.qformer.read_pictures(features).queries)
        for column, text in enumerate(texts):
            ids, mask = processor.texts([text])
            sentence = normalize(model.qformer.text_projection, model.qformer.read_text(ids, mask)[0][:, 0])
            similar[row, column] = (queries[0] @ sentence[0]).max()
            logits[row, column] = model.qformer.match_logits(model.qformer.look(features), ids, mask)[0, 1]
    return similar, logits


def ranks_by_hand(similar: torch.Tensor, logits: torch.Tensor, k: int) -> list[dict[str, Any]]:
    owner = [number for number, own in enumerate(CAPTIONS) for _ in own]
    lines = []
    for image, own in enumerate(CAPTIONS):
        row = [similar[image, t].item() if k == 0 else BEHIND for t in range(len(owner))]
        for t in similar[image].argsort(descending=True)[:k].tolist():
            row[t] = (logits[image, t] + similar[image, t]).item()
        wrong = [score for t, score in enumerate(row) if owner[t] != image]
        text_rank = min(sum(w >= row[t] for w in wrong) for t in range(len(owner)) if owner[t] == image)
        image_ranks = []
        for t in (t for t in range(len(owner)) if owner[t] == image):
            column = [similar[i, t].item() if k == 0 else BEHIND for i in range(len(CAPTIONS))]
            for i in similar[:, t].argsort(descending=True)[:k].tolist():
                column[i] = (logits[i, t] + similar[i, t]).item()
            image_ranks.append(sum(score >= column[image] for i, score in enumerate(column) if i != image))
        assert len(image_ranks) == len(own)
        lines.append({"id": str(image), "text_rank": text_rank, "image_ranks": image_ranks})
    return lines


@pytest.mark.parametrize("k", [0, 1, 3, 99])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_ranks_are_those_of_every_pair_by_itself(
    first_stage: Any, records: list[Record], k: int, batch_size: int
) -> None:
    similar, logits = scores_one_by_one(first_stage, records)
    assert similar.std() > 1e-3 and logits.std() > 1e-3  # a model that tells nothing apart would show nothing
    assert rank_pairs(*first_stage, records, k=k, batch_size=batch_size) == ranks_by_hand(similar, logits, k)


def test_a_picture_that_does_not_open_is_left_out_and_counted(
    first_stage: Any, records: list[Record], tmp_path: Path
) -> None:
    work = Work(load_task("scenes/retrieval").parts()[0], records)
    file = tmp_path / "out/predictions/scenes/retrieval/all.jsonl"
    opened = Path(str(records[1].images[0])).read_bytes()
    for content in (b"nope", opened):
        Path(str(records[1].images[0])).write_bytes(content)
        for process in (1, 0):  # the first one ranks, whoever comes first
            do_part(work, retrieving(*first_stage, batch_size=2), tmp_path / "out", 2, process, 2)
        lines = {line["id"]: line for line in read_lines([file])}
        assert [id for id, line in lines.items() if "error" in line] == (["1"] if content == b"nope" else [])
        used = [record for record in records if "text_rank" in lines[record.id]]
        ranks = rank_pairs(*first_stage, used, k=16)
        found = [{key: lines[record.id][key] for key in ("id", "text_rank", "image_ranks")} for record in used]
        assert found == ranks
