"""A scorer from a model on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch

from sightbridge.checkpoints.folder import load_any_model
from sightbridge.checkpoints.manifest import MANIFEST
from sightbridge.data.processor import Processor
from sightbridge.data.qformer_processor import QFormerProcessor
from sightbridge.errors import SettingsError, nearest
from sightbridge.models.qformer_pretraining import QFormerPretraining
from sightbridge.models.vlm import VisionLanguageModel
from sightbridge.scoring.clip import is_clip_folder, load_clip
from sightbridge.scoring.kinds import Backend
from sightbridge.scoring.likelihood import AnswerLikelihood
from sightbridge.scoring.matching import ImageTextContrast, ImageTextMatching
from sightbridge.scoring.scorer import Scorer
from sightbridge.scoring.settings import ANSWER_KINDS, KINDS, Kind

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPTIONS = ("batch_size", "store", "on_error", "frames", "progress")
"""Of ``load_scorer``'s options those that are the scorer's own; all others are settings of the kind."""


def load_scorer(
    model: str | Path,
    kind: Kind | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantize: Literal["8bit", "nf4", "none"] | None = None,
    sources: dict[str, str] | None = None,
    system: str | None = None,
    **options: Any,
) -> Scorer:
    """Load a model and make a scorer of it.

    Args:
        model: a model folder; for kind clip the folder or name of a whole CLIP on Hugging Face.
        kind: of the scores (see ``KINDS``); by default vqascore, of a first-stage model itm, of a CLIP folder clip.
        device: such as "cuda"; by default a GPU if there is one.
        dtype: float32, bfloat16 or float16, to hold the weights in; by default as they are (a CLIP: float32).
        quantize: as in ``sightbridge.load``.
        sources: as in ``sightbridge.load``.
        system: system text in place of the model's own.
        options: ``batch_size``, ``store``, ``on_error``, ``frames``, ``progress`` of ``Scorer``; all others are
            settings of the kind, such as ``question_template`` or ``reduction``.

    Raises:
        SettingsError: a kind, dtype or setting is unknown, or the model has no scores of that kind.
        CheckpointError: as ``sightbridge.load``.
    """
    check_kind(kind)
    if dtype is not None and dtype not in DTYPES:
        raise SettingsError(f"unknown dtype '{dtype}'.{nearest(dtype, list(DTYPES))} Known: {', '.join(DTYPES)}")
    if dtype and quantize in ("8bit", "nf4"):
        raise SettingsError(f"dtype {dtype} and quantize {quantize} exclude each other; leave one out")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    mine = {name: options.pop(name) for name in OPTIONS if name in options}
    if kind == "clip" or (kind is None and is_clip_folder(Path(model))):
        return Scorer(load_clip(str(model), device, DTYPES.get(dtype or "")).changed(**options), str(model), **mine)
    if not (Path(model).expanduser() / MANIFEST).is_file() and is_clip_folder(Path(model)):
        raise SettingsError(f"{model}: holds a whole CLIP, whose only kind of score is clip, not {kind}")
    loaded, processor = load_any_model(model, device, sources, quantize)
    if dtype:
        loaded = loaded.to(DTYPES[dtype])
    if system is not None and isinstance(processor, Processor):
        processor.prompt_settings = processor.prompt_settings.model_copy(update={"system": system})
    return Scorer(make_backend(loaded, processor, kind, str(model)).changed(**options), str(model), **mine)


def make_backend(model: Any, processor: Any, kind: Kind | None = None, name: str = "the model") -> Backend:
    """Make the scores of one kind of a loaded model, by default vqascore, of a first-stage model itm.

    Raises ``SettingsError`` if this model has no scores of that kind.
    """
    check_kind(kind)
    if isinstance(model, QFormerPretraining) and isinstance(processor, QFormerProcessor):
        makers = {"itm": ImageTextMatching, "itc": ImageTextContrast}
        if (kind or "itm") in makers:
            return makers[kind or "itm"](model, processor)
        raise SettingsError(f"{name}: is a first-stage model, whose kinds of score are itm and itc, not {kind}")
    assert isinstance(model, VisionLanguageModel) and isinstance(processor, Processor), "there are two kinds of model"
    if (kind or "vqascore") in ANSWER_KINDS:
        kind = kind or "vqascore"
        return AnswerLikelihood(model, processor, ANSWER_KINDS[kind], kind)
    raise SettingsError(
        f"{name}: answers questions; its kinds of score are {', '.join(ANSWER_KINDS)}. {kind} needs "
        + ("a whole CLIP" if kind == "clip" else "a model of BLIP-2's first stage")
    )


def check_kind(kind: str | None) -> None:
    """Raise ``SettingsError`` for an unknown kind of score."""
    if kind is not None and kind not in get_args(Kind):
        raise SettingsError(f"unknown kind of score '{kind}'.{nearest(kind, list(KINDS))} Known: {', '.join(KINDS)}")
