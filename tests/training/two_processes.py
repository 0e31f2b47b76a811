"""Train as one of two processes; started by ``test_distributed``. Usage: two_processes.py FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from training_models import OPTIM, batches_of, run_settings, tiny_model

from sightbridge.training.loop import make_accelerator, train

# Per step, the rows of either process: 3 steps; the second process has no picture in the second step, and process
# 0 none in the third. (Rows 2, 5, 10, 13 have no picture.)
ROWS = [[(0, 1, 3), (4, 6)], [(7, 3), (2, 5, 10)], [(13,), (0, 1, 6)]]
CASES = {
    "connector": {"trained": ("connector",)},
    "all parts": {"trained": ("vision_tower", "connector", "language_model")},
    "t5": {"trained": ("connector", "language_model"), "language_model": "t5"},
    "accumulation": {"trained": ("connector",), "accumulation": 3},
}


def run_case(name: str, folder: Path, processes: int) -> dict:
    """Train one case; what it logged and the weights it ended with."""
    case = CASES[name]
    language_model = case.get("language_model", "llama")
    accelerator = make_accelerator("fp32")
    assert accelerator.num_processes == processes
    if processes == 2:
        rows = [step[accelerator.process_index] for step in ROWS]
    else:
        rows = [[row for share in step for row in share] for step in ROWS]
    model = tiny_model(*case["trained"], language_model=language_model)
    history = train(
        model,
        batches_of(rows, language_model == "t5"),
        run_settings(steps=4, accumulation=case.get("accumulation", 1)),
        # eps: a gradient that is zero but for rounding would otherwise move a weight by a whole learning rate
        OPTIM.model_copy(update={"eps": 1e-4}),
        folder / name,
        save=lambda bare, step: saved.append(step),
        accelerator=accelerator,
    )
    return {
        "losses": [line["loss"] for line in history],
        "samples": [line["samples_per_second"] / line["target_tokens_per_second"] for line in history],
        "saved": list(saved),
        "weights": model.state_dict(),
    }


saved: list[int] = []

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    results = {}
    for name in CASES:
        saved.clear()
        results[name] = run_case(name, folder, processes=2)
    torch.save(results, folder / f"process-{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
