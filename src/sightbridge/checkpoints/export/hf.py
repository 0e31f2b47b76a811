"""``--to hf``: a folder that plain ``transformers`` loads with ``from_pretrained``."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from PIL import Image

from sightbridge.checkpoints.export.adapter import write_hf_adapter
from sightbridge.checkpoints.export.example import QUESTION, example_text
from sightbridge.checkpoints.export.hf_blip2 import plan_blip2, plan_retrieval
from sightbridge.checkpoints.export.hf_llava import plan_llava
from sightbridge.checkpoints.export.hf_plan import Plan
from sightbridge.checkpoints.export.job import Job, Written, cannot
from sightbridge.checkpoints.export.pictures import BACKEND_NOTE
from sightbridge.checkpoints.export.tokens import output_tables
from sightbridge.checkpoints.export.verify import verify
from sightbridge.checkpoints.formats.beside import BESIDE, TOKENIZER, Beside
from sightbridge.checkpoints.formats.hf_blip2 import EXTRAS
from sightbridge.checkpoints.key_map import KeyMap
from sightbridge.checkpoints.manifest import AnyManifest
from sightbridge.checkpoints.sources.base import StoredWeights
from sightbridge.checkpoints.sources.writer import write_safetensors, write_sharded
from sightbridge.config.model import ModelSettings
from sightbridge.data.processor import Processor


def hf_parts(manifest: AnyManifest) -> tuple[str, ...]:
    """A class of transformers holds every part."""
    return ("vision_tower", "bridge", "language_model", "adapter")


def write_hf(job: Job, folder: Path) -> Written:
    """Write configuration, weights, processor and, unless they were merged, adapters.

    Raises:
        CheckpointError: transformers has no class for this combination; the message says why.
    """
    plan = make_plan(job)
    adapter = [name for name in plan.weights.infos if name.startswith("adapter.")]
    inside = plan.weights.but({}, drop=[*adapter, *plan.extras])
    mapped = KeyMap.named(plan.table).to_theirs(inside)
    if mapped.unexpected:
        names = ", ".join(mapped.unexpected[:3])
        reason = f"{plan.class_name} has no place for {len(mapped.unexpected)} of its weights ({names})"
        raise cannot(job, plan.class_name, reason, "Its connector can be written with --to projector.")
    write_config(plan.config, plan.class_name, folder)
    write_sharded(folder, mapped, on_tensor=job.on_tensor)
    if plan.extras:
        extras = StoredWeights(job.folder, "memory", {name: plan.weights.stored[name] for name in plan.extras})
        write_safetensors(folder / EXTRAS, extras)
    plan.processor.save_pretrained(folder)
    if isinstance(settings := job.manifest.settings, ModelSettings):
        beside = Beside(prompt=settings.prompt, vocabulary=_grown_from(job, plan))
        job.processor.tokenizer.save_pretrained(folder / TOKENIZER)
        (folder / BESIDE).write_text(beside.model_dump_json(exclude_none=True, indent=2) + "\n", "utf-8")
    if plan.generation:
        plan.generation.save_pretrained(folder)
    notes, load = (*plan.notes, *ids_note(job, plan)), plan.load
    if adapter:
        notes += (write_hf_adapter(job, folder, plan.class_name),)
        load += '\nfrom peft import PeftModel\nmodel = PeftModel.from_pretrained(model, f"{FOLDER}/adapter")'
    if job.verify:
        notes = (verify(job, folder, plan.class_name, plan.config.image_token_index), *notes)
    return Written(f"`{plan.class_name}` of transformers", load, (*notes, BACKEND_NOTE), plan.tags)


def _grown_from(job: Job, plan: Plan) -> int | None:
    """Rows that the language model's tables had before one was added for pictures; ``None`` if none was."""
    table = output_tables(job.weights)[0]
    before, after = (weights.infos[table].shape[0] for weights in (job.weights, plan.weights))
    return before if after > before else None


def make_plan(job: Job) -> Plan:
    """Find the class for a model and fill it."""
    settings = job.manifest.settings
    if not isinstance(settings, ModelSettings):
        return plan_retrieval(job)
    kinds = {"qformer": plan_blip2, "mlp": plan_llava}
    if settings.connector.kind not in kinds:
        raise cannot(
            job,
            "a class of transformers",
            f"none has a connector of kind '{settings.connector.kind}' (Blip2 and InstructBlip have a Q-Former, Llava "
            "and VipLlava an MLP of two layers)",
            "A linear connector can be written with --to llava or --to projector.",
        )
    return kinds[settings.connector.kind](job)


def ids_note(job: Job, plan: Plan) -> tuple[str, ...]:
    """Whether the processor of transformers makes the ids of the card's example that the model here was trained with.

    It writes a prompt as one string; templates here may take the stretches around a picture apart, as LLaVA does.
    """
    if not isinstance(job.processor, Processor):
        return ()
    side = job.processor.image_settings.size
    blank = Image.new("RGB", (side, side))
    batch = job.processor.prompt(blank, QUESTION)
    ours = batch.input_ids.masked_fill(batch.image_slots, plan.config.image_token_index)[0].tolist()
    prompt = example_text(job.processor, plan.class_name)
    theirs = plan.processor(images=blank, text=prompt, return_tensors="pt")["input_ids"][0].tolist()
    if ours == theirs:
        return ("The processor makes the same ids of the example prompt as the model here is given.",)
    show = plan.processor.tokenizer.convert_ids_to_tokens
    changes = SequenceMatcher(a=ours, b=theirs, autojunk=False).get_opcodes()
    told = [f"{show(ours[a:b])} is {show(theirs[c:d])} there" for kind, a, b, c, d in changes if kind != "equal"]
    return (
        "The processor makes other ids of the example prompt than the model here is given, for it writes the prompt as "
        f"one string: {'; '.join(told[:3])}. For exactly the same answers write `input_ids` yourself.",
    )


def write_config(config: Any, class_name: str, folder: Path) -> None:
    """Write every value of a configuration, defaults too: they changed between releases of transformers (epsilons)."""
    config.architectures = [class_name]
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True, default=str) + "\n")
