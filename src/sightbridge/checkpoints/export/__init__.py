"""A model folder in the files of other projects: one file for each target, and the model card beside all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sightbridge.checkpoints.atomic import atomic_folder, existing_folder
from sightbridge.checkpoints.export.adapter import (
    adapter_parts,
    language_model_parts,
    write_adapter,
    write_language_model,
)
from sightbridge.checkpoints.export.card import write_card
from sightbridge.checkpoints.export.hf import hf_parts, write_hf
from sightbridge.checkpoints.export.job import Job, Target, Written
from sightbridge.checkpoints.export.lavis import lavis_parts, write_lavis
from sightbridge.checkpoints.export.llava import llava_parts, write_llava
from sightbridge.checkpoints.export.paddle import paddle_parts, write_paddle
from sightbridge.checkpoints.folder import load_any_processor
from sightbridge.checkpoints.manifest import ADAPTER, AnyManifest, Manifest, read_manifest
from sightbridge.checkpoints.merge_shards import Adapter
from sightbridge.checkpoints.sources.model_folder import open_model_folder
from sightbridge.errors import CheckpointError, SettingsError, nearest

TARGETS: dict[str, Target] = {
    "hf": Target(
        "Blip2*, InstructBlip, Llava or VipLlava of transformers", hf_parts, write_hf, ("hf_blip2", "hf-llava")
    ),
    "lavis": Target("LAVIS .pth (BLIP-2)", lavis_parts, write_lavis, ("lavis",)),
    "llava": Target(
        "LLaVA, ViP-LLaVA or CLIP-FlanT5, original layout", llava_parts, write_llava, ("llava", "clip-flant5")
    ),
    "paddle": Target("PaddleMIX .pdparams (BLIP-2)", paddle_parts, write_paddle, ("paddle",)),
    "adapter": Target("PEFT adapter, or the merged language model", adapter_parts, write_adapter),
    "language_model": Target("the language model alone", language_model_parts, write_language_model),
}
"""Every layout of a folder, by the name that ``--to`` gives it; ``projector`` is a file (``export/projector.py``)."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """What was written where."""

    folder: Path
    written: Written


def export_model(
    folder: str | Path,
    out: str | Path,
    to: str,
    *,
    merge: bool = False,
    dtype: str | None = None,
    sources: Mapping[str, str] | None = None,
    verify: bool = False,
    on_tensor: Callable[[str], None] | None = None,
) -> Exported:
    """Write a model folder as another project's, one tensor in memory at a time, with a model card.

    Args:
        folder: a model folder.
        out: a new or empty folder; it is there whole or not at all.
        to: one of ``TARGETS``.
        merge: put adapters into the language model's weights; otherwise they stay apart where the layout can do so.
        dtype: type of all weights; ``None`` leaves each as its file has it.
        sources: part -> folder or hub name, for referenced parts that lie elsewhere now.
        verify: with ``hf``, also load the export and the model, one after the other, and compare their logits; the
            model card then says how far they are apart.
        on_tensor: called with the name of each tensor that is written.

    Raises:
        CheckpointError: the layout has no place for the model, a part is not found, is another one or damaged, or
            ``out`` is not empty.
        SettingsError: an unknown target or type.
    """
    if to not in TARGETS:
        raise SettingsError(f"--to: unknown target '{to}'. Known: {', '.join(TARGETS)}.{nearest(to, list(TARGETS))}")
    if dtype is not None and dtype not in DTYPES:
        raise SettingsError(
            f"--dtype: unknown type '{dtype}'. Known: {', '.join(DTYPES)}.{nearest(dtype, list(DTYPES))}"
        )
    if verify and to != "hf":
        raise SettingsError("--verify: only exports for transformers (--to hf) can be loaded here and compared")
    folder = existing_folder(Path(folder).expanduser().resolve())
    target = new_folder(out)
    manifest = read_manifest(folder)
    weights = open_model_folder(folder, sources, _parts(to, manifest, merge))
    if merge:
        weights = weights.merged(Adapter(folder / ADAPTER))
    if dtype:
        weights = weights.in_type(DTYPES[dtype])
    with weights, atomic_folder(target) as writing:
        job = Job(
            folder,
            target,
            weights.manifest,
            weights,
            load_any_processor(folder),
            dtype,
            sources or {},
            verify,
            on_tensor,
        )
        written = TARGETS[to].write(job, writing)
        write_card(job, written, writing)
    return Exported(target, written)


def new_folder(out: str | Path) -> Path:
    """The folder to write; raises ``CheckpointError`` if something is in it."""
    target = Path(out).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: is there already; choose a new or empty folder for the export.")
    return target


def _parts(to: str, manifest: AnyManifest, merge: bool) -> tuple[str, ...]:
    """What the target needs; merging needs the adapters and what they are merged into."""
    parts = TARGETS[to].parts(manifest)
    if not merge:
        return parts
    if not isinstance(manifest, Manifest) or manifest.adapter is None:
        raise CheckpointError("--merge: the language model has no adapters, so there is nothing to merge.")
    return tuple(dict.fromkeys((*parts, "language_model", "adapter")))
