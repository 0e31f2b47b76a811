"""Train as one of two processes; started by ``test_distributed``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from training_models import OPTIM, VOCABULARY, batches_of, make_batch, parts, run_settings, tiny_model

from sightbridge.config.generation import GenerationSettings
from sightbridge.generation.generate import generate
from sightbridge.models import losses
from sightbridge.training.loop import make_accelerator, train
from sightbridge.training.sharding import in_lockstep, uses_deepspeed

# Per step, the rows of either process: 3 steps; the second process has no picture in the second step, and process
# 0 none in the third. (Rows 2, 5, 10, 13 have no picture.)
ROWS = [[(0, 1, 3), (4, 6)], [(7, 3), (2, 5, 10)], [(13,), (0, 1, 6)]]
# The same for evaluations: the second process has one more batch, the first no picture.
EVALUATION_ROWS = [[(2, 5)], [(1, 2, 4), (0, 3)]]
STEPS = 4
CASES = {
    "connector": {"trained": ("connector",)},
    "all parts": {"trained": ("vision_tower", "connector", "language_model")},
    "t5": {"trained": ("connector", "language_model"), "language_model": "t5"},
    "accumulation": {"trained": ("connector",), "accumulation": 3},
    "recomputed": {"trained": ("vision_tower", "connector"), "recomputed": ("vision_tower", "language_model")},
}


def run_case(name: str, folder: Path, processes: int) -> dict:
    """Train one case; what it logged, what it saved, and what this process ended with."""
    case = CASES[name]
    encoder_decoder = case.get("language_model") == "t5"
    accelerator = make_accelerator("fp32")
    assert accelerator.num_processes == processes
    if uses_deepspeed(accelerator):  # which would not slice weights as small as these
        slicing = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        slicing["stage3_param_persistence_threshold"] = 0
    rows = share(ROWS, accelerator)
    model = tiny_model(*case["trained"], language_model=case.get("language_model", "llama"))
    settings = parts(*case["trained"])
    for part in case.get("recomputed", ()):
        recomputed = getattr(settings, part).model_copy(update={"gradient_checkpointing": True})
        settings = settings.model_copy(update={part: recomputed})

    saved: dict[int, dict[str, Tensor]] = {}
    history = train(
        model,
        batches_of([sum(step, ()) for step in rows], encoder_decoder),
        run_settings(steps=STEPS, accumulation=case.get("accumulation", 1), parts=settings),
        # eps: a gradient that is zero but for rounding would otherwise move a weight by a whole learning rate
        OPTIM.model_copy(update={"eps": 1e-4}),
        folder / name,
        evaluate=lambda bare, step: evaluate(bare, encoder_decoder, accelerator),
        save=lambda whole, step: saved.update({step: copy.deepcopy(whole.state_dict())}),
        accelerator=accelerator,
    )
    steps = [line for line in history if line["kind"] == "train"]
    return {
        "losses": [line["loss"] for line in steps],
        "norms": [line["grad_norm"] for line in steps],
        "samples": [line["samples_per_second"] / line["target_tokens_per_second"] for line in steps],
        "validation": history[-1]["validation"],
        "answers": history[-1]["answers"],
        "saved": saved,
        "own": {key: tensor.detach().clone() for key, tensor in own_slices(model).items()},
    }


def share(rows: list, accelerator: Accelerator) -> list:
    """This process's part of every step, or all of it."""
    return [[step[accelerator.process_index]] for step in rows] if accelerator.num_processes == 2 else rows


def evaluate(model: nn.Module, encoder_decoder: bool, accelerator: Accelerator) -> dict:
    """What every process generates for the same records, and the loss of an uneven share of batches."""
    prompts = make_batch((1, 2, 4), encoder_decoder)
    answers = generate(model, prompts, GenerationSettings(max_new_tokens=4), eos_ids=(), pad_id=0)
    mine = EVALUATION_ROWS if accelerator.num_processes == 1 else [EVALUATION_ROWS[accelerator.process_index]]
    batches = [make_batch(rows, encoder_decoder) for one in mine for rows in one]
    losses = [model(batch)["lm"].sum * counts for batch, counts in in_lockstep(accelerator, batches)]
    return {"answers": answers.tolist(), "validation": float(accelerator.reduce(torch.stack(losses).sum(), "sum"))}


def own_slices(model: nn.Module) -> dict[str, Tensor]:
    """What this process holds of every weight."""
    held = {}
    for name, parameter in model.named_parameters():
        held[name] = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held[name] = getattr(parameter, "ds_tensor", held[name])
    return held


def run_cases(folder: Path, names: Sequence[str]) -> None:
    """Train cases as one of two processes; writes what came of them to ``folder``/process-RANK.pt."""
    losses.LOGITS_AT_ONCE = 5 * VOCABULARY  # several chunks of logits, and not as many on every process
    results = {name: run_case(name, folder, processes=2) for name in names}
    torch.save(results, folder / f"process-{torch.distributed.get_rank()}.pt")
