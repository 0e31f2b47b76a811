"""Memory that a training step keeps: layers recomputed or not, and logits in chunks or whole. Prints Markdown tables.

python benchmarks/memory.py [--layers 12] [--width 256] [--vocabulary 250112] [--targets 512]

Kept bytes are those that the forward pass saves for the backward pass, weights not counted; they do not depend on the
machine. Extra peak is what a process of its own took more at most, beyond what it had before the step (on a GPU: of the
GPU's memory). Random weights throughout.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from sightbridge.batch import Batch
from sightbridge.config.model import ModelSettings
from sightbridge.config.training import PartsSettings
from sightbridge.models.build import build_model
from sightbridge.models.losses import target_loss
from sightbridge.models.memory import memory_settings
from sightbridge.models.parts import set_trainable

PART_CASES = {
    "tower, trained": ("vision_tower", {"vision_tower": "full", "connector": "full"}),
    "Q-Former, trained": ("connector", {"connector": "full"}),
    "decoder (Llama), frozen": ("language_model", {"connector": "full"}),
    "decoder (Llama), trained": ("language_model", {"connector": "full", "language_model": "full"}),
    "encoder-decoder (T5), frozen": ("language_model", {"connector": "full"}),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Saved:
    """A tensor that the backward pass will need, as long as it will."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Measured(NamedTuple):
    """Bytes kept for the backward pass, peak bytes beyond the start, seconds of forward and backward."""

    kept: int
    peak: int
    seconds: float


def main() -> None:
    """Measure every case in a process of its own and print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--layers", type=int, default=12, help="of every part")
    arguments.add_argument("--width", type=int, default=256, help="of every part")
    arguments.add_argument("--batch", type=int, default=8, help="records with a picture each")
    arguments.add_argument("--text", type=int, default=64, help="tokens of text per record")
    arguments.add_argument("--vocabulary", type=int, default=250_112, help="of the loss (default: mT5's)")
    arguments.add_argument("--targets", type=int, default=512, help="target tokens of the loss")
    arguments.add_argument(
        "--chunks", type=int, nargs="+", default=[64, 256], help="targets whose logits exist at once"
    )
    sizes = arguments.parse_args()
    print(f"{DEVICE}, {torch.get_num_threads()} threads, torch {torch.__version__}; `{' '.join(sys.argv)}`\n")

    print("| part | kept | kept, recomputed | | extra peak | recomputed | seconds | recomputed |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for case in PART_CASES:
        plain, recomputed = (apart(measure_part, case, flag, sizes) for flag in (False, True))
        print(
            f"| {case} | {megabytes(plain.kept)} | {megabytes(recomputed.kept)} "
            f"| 1/{plain.kept / recomputed.kept:.1f} | {megabytes(plain.peak)} | {megabytes(recomputed.peak)} "
            f"| {plain.seconds:.2f} | {recomputed.seconds:.2f} |",
            flush=True,
        )

    print(f"\n| loss over {sizes.vocabulary:,} words, {sizes.targets} targets | kept | extra peak | seconds |")
    print("| --- | ---: | ---: | ---: |")
    for chunk in [None, *sizes.chunks]:
        measured = apart(measure_loss, chunk, sizes)
        name = "all logits at once" if chunk is None else f"{chunk} targets at a time"
        print(
            f"| {name} | {megabytes(measured.kept)} | {megabytes(measured.peak)} | {measured.seconds:.2f} |", flush=True
        )


def apart(measure: Callable[..., Measured], *given: Any) -> Measured:
    """Call a function in a fresh process, whose peak of memory is its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, given)


def measure_part(case: str, recomputed: bool, sizes: argparse.Namespace) -> Measured:
    """One step of a model in which one part's layers are recomputed or not; kept bytes are that part's."""
    part, trained = PART_CASES[case]
    parts = {name: {"train": trained.get(name, "frozen")} for name in PartsSettings.model_fields}
    parts[part]["gradient_checkpointing"] = recomputed
    settings = PartsSettings.model_validate(parts)
    model = build_model(model_settings(case, sizes)).to(DEVICE)
    set_trainable(model, settings)
    batch = make_batch(model.tokens_per_image, model.language_model.is_encoder_decoder, sizes)
    with memory_settings(model.train(), settings):
        return measure_step(lambda: model(batch)["lm"].sum, model, model.get_submodule(part))


def measure_loss(chunk: int | None, sizes: argparse.Namespace) -> Measured:
    """The loss alone, behind a frozen head."""
    head = nn.Linear(sizes.width, sizes.vocabulary, bias=False, device=DEVICE).requires_grad_(False)
    hidden = torch.randn(1, sizes.targets, sizes.width, device=DEVICE, requires_grad=True)
    labels = torch.randint(sizes.vocabulary, (1, sizes.targets), device=DEVICE)
    at_once = chunk or sizes.targets
    return measure_step(
        lambda: target_loss(hidden, labels, head, sizes.vocabulary, at_once, frozen_head=True).sum, head, None
    )


def measure_step(loss_of: Callable[[], Tensor], model: nn.Module, part: nn.Module | None) -> Measured:
    """Forward and backward; kept bytes are those of ``part``, or all."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: WeakSet[Saved] = WeakSet()
    inside = [] if part is not None else ["everything"]

    def keep(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        if inside and tensor.untyped_storage().data_ptr() not in own:
            kept.add(saved)
        return saved

    if part is not None:
        part.register_forward_pre_hook(lambda *_: inside.append("part"))
        part.register_forward_hook(lambda *_: inside.clear())
    before, began = peak_bytes(), time.perf_counter()
    with saved_tensors_hooks(keep, lambda saved: saved.tensor):
        loss = loss_of()
    storages = {saved.tensor.untyped_storage().data_ptr(): saved.tensor.untyped_storage().nbytes() for saved in kept}
    loss.backward()
    return Measured(sum(storages.values()), peak_bytes() - before, time.perf_counter() - began)


def megabytes(count: int) -> str:
    """Bytes as a table shows them."""
    return f"{count / 1e6:,.1f} MB"


def peak_bytes() -> int:
    """Most memory in use so far."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def model_settings(case: str, sizes: argparse.Namespace) -> ModelSettings:
    """All three parts equally deep and wide, on pictures of 8 x 8 patches."""
    heads = max(1, sizes.width // 64)
    blocks = {"num_hidden_layers": sizes.layers, "hidden_size": sizes.width, "intermediate_size": 4 * sizes.width}
    llama = {"model_type": "llama", "vocab_size": 1000, **blocks, "num_attention_heads": heads}
    t5 = {"model_type": "t5", "vocab_size": 1000, "d_model": sizes.width, "d_kv": 64, "d_ff": 4 * sizes.width}
    t5 |= {"num_layers": sizes.layers // 2, "num_heads": heads, "feed_forward_proj": "gated-gelu"}
    qformer = {"kind": "qformer", "num_layers": sizes.layers, "hidden_size": sizes.width, "num_heads": heads}
    tower = {"model_type": "clip_vision_model", **blocks, "num_attention_heads": heads}
    return ModelSettings.model_validate(
        {
            "vision_tower": {"config": {**tower, "image_size": 112, "patch_size": 14}},
            "connector": {**qformer, "intermediate_size": 4 * sizes.width} if "Q-Former" in case else {"kind": "mlp"},
            "language_model": {"config": t5 if "T5" in case else llama},
            "prompt": {"template": "plain"},
            "image": {"size": 112},
        }
    )


def make_batch(tokens_per_image: int, encoder_decoder: bool, sizes: argparse.Namespace) -> Batch:
    """Records of one picture and a text whose second half is to be said."""
    shape = sizes.batch, tokens_per_image + sizes.text
    ids = torch.randint(3, 1000, shape)
    slots = torch.zeros(shape, dtype=torch.bool)
    slots[:, :tokens_per_image] = True
    labels = torch.where(torch.arange(shape[1]) < shape[1] - sizes.text // 2, -100, ids)
    labels = ids[:, -sizes.text // 2 :] if encoder_decoder else labels
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        image_slots=slots,
        images_per_row=torch.ones(sizes.batch, dtype=torch.long),
        pixel_values=torch.randn(sizes.batch, 3, 112, 112),
        labels=labels,
        n_target_tokens=sizes.batch * (sizes.text // 2),
        ids=tuple(str(row) for row in range(sizes.batch)),
    ).to(torch.device(DEVICE))


if __name__ == "__main__":
    main()
