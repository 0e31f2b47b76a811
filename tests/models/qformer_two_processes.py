"""Stage-1 losses as one of two processes; started by ``test_qformer_distributed``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from qformer_models import captions, rows_of, tiny_pretraining

from sightbridge.batch import QFormerBatch
from sightbridge.models.gather import process

# Unequal numbers of rows, pictures and words; picture 1 is on both sides in the second case.
ROWS = [[0, 2, 5], [1, 3, 4, 6]]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "apart": {"share_cross_attention": False},
    "same pictures": {"image_ids": [4, 1, 2, 1, 2, 3, 5]},
    "every gradient": {"gather_gradients": True, "train_tower": True},
}


def whole(case: dict[str, Any]) -> QFormerBatch:
    ids = case.get("image_ids")
    batch = captions(7)
    if ids is None:
        return batch
    pictures = torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    return replace(batch, image_ids=torch.tensor(ids), pixel_values=pictures[ids])


def run_case(case: dict[str, Any], rows: list[int], counts: dict[str, int]) -> dict[str, Any]:
    """This process' share of the mean losses, and their gradients summed over the processes."""
    options = {name: value for name, value in case.items() if name != "image_ids"}
    model = tiny_pretraining(**options)
    losses = {name: loss.sum / counts[name] for name, loss in model(rows_of(whole(case), rows)).items()}
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    shares = torch.stack([loss.detach() for loss in losses.values()])
    if process()[1] > 1:
        for tensor in (shares, *gradients.values()):
            dist.all_reduce(tensor)
    return {"losses": dict(zip(losses, shares.tolist(), strict=True)), "gradients": gradients}


def run(rows: list[int]) -> dict[str, Any]:
    return {name: run_case(case, rows, whole(case).loss_counts) for name, case in CASES.items()}


def run_share(folder: Path) -> None:
    """Write what this process' rows give to ``folder``/process-RANK.pt."""
    dist.init_process_group("gloo")
    torch.save(run(ROWS[dist.get_rank()]), folder / f"process-{dist.get_rank()}.pt")
