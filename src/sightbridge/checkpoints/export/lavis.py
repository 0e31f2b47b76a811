"""``--to lavis``: a ``.pth`` of BLIP-2 as LAVIS saves it: what trained, wrapped in ``model``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightbridge.checkpoints.export.hf_blip2 import is_above
from sightbridge.checkpoints.export.job import Job, Written, cannot
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.manifest import AnyManifest, Manifest
from sightbridge.checkpoints.sources.model_folder import FolderWeights
from sightbridge.checkpoints.sources.writer import write_torch
from sightbridge.config.model import ModelSettings
from sightbridge.errors import CheckpointError
from sightbridge.models.build import find_config

FILE = "checkpoint.pth"
TOWERS = {
    "blip_2_vision_model": "lavis_eva",
    "instructblip_vision_model": "lavis_eva",
    "clip_vision_model": "lavis_clip_l",
}
"""LAVIS' two towers, and the tables of their names."""
PROJECTIONS = {"opt": "lavis_opt", "t5": "lavis_t5", "mt5": "lavis_t5"}
"""What LAVIS calls the projection, by the language model; any other one is its ``llm``."""
FIRST_STAGE_ONLY = "Qformer.cls."


def lavis_parts(manifest: AnyManifest) -> tuple[str, ...]:
    """The bridge, and what trained of the rest: LAVIS' files hold no frozen tower and no frozen language model."""
    trained = [name for name in ("vision_tower", "language_model") if name in manifest.parts]
    return ("bridge", *(name for name in trained if manifest.parts[name].trained), "adapter")


def write_lavis(job: Job, folder: Path) -> Written:
    """Write ``checkpoint.pth``.

    Raises:
        CheckpointError: the model is no BLIP-2, or has adapters, for which LAVIS has no place.
    """
    settings = job.manifest.settings
    stage1 = not isinstance(settings, ModelSettings)
    if isinstance(settings, ModelSettings) and settings.connector.kind != "qformer":
        reason = f"its connector is a {settings.connector.kind} and LAVIS' BLIP-2 has a Q-Former"
        raise cannot(job, "a LAVIS file", reason, "Try --to llava or --to projector.")
    if isinstance(job.manifest, Manifest) and any(name.startswith("adapter.") for name in job.weights.infos):
        reason = "LAVIS' files have no place for the adapters of its language model"
        raise cannot(job, "a LAVIS file", reason, "Give --merge to put them inside, or export --to hf.")
    tower = _tower_type(job)
    if tower not in TOWERS:
        reason = f"its vision tower is a {tower} and LAVIS' are EVA's ViT-g and CLIP's ViT-L"
        raise cannot(job, "a LAVIS file", reason, "")
    tables = ["lavis", TOWERS[tower], *([] if stage1 else [_projection(job)])]
    mapped = KeyMap.named(*tables).to_theirs(used_tower(job.weights))
    if mapped.unexpected:
        reason = f"LAVIS has no place for {len(mapped.unexpected)} weights, such as '{mapped.unexpected[0]}'"
        raise cannot(job, "a LAVIS file", reason, "")
    names = [name for name in mapped.infos if stage1 or not name.startswith(FIRST_STAGE_ONLY)]
    write_torch(folder / FILE, mapped, names, wrapper="model", on_tensor=job.on_tensor)
    missing = [
        part
        for part in ("vision_tower", "language_model")
        if part in job.manifest.parts and not any(name.startswith(f"{part}.") for name in job.weights.infos)
    ]
    notes = tuple(
        f"The {part.replace('_', ' ')} is not in the file, as it did not train: "
        f"{job.manifest.parts[part].source or 'it stays in the model folder'}."
        for part in missing
    )
    notes += () if stage1 else activation_notes(job, "gelu", "LAVIS")
    load = (
        "import torch\n"
        f'weights = torch.load(f"{{FOLDER}}/{FILE}", weights_only=True)["model"]\n'
        "# LAVIS: load_model_and_preprocess(...)[0].load_state_dict(weights, strict=False)"
    )
    stage = "first stage" if stage1 else "second stage"
    return Written(f"LAVIS' BLIP-2, {stage}", load, notes, ("blip-2", "lavis"))


def used_tower(weights: FolderWeights) -> FolderWeights:
    """The weights without what is behind the last block of the tower that is read."""
    if weights.vision_model is None:
        return weights
    depth = weights.layers[0] if weights.layers else weights.vision_model.config.num_hidden_layers
    above = [name for name in weights.infos if is_above(name, depth) or name.startswith("vision_tower.post_layernorm.")]
    return weights.but({}, drop=above)


def _tower_type(job: Job) -> str:
    if job.weights.vision_model is not None:
        return job.weights.vision_model.config.model_type
    return find_config(job.manifest.settings.vision_tower, "vision_tower").model_type


def activation_notes(job: Job, theirs: str, who: str) -> tuple[str, ...]:
    """A sentence if the other code's T5 has another activation, which its files have no place for."""
    config = _language_config(job)
    own = getattr(config, "dense_act_fn", theirs)
    if not getattr(config, "is_gated_act", False) or own == theirs:
        return ()
    return (f"The T5 inside computes `{own}` here and `{theirs}` in {who}, so that answers may differ a little.",)


def _language_config(job: Job) -> Any:
    """The language model's configuration, or ``None`` if it does not lie here."""
    settings = job.manifest.settings
    assert isinstance(settings, ModelSettings)
    try:
        return find_config(settings.language_model, "language_model")
    except CheckpointError:
        return None


def _projection(job: Job) -> str:
    """The table of the projection's name."""
    config = _language_config(job)
    if config is not None:
        return PROJECTIONS.get(config.model_type, "lavis_llm")
    if isinstance(job.manifest, Manifest) and job.manifest.encoder_decoder:
        return "lavis_t5"  # an encoder-decoder of LAVIS is a T5
    raise cannot(
        job,
        "a LAVIS file",
        f"its language model '{job.manifest.parts['language_model'].source}' is not here, and LAVIS names the "
        "projection by its family (opt_proj, llm_proj)",
        "Say where it is: --source language_model=FOLDER.",
    )
