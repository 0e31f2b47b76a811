"""LAVIS' files: BLIP-2's first and second stage, its fine-tunings, its two towers (salesforce/LAVIS).

Released files are wrapped in ``model`` and lack what was frozen: the language model always, the tower unless it was
fine-tuned. ``eva_vit_g.pth`` and ``clip_vit_L.pth`` are towers alone, with bare names.
"""

from __future__ import annotations

import re
from typing import Any

from sightbridge.checkpoints.formats.base import Format, Found
from sightbridge.checkpoints.formats.blip2_parts import (
    eva_config,
    input_width,
    kind_of,
    model_settings,
    opt_config,
    parts_in_words,
    prompt_settings,
    qformer_settings,
    t5_config,
)
from sightbridge.checkpoints.formats.llava_parts import LANGUAGE_MODEL, TOWER, has, map_exactly, shape_of, tower_config
from sightbridge.checkpoints.formats.minigpt4qwen import has_chat_model
from sightbridge.checkpoints.formats.views import RenamedWeights
from sightbridge.checkpoints.key_map import MappedWeights
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.errors import CheckpointError

INNER = "visual_encoder."
PROJECTIONS = ("opt", "t5", "llm")
"""What LAVIS calls language models: ``opt_proj`` and ``opt_model``, and so on; ``llm`` is InstructBLIP's Vicuna."""
USED_BLOCKS = {"eva": {1408: 39}, "clip_l": {1024: 23}}
"""Blocks that LAVIS builds of a tower by its width; a tower's own file may hold the one above, which it never loads."""
CAPTION_SIZE = 364
"""Side of the pictures on which LAVIS fine-tuned BLIP-2 to caption COCO, the tower with it."""
UNUSED = re.compile(r"visual_encoder\.(norm|fc_norm|head|lm_head|ln_post|mask_token|proj$|rel_pos_bias)")
"""What follows the last block of the original towers: LAVIS loads a tower's file with ``strict=False``."""


def matches_lavis(weights: Weights) -> bool:
    """A Q-Former as BERT has it beside ``query_tokens``, whose own layers are in torch's order."""
    names = weights.infos
    whole = "query_tokens" in names and any(name.startswith("Qformer.bert.encoder.") for name in names)
    return whole and not has_chat_model(weights)


def matches_tower(weights: Weights) -> bool:
    """One of the two towers alone, with or without its prefix."""
    names = {name.removeprefix(INNER) for name in weights.infos}
    eva = {"cls_token", "pos_embed", "blocks.0.attn.q_bias"}
    clip = {"class_embedding", "positional_embedding", "transformer.resblocks.0.attn.in_proj_weight"}
    return (eva <= names or clip <= names) and not any(name.startswith("Qformer.") for name in names)


def read_lavis(weights: Weights) -> Found:
    """What a file with a Q-Former holds."""
    tower_kind = _tower_kind(weights)
    projection = _projection(weights)
    mapped = map_exactly(weights, "lavis", f"lavis_{tower_kind}", *([f"lavis_{projection}"] if projection else []))
    kind = kind_of(mapped)
    tower = _tower_config(mapped, tower_kind) if has(mapped, TOWER) else None
    settings = model_settings(mapped, tower, qformer_settings(mapped), image_size=224)
    if tower is None and input_width(mapped) in USED_BLOCKS["clip_l"]:
        # Right for OpenAI's whole tower of 24 blocks and for LAVIS' own file, which lacks the last one.
        settings["vision_tower"] = {"layers": [USED_BLOCKS["clip_l"][input_width(mapped)]]}
    if kind == "generation":
        settings |= _language_settings(mapped, projection, bool(tower) and tower["image_size"] == CAPTION_SIZE)
    stage = "stage 1" if kind == "qformer" else f"stage 2, {projection or 'no'} projection"
    what = f"BLIP-2 {stage}: {parts_in_words(mapped, tower)}"
    return Found("lavis", what, mapped, kind, settings, notes=_notes(mapped))


def read_tower(weights: Weights) -> Found:
    """What a tower's own file holds; blocks that LAVIS does not build are left out, and that is said."""
    prefixed = {INNER + name.removeprefix(INNER): name for name in weights.infos}
    weights = RenamedWeights(weights, prefixed)
    kind = _tower_kind(weights)
    token, rank = {"eva": ("cls_token", 3), "clip_l": ("class_embedding", 1)}[kind]
    width = shape_of(weights, f"{INNER}{token}", rank)[-1]
    blocks = USED_BLOCKS[kind].get(width, len(weights.infos))
    left_out = [name for name in weights.infos if UNUSED.match(name) or _is_above(name, blocks)]
    kept = RenamedWeights(weights, {name: name for name in weights.infos if name not in set(left_out)})
    mapped = map_exactly(kept, f"lavis_{kind}")
    config = _tower_config(mapped, kind)
    settings = model_settings(mapped, config, None, config["image_size"])
    notes = (f"left out, LAVIS does not build it: {', '.join(_modules(left_out))}",) if left_out else ()
    name = "EVA-CLIP ViT" if kind == "eva" else "CLIP ViT"
    what = f"{name} of {config['num_hidden_layers']} blocks for {config['image_size']} pixels, a vision tower alone"
    return Found("lavis_tower", what, mapped, "generation", settings, notes=notes)


def _tower_kind(weights: Weights) -> str:
    return "clip_l" if f"{INNER}conv1.weight" in weights.infos else "eva"


def _projection(weights: Weights) -> str | None:
    """``opt``, ``t5`` or ``llm``; ``None`` for the first stage."""
    found = {
        name.partition("_")[0] for name in weights.infos if name.startswith(tuple(f"{p}_proj." for p in PROJECTIONS))
    }
    if len(found) > 1:
        raise CheckpointError(
            f"{weights.path}: has projections for several language models: {', '.join(sorted(found))}."
        )
    return next(iter(found), None)


def _tower_config(mapped: Weights, kind: str) -> dict[str, Any]:
    # LAVIS' clip_vit.py: pre-norm blocks behind ln_pre, QuickGELU, and the last block removed.
    return eva_config(mapped) if kind == "eva" else tower_config(mapped, "quick_gelu")


def _is_above(name: str, blocks: int) -> bool:
    """Whether a weight belongs to a block above the first ``blocks``."""
    block = re.match(r"visual_encoder\.(?:blocks|transformer\.resblocks)\.(\d+)\.", name)
    return block is not None and int(block[1]) >= blocks


def _modules(names: list[str]) -> list[str]:
    """The modules that weights belong to, each once."""
    return sorted(
        {".".join(re.split(r"\.(?=weight$|bias$|norm|attn|mlp|ln_)", name.removeprefix(INNER))[:1]) for name in names}
    )


def _language_settings(mapped: Weights, projection: str | None, captioner: bool) -> dict[str, Any]:
    """The language model's configuration if it is there, or what LAVIS changes in that of one that is named."""
    if projection not in ("opt", "t5"):
        return {}  # InstructBLIP's Vicuna
    found: dict[str, Any] = {"prompt": prompt_settings(projection, captioner)}
    if has(mapped, LANGUAGE_MODEL):
        config = opt_config(mapped) if projection == "opt" else t5_config(mapped, "gelu")
        return found | {"language_model": {"config": config}}
    return found | ({"language_model": {"override": {"dense_act_fn": "gelu"}}} if projection == "t5" else {})


def _notes(mapped: MappedWeights) -> tuple[str, ...]:
    notes = []
    if mapped.dropped:
        notes.append(f"left out, not weights: {', '.join(mapped.dropped)}")
    if kind_of(mapped) == "generation" and any(name.startswith("bridge.output") for name in mapped.infos):
        notes.append("the norm between tower and Q-Former has epsilon 1e-5, the tower's blocks 1e-6, as in LAVIS")
    return tuple(notes)


LAVIS = Format("lavis", "LAVIS .pth (BLIP-2)", matches_lavis, read_lavis)
LAVIS_TOWER = Format("lavis_tower", "LAVIS eva_vit_g.pth or clip_vit_L.pth", matches_tower, read_tower)
