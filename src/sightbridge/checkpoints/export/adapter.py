"""What other projects need of the language model: its adapters as a PEFT folder, or the language model by itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from sightbridge.checkpoints.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, read_adapter_config
from sightbridge.checkpoints.export.job import Job, Written, cannot
from sightbridge.checkpoints.manifest import ADAPTER, AnyManifest, Manifest
from sightbridge.checkpoints.sources.base import StoredWeights
from sightbridge.checkpoints.sources.writer import write_safetensors, write_sharded
from sightbridge.models.build import EMBEDDED, resolve_source

LANGUAGE_MODEL = "language_model."


def adapter_parts(manifest: AnyManifest) -> tuple[str, ...]:
    """Adapters alone; the language model only if they are to be merged into it, which ``export_model`` adds."""
    return ("adapter",)


def write_adapter(job: Job, folder: Path) -> Written:
    """Write the adapters as ``peft`` does, with the base's name, or the merged language model.

    Raises:
        CheckpointError: there are no adapters, or the language model they belong to lies in the model folder itself.
    """
    manifest = job.manifest
    if not isinstance(manifest, Manifest) or manifest.adapter is None:
        raise cannot(job, "an adapter", "its language model has none", "")
    if job.weights.language_model is not None:
        return _write_bare(job, folder)
    source = manifest.settings.language_model.source
    if manifest.parts["language_model"].file or source is None:
        reason = "the language model they belong to is stored in the model folder and has no name of its own"
        raise cannot(
            job, "an adapter", reason, "Give --merge for a language model with the adapters inside, or --to hf."
        )
    base = str(Path(resolve_source(source)).resolve()) if source.startswith(EMBEDDED) else source
    config = read_adapter_config(job.folder / ADAPTER) | {"base_model_name_or_path": base}
    _write_peft(job, folder, config, {name: name for name in _adapter_names(job)})
    job.processor.tokenizer.save_pretrained(folder)
    load = (
        f"from peft import PeftModel\nfrom transformers import {_auto_class(manifest.encoder_decoder)}\n"
        f"model = {_auto_class(manifest.encoder_decoder)}.from_pretrained({base!r})\n"
        "model = PeftModel.from_pretrained(model, FOLDER)"
    )
    note = "These are the adapters of the language model alone: vision tower and connector are not here."
    return Written(f"a PEFT adapter for `{base}`", load, (note,), ("peft", "lora"))


def language_model_parts(manifest: AnyManifest) -> tuple[str, ...]:
    """The language model, and adapters to see whether it has any: nothing is written without them unnoticed."""
    return ("language_model", "adapter")


def write_language_model(job: Job, folder: Path) -> Written:
    """Write the language model by itself, as transformers and servers of language models (vLLM) read it.

    Raises:
        CheckpointError: there is none, or it has adapters and they are not to be merged.
    """
    if job.weights.language_model is None:
        raise cannot(job, "a language model", "a model of BLIP-2's first stage has none", "")
    if any(name.startswith("adapter.") for name in job.weights.infos):
        raise cannot(job, "a language model alone", "it has adapters", "Give --merge, or --to adapter for these alone.")
    return _write_bare(job, folder)


def _write_bare(job: Job, folder: Path) -> Written:
    model = job.weights.language_model
    names = [name for name in job.weights.infos if name.startswith(LANGUAGE_MODEL)]
    bare = {name.removeprefix(LANGUAGE_MODEL): job.weights.stored[name] for name in names}
    write_sharded(folder, StoredWeights(job.folder, "memory", bare), on_tensor=job.on_tensor)
    content = model.config.to_dict() | {"architectures": [type(model).__name__]}
    if "lm_head.weight" in bare:
        content["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    job.processor.tokenizer.save_pretrained(folder)
    auto = _auto_class(model.config.is_encoder_decoder)
    is_merged = isinstance(job.manifest, Manifest) and job.manifest.adapter is not None
    inside = ", its adapters inside" if is_merged else ""
    note = f"This is the language model alone{inside}: vision tower and connector are not here."
    load = f"from transformers import {auto}\nmodel = {auto}.from_pretrained(FOLDER)"
    what = f"a {'merged ' if is_merged else ''}`{type(model).__name__}` of transformers"
    return Written(what, load, (note,), ("text-generation",))


def write_hf_adapter(job: Job, folder: Path, class_name: str) -> str:
    """Write adapters beside a whole model of transformers, under the names that modules have inside it; a note on it.

    The layers they go to are spelled as one pattern of whole names: ``q_proj`` alone would adapt the vision tower too.
    """
    inside = _inside_llava if "Llava" in class_name else _inside_blip2
    names = {name: PREFIX + inside(name.removeprefix(PREFIX)) for name in _adapter_names(job)}
    modules = {new.removeprefix(PREFIX).rpartition(".lora_")[0] for new in names.values()}
    config = read_adapter_config(job.folder / ADAPTER)
    config |= {"target_modules": _pattern(modules, job, inside), "base_model_name_or_path": str(job.out)}
    config["task_type"] = None  # of a language model; the whole one takes pictures as well
    (folder / ADAPTER).mkdir()
    _write_peft(job, folder / ADAPTER, config, names)
    return (
        "The adapters are apart, in `adapter/`, with the names of modules in the whole model. Without them it is the "
        "model before they were trained; `sightbridge export --merge` puts them inside."
    )


def _adapter_names(job: Job) -> list[str]:
    start = "adapter."
    return [name.removeprefix(start) for name in job.weights.infos if name.startswith(start)]


def _write_peft(job: Job, folder: Path, config: dict[str, Any], names: dict[str, str]) -> None:
    """``names``: ours -> theirs."""
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    renamed = {new: job.weights.stored[f"adapter.{old}"] for old, new in names.items()}
    write_safetensors(folder / ADAPTER_WEIGHTS, StoredWeights(job.folder, "memory", renamed), on_tensor=job.on_tensor)


def _inside_blip2(name: str) -> str:
    return LANGUAGE_MODEL + name


def _inside_llava(name: str) -> str:
    """The body of the language model is ``model.language_model``, its head is that of the whole."""
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def _pattern(modules: set[str], job: Job, inside: Any) -> str:
    """A regular expression for exactly these modules: with any number for a number, if that adapts no other layer."""
    shapes = sorted({re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in modules})
    pattern = "|".join(shapes)
    model = job.weights.language_model
    linear = {inside(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    matched = {name for name in linear if re.fullmatch(pattern, name)}
    return pattern if matched == modules else "|".join(re.escape(name) for name in sorted(modules))


def _auto_class(encoder_decoder: bool) -> str:
    return "AutoModelForSeq2SeqLM" if encoder_decoder else "AutoModelForCausalLM"
