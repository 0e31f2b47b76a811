"""Time a training step of BLIP-2's first stage: ours, and a plain restatement of the reference's (LAVIS).

The restatement keeps the reference's way of working: every pass on its own, so a picture's keys and values are made
anew in each; features of all false pictures put together first; one ``multinomial`` and ``.item()`` per row; logits at
every position. All take turns in one process, on the same batch; a step is a forward and a backward pass.

    python benchmarks/stage1_step.py            # FLOPs at full size, FLOPs and times at the small one
    python benchmarks/stage1_step.py --small    # the small one alone

Sizes: forward work of tower and Q-Former as 521 : 80 (ViT-g at 224 pixels and BLIP-2's Q-Former, 32 words), scaled down
until a step takes a second on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2VisionConfig, Blip2VisionModel

from sightbridge.batch import QFormerBatch
from sightbridge.models.qformer import causal_mask, key_mask
from sightbridge.models.qformer_pretraining import (
    QFormerForPretraining,
    QFormerPretraining,
    QFormerPretrainingOptions,
    normalize,
)
from sightbridge.models.vision_tower import VisionTower

FULL: dict[str, Any] = {
    "vision": {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16},
    "image_size": 224,
    "qformer": {},
    "words": 32,
}
"""ViT-g/14 and BLIP-2's Q-Former."""
SMALL: dict[str, Any] = {
    "vision": {"hidden_size": 704, "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 8},
    "image_size": 224,
    "qformer": {
        "hidden_size": 384,
        "num_layers": 2,
        "num_heads": 6,
        "intermediate_size": 1536,
        "text_vocabulary": 2544,
    },
    "words": 32,
}
"""Half of the widths, a sixth of the depths (of the tower's a little less); the vocabulary keeps the head's share."""


def build(sizes: dict[str, Any], share: bool) -> QFormerPretraining:
    vision = Blip2VisionConfig(image_size=sizes["image_size"], patch_size=14, initializer_range=0.02, **sizes["vision"])
    options = QFormerPretrainingOptions(share_cross_attention=share, **sizes["qformer"])
    tower = VisionTower(Blip2VisionModel(vision), layers=[-1])
    tower.requires_grad_(False)
    return QFormerPretraining(tower, QFormerForPretraining(options, vision.hidden_size)).train()


def make_batch(sizes: dict[str, Any], rows: int, vocabulary: int) -> QFormerBatch:
    size, words = sizes["image_size"], sizes["words"]
    ids, mask = torch.randint(4, vocabulary - 1, (rows, words)), torch.ones(rows, words, dtype=torch.long)
    return QFormerBatch(ids, mask, torch.arange(rows), pixel_values=torch.randn(rows, 3, size, size))


def reference_loss(model: QFormerPretraining, batch: QFormerBatch) -> Tensor:
    """The three losses as LAVIS computes them on one process (``Blip2Qformer.forward``)."""
    qformer, rows = model.qformer, len(batch)
    features = qformer.input_norm(model.encode_images(batch))
    queries = qformer.queries.expand(rows, -1, -1)
    count = queries.shape[1]
    seen, earlier = qformer.qformer(queries, count, picture=qformer.qformer.look(features))
    text, _ = qformer.qformer(qformer.embeddings(batch.text_ids), 0, key_mask(batch.text_mask))
    image_vectors = normalize(qformer.vision_projection, seen)
    text_vectors = normalize(qformer.text_projection, text[:, 0])
    similar = torch.einsum("nqp,mp->nmq", image_vectors, text_vectors).max(dim=-1).values / qformer.temperature
    targets = torch.arange(rows, device=features.device)
    itc = sum(F.cross_entropy(logits, targets, label_smoothing=0.1) for logits in (similar, similar.T)) / 2

    with torch.no_grad():
        to_text, to_image = similar.clone(), similar.T.clone()
        to_text.fill_diagonal_(-10000)
        to_image.fill_diagonal_(-10000)
        to_text, to_image = to_text.softmax(dim=1), to_image.softmax(dim=1)
    false_images = torch.stack([features[draw(to_image[row])] for row in range(rows)])
    drawn = [draw(to_text[row]) for row in range(rows)]
    false_ids, false_mask = (torch.stack([part[d] for d in drawn]) for part in (batch.text_ids, batch.text_mask))
    ids = torch.cat([batch.text_ids, batch.text_ids, false_ids])
    mask = key_mask(torch.cat([batch.text_mask, batch.text_mask, false_mask]), count)
    look = qformer.qformer.look(torch.cat([features, false_images, features]))
    together = qformer.embeddings(ids, query_embeds=qformer.queries.expand(3 * rows, -1, -1))
    pairs, _ = qformer.qformer(together, count, mask, picture=look)
    labels = torch.cat([torch.ones(rows), torch.zeros(2 * rows)]).long().to(features.device)
    itm = F.cross_entropy(qformer.itm_head(pairs[:, :count]).mean(dim=1), labels)

    ids = batch.text_ids.clone()
    ids[:, 0] = qformer.decoder_start_id
    hidden, _ = qformer.qformer(qformer.embeddings(ids), 0, causal_mask(batch.text_mask, count), earlier=earlier)
    words = qformer.word_logits(hidden)[:, :-1].flatten(0, 1)
    return itc + itm + F.cross_entropy(words, ids[:, 1:].flatten(), label_smoothing=0.1)


def draw(weights: Tensor) -> int:
    """One draw, for which the host waits."""
    return int(torch.multinomial(weights, 1).item())


def our_loss(model: QFormerPretraining, batch: QFormerBatch) -> Tensor:
    return torch.stack([loss.sum / loss.count for loss in model(batch).values()]).sum()


def variants(sizes: dict[str, Any], rows: int) -> dict[str, Callable[[], Tensor]]:
    """Every way to make a step, each with the same weights and batch."""
    apart, shared = build(sizes, share=False), build(sizes, share=True)
    batch = make_batch(sizes, rows, apart.qformer.options.text_vocabulary)
    shared.load_state_dict(apart.state_dict())
    cached = replace(batch, pixel_values=None, image_features=apart.encode_images(batch))
    return {
        "reference": lambda: reference_loss(apart, batch),
        "ours, uncached": lambda: our_loss(apart, batch),
        "ours, uncached, shared keys and values": lambda: our_loss(shared, batch),
        "ours, cached features": lambda: our_loss(apart, cached),
        "ours, cached, shared keys and values": lambda: our_loss(shared, cached),
    }


def count_flops(sizes: dict[str, Any], rows: int = 2) -> dict[str, float]:
    """GFLOP of a forward and backward pass per row.

    The tower is counted on the meta device, where nothing is computed; the Q-Former's step, on features of that size,
    is really made.
    """
    with torch.device("meta"):
        meta = build(sizes, share=False)
        pixels = torch.empty(rows, 3, sizes["image_size"], sizes["image_size"])
        with FlopCounterMode(display=False) as counter:
            features = meta.vision_tower(pixels)
    tower = counter.get_total_flops()
    options = meta.qformer.options
    model = QFormerPretraining(meta.vision_tower, QFormerForPretraining(options, features.shape[-1])).train()
    batch = make_batch({**sizes, "image_size": 14}, rows, options.text_vocabulary)
    batch = replace(batch, pixel_values=None, image_features=torch.randn(features.shape))
    counted = {}
    for name, share, loss in [
        ("reference", False, reference_loss),
        ("apart", False, our_loss),
        ("shared", True, our_loss),
    ]:
        model.qformer.options = options.model_copy(update={"share_cross_attention": share})
        with FlopCounterMode(display=False) as counter:
            loss(model, batch).backward()
        counted[name] = counter.get_total_flops()
    flops = {
        "reference": tower + counted["reference"],
        "ours, uncached": tower + counted["apart"],
        "ours, uncached, shared keys and values": tower + counted["shared"],
        "ours, cached features": counted["apart"],
        "ours, cached, shared keys and values": counted["shared"],
    }
    return {name: total / rows / 1e9 for name, total in flops.items()}


def time_steps(steps: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of a step (others may be using the machine), every variant once per round; one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step().backward()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="leave out the full size (3 GB, a minute)")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = arguments.rows
    columns = {} if arguments.small else {"GFLOP/row, full size": count_flops(FULL)}
    columns["GFLOP/row, small"] = count_flops(SMALL)
    seconds = time_steps(variants(SMALL, rows), arguments.rounds)
    columns["CPU ms/row, small"] = {name: 1000 * median / rows for name, median in seconds.items()}
    print("| step | " + " | ".join(f"{name} | times less" for name in columns) + " |")
    print("| --- |" + " ---: | ---: |" * len(columns))
    for name in seconds:
        cells = [f"{column[name]:.1f} | {column['reference'] / column[name]:.2f}" for column in columns.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
