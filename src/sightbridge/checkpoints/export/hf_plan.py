"""What the classes of transformers that hold a whole model have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from sightbridge.checkpoints.export.job import Job
from sightbridge.checkpoints.export.tokens import ImageToken, end_ids, output_tables, unspelled_ends
from sightbridge.checkpoints.sources.model_folder import FolderWeights
from sightbridge.config.model import ModelSettings


@dataclass(frozen=True)
class Plan:
    """A class of transformers, filled.

    Attributes:
        class_name: of the model.
        table: the key map to its names.
        config: its whole configuration.
        processor: its processor, which knows ``<image>``.
        weights: what goes into the file, under our names.
        extras: names of weights that go beside it.
        notes: for the model card.
        generation: settings of ``generate``; none for a model that writes nothing.
        load: lines of Python that load it.
        tags: of the hub.
    """

    class_name: str
    table: str
    config: Any
    processor: Any
    weights: FolderWeights
    load: str
    extras: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    generation: GenerationConfig | None = None
    tags: tuple[str, ...] = ("image-text-to-text",)


def text_config(job: Job, token: ImageToken) -> Any:
    """The language model's configuration for inside another: as it is, with its ends, its rows and its own head said.

    Blip2 generates with the inner language model, whose ends are those of this configuration.
    """
    model = job.weights.language_model
    content = model.config.to_dict() | {"vocab_size": token.rows, "pad_token_id": token.tokenizer.pad_token_id}
    content["eos_token_id"] = one_or_all(end_ids(job.processor))
    if has_own_head(job.weights):
        content["tie_word_embeddings"] = False
    if model.config.is_encoder_decoder and content.get("bos_token_id") is None:
        # For a picture without a text Blip2 starts with BOS. T5 has none; LAVIS' empty prompt is </s>.
        content["bos_token_id"] = token.tokenizer.eos_token_id
    content["dtype"] = type_held(job)
    return type(model.config).from_dict(content)


def has_own_head(weights: FolderWeights) -> bool:
    """Whether the files hold an output head apart from the embeddings."""
    return len([name for name in output_tables(weights) if name.endswith(".weight")]) > 1


def generation_config(job: Job, config: Any) -> GenerationConfig:
    """Ends, padding and start, which every ``generate`` needs; nothing else, so that decoding is greedy."""
    return GenerationConfig(
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=getattr(config, "bos_token_id", None),
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
    )


def end_notes(job: Job) -> tuple[str, ...]:
    """What ``generate`` must be told of ends that are no token."""
    ends = unspelled_ends(job.processor)
    if not ends:
        return ()
    return (
        f"An answer ends at {' or '.join(repr(end) for end in ends)}, which is no single token: give `generate` "
        f"`stop_strings={ends!r}` and the tokenizer.",
    )


def one_or_all(ids: list[int]) -> Any:
    """How transformers writes the ends: one id, or a list."""
    return ids[0] if len(ids) == 1 else ids or None


def type_held(job: Job) -> str:
    """The type that ``from_pretrained`` is to load the model in: that of the model here, whatever its files are in.

    A file in float16 that is held in float32 would otherwise compute in float16 there, connector and all.
    """
    settings = job.manifest.settings
    return job.dtype or (settings.language_model.dtype if isinstance(settings, ModelSettings) else "float32")


def changes_values(config: Any) -> str | None:
    """What a language model does to embeddings or logits that the classes here leave out; ``None`` if nothing."""
    if getattr(config, "embedding_multiplier", 1.0) not in (None, 1.0):
        return "multiplies its embeddings"
    for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"):
        if getattr(config, name, None) is not None:
            return f"changes its logits ({name})"
    return None


def loading(class_name: str) -> str:
    """Lines that load a model and its processor."""
    return (
        f"from transformers import AutoProcessor, {class_name}\n"
        f"model = {class_name}.from_pretrained(FOLDER)\n"
        "processor = AutoProcessor.from_pretrained(FOLDER)"
    )
