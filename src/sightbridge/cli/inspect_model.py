"""``sightbridge inspect model``: what a model folder, or weights in any other format, hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sightbridge.cli.console import new_table, show_table, wide_console
from sightbridge.cli.inspect_weights import show_foreign
from sightbridge.cli.loading import describe_memory
from sightbridge.errors import CheckpointError

if TYPE_CHECKING:
    from sightbridge.checkpoints.describe import ModelDescription, PartDescription
    from sightbridge.checkpoints.manifest import Manifest
    from sightbridge.config.model import ImageSettings


def inspect_model(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A model folder; or a file or folder of weights from LAVIS, LLaVA, Hugging Face, PaddleMIX, ...",
        ),
    ],
) -> None:
    """Show what a model folder holds, or weights in any other format, without reading a weight.

    \b
    Examples:
      sightbridge inspect model runs/quickstart/model
      sightbridge inspect model blip2_pretrained_opt2.7b.pth
    """
    from sightbridge.checkpoints.atomic import existing_folder
    from sightbridge.checkpoints.describe import describe
    from sightbridge.checkpoints.describe_foreign import describe_foreign
    from sightbridge.checkpoints.manifest import MANIFEST

    if (existing_folder(model.expanduser()) / MANIFEST).is_file():
        _show_folder(model, describe(model))
    else:
        show_foreign(model, describe_foreign(model.expanduser()))


def _show_folder(model: Path, found: ModelDescription) -> None:
    from sightbridge.checkpoints.footprint import footprint
    from sightbridge.checkpoints.manifest import Manifest

    out = wide_console()
    for name, value in _facts(model, found):
        out.print(Text(f"{name:<16} ", style="bold").append(value, style="not bold"))
    table = new_table("part", "model", "weights", "parameters", "type", "")
    for part in found.parts:
        state = "trained" if part.trained else "frozen"
        table.add_row(
            part.name.replace("_", " "), _kind(part), _weights(part), f"{part.parameters:,}", part.dtype, state
        )
    show_table(table)
    if isinstance(found.manifest, Manifest):
        out.print(Text(describe_memory(footprint(model))))


def _facts(model: Path, found: ModelDescription) -> list[tuple[str, str]]:
    from sightbridge.checkpoints.manifest import Manifest

    manifest = found.manifest
    facts = [("folder", str(model))]
    if isinstance(manifest, Manifest):
        facts += _language_facts(manifest)
    else:
        text = manifest.settings.text
        facts += [
            ("kind", "first stage of BLIP-2, to start a second stage from"),
            ("captions", f"at most {text.max_length} tokens, tokenizer of {len(manifest.tokenizer_files)} files"),
        ]
    facts += [
        ("picture", f"{_transform(manifest.settings.image)}, {manifest.tokens_per_image} tokens each"),
        ("written by", _pairs(manifest.versions)),
    ]
    return facts + _provenance(manifest.provenance)


def _provenance(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each thing that is known of where a model comes from."""
    facts = []
    for name, value in provenance.items():
        for one in value if isinstance(value, list) else [value]:
            is_source = isinstance(one, dict) and "source" in one
            text = f"{one['source']}: {one.get('what', 'referenced')}" if is_source else str(one)
            facts.append((name.replace("_", " "), text))
    return facts


def _language_facts(manifest: Manifest) -> list[tuple[str, str]]:
    kind = "encoder-decoder" if manifest.encoder_decoder else "decoder-only"
    prompt = manifest.settings.prompt
    facts = [
        ("language model", f"{kind}, tokenizer of {len(manifest.tokenizer_files)} files in the folder"),
        ("template", prompt.template),
    ]
    if prompt.system is not None:
        facts.append(("system text", prompt.system or "none"))
    if manifest.adapter and (lora := manifest.settings.lora):
        of = lora.preset or lora.targets
        trained = "trained" if manifest.adapter.trained else "frozen"
        facts.append(
            (
                "adapters",
                f"LoRA of {manifest.adapter.layers} layers ({of}), r {lora.r}, alpha {lora.alpha}, "
                f"{manifest.adapter.parameters:,} parameters, {trained}",
            )
        )
    if prompt.switches:
        facts.append(("switches", _pairs(prompt.switches)))
    return facts


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {str(value).lower()}" for name, value in values.items())


def _transform(image: ImageSettings) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (image.mean, image.std))
    return f"{image.fit} to {image.size} x {image.size} pixels, mean ({mean}), deviation ({std})"


def _kind(part: PartDescription) -> str:
    """What a part is; of a Hugging Face folder, inside or referenced, what its configuration says, if that is here."""
    from sightbridge.models.build import resolve_source

    if part.source is None:
        return part.what
    try:
        config = Path(resolve_source(part.source)) / "config.json"
    except CheckpointError:
        return part.what
    return json.loads(config.read_text(encoding="utf-8"))["model_type"] if config.is_file() else part.what


def _weights(part: PartDescription) -> str:
    if not part.stored:
        return f"referenced: {part.source}"
    if part.bytes is None:
        return "stored, but the file is missing"
    return f"stored, {part.bytes / 2**20:,.1f} MiB" + (f", from {part.source}" if part.source else "")
