"""Our models for lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval), which finds them by the entry point
``lmms_eval.models``. Only lmms-eval itself loads what is here."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Tell lmms-eval the name of our models and where the class of them is (its ``ModelManifest``)."""
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found]

    return ModelManifest("sightbridge", simple_class_path="sightbridge.evaluation.lmms_model.LmmsModel")
