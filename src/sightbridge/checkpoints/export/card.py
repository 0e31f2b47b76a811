"""The model card beside an export: what it is, how to load it, how to write a prompt, where it differs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sightbridge
from sightbridge.checkpoints.export.example import QUESTION, example_prompt, example_text
from sightbridge.checkpoints.export.job import Job, Written
from sightbridge.checkpoints.manifest import Manifest
from sightbridge.config.model import ImageSettings, ModelSettings
from sightbridge.data.processor import Processor
from sightbridge.text.turns import IMAGE_MARKER

CARD = "README.md"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FITS = {
    "squash": "resized to a square, whatever their shape",
    "crop": "resized by their shorter side and cropped at the centre",
    "pad": "padded to a square with the mean colour, then resized",
}


def write_card(job: Job, written: Written, folder: Path) -> None:
    """Write ``README.md`` for the hub and for people."""
    settings = job.manifest.settings
    lines = [*_front_matter(job, written), f"# {job.out.name}", "", _what(job, written), ""]
    lines += ["| part | what | trained | parameters |", "| --- | --- | --- | --- |", *_parts(job), ""]
    lines += [
        "## Loading it",
        "",
        "```python",
        'FOLDER = "."  # this folder',
        written.load,
        *_use(job, written),
        "```",
        "",
    ]
    if isinstance(settings, ModelSettings) and isinstance(job.processor, Processor):
        lines += ["## Prompt", "", *_prompt(job.processor), ""]
    lines += ["## Pictures", "", _pictures(settings.image), ""]
    lines += ["## What to know", "", *(f"- {note}" for note in written.notes), *_licence(job), ""]
    lines += ["## Where it comes from", "", *_provenance(job), ""]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8")


def _front_matter(job: Job, written: Written) -> list[str]:
    bases = [entry.source for entry in job.manifest.parts.values() if entry.source and HUB_NAME.fullmatch(entry.source)]
    lines = ["---", "library_name: transformers" if "`" in written.what else "library_name: sightbridge"]
    lines += ["license: other", "license_name: those-of-its-parts"]
    if bases:
        lines += ["base_model:", *(f"  - {base}" for base in bases)]
    return [*lines, "tags:", "  - sightbridge", *(f"  - {tag}" for tag in written.tags), "---", ""]


def _what(job: Job, written: Written) -> str:
    settings = job.manifest.settings
    kind = "A vision-language model" if isinstance(settings, ModelSettings) else "BLIP-2's first stage"
    return f"{kind} that sightbridge trained or read, as {written.what}."


def _parts(job: Job) -> list[str]:
    rows = []
    for name, entry in job.manifest.parts.items():
        settings = getattr(job.manifest.settings, name)
        what = (
            entry.source
            or getattr(settings, "kind", None)
            or (getattr(settings, "config", None) or {}).get("model_type")
        )
        rows.append(
            f"| {name.replace('_', ' ')} | {what or name} | {'yes' if entry.trained else 'no'} | {entry.parameters:,} |"
        )
    if isinstance(job.manifest, Manifest) and job.manifest.adapter:
        adapter = job.manifest.adapter
        rows.append(
            f"| adapters | LoRA beside {adapter.layers} layers | {'yes' if adapter.trained else 'no'} "
            f"| {adapter.parameters:,} |"
        )
    return rows


def _use(job: Job, written: Written) -> list[str]:
    """Lines that ask about a picture, for classes that do."""
    if "ConditionalGeneration` of transformers" not in written.what or not isinstance(job.processor, Processor):
        return []
    text = example_text(job.processor, written.what)
    qformer = []
    if "InstructBlip" in written.what:
        qformer = [f'qformer = processor.qformer_tokenizer({QUESTION!r}, return_tensors="pt")']
        qformer += [
            'inputs |= {"qformer_input_ids": qformer.input_ids, "qformer_attention_mask": qformer.attention_mask}'
        ]
    return [
        "",
        "from PIL import Image",
        f"prompt = {text!r}",
        'inputs = processor(images=Image.open("picture.jpg").convert("RGB"), text=prompt, return_tensors="pt")',
        *qformer,
        "answer = model.generate(**inputs, max_new_tokens=30, do_sample=False)",
        "print(processor.batch_decode(answer, skip_special_tokens=True)[0])",
    ]


def _prompt(processor: Processor) -> list[str]:
    fence = "```"
    return [
        f"The template `{processor.template.name}`; `{IMAGE_MARKER}` stands where the picture goes:",
        "",
        f"{fence}text",
        example_prompt(processor),
        fence,
    ]


def _pictures(image: ImageSettings) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (image.mean, image.std))
    return (
        f"{image.size} x {image.size} pixels, {FITS[image.fit]} (Pillow's bicubic), scaled to 0..1, mean ({mean}) "
        f"subtracted, divided by ({std})."
    )


def _licence(job: Job) -> list[str]:
    sources = [entry.source for entry in job.manifest.parts.values() if entry.source]
    told = f" ({', '.join(sources)})" if sources else ""
    return [f"- The licences of its parts{told} are not known to the program that wrote this card; look them up."]


def _provenance(job: Job) -> list[str]:
    notes: dict[str, Any] = dict(job.manifest.provenance)
    lines = [f"- {name}: {value}" for name, value in notes.items() if isinstance(value, str | int | float)]
    versions = ", ".join(f"{name} {version}" for name, version in job.manifest.versions.items())
    return [*lines, f"- saved by {versions}", f"- exported by sightbridge {sightbridge.__version__}"]
