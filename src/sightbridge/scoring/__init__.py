"""Scores of how well a picture and a text fit. Everything is imported on first use, so importing this costs nothing.

``import sightbridge.scoring as t2v_metrics`` runs code that was written for t2v_metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightbridge.scoring.load import load_scorer, make_backend
    from sightbridge.scoring.options import Ranking, rank_options
    from sightbridge.scoring.scorer import Scorer, Scores
    from sightbridge.scoring.t2v_metrics import (
        CLIPScore,
        ITMScore,
        VQAScore,
        get_score_model,
        list_all_clipscore_models,
        list_all_itmscore_models,
        list_all_models,
        list_all_vqascore_models,
        register_model,
    )

_LAZY = {
    "load": ("load_scorer", "make_backend"),
    "options": ("Ranking", "rank_options"),
    "scorer": ("Scorer", "Scores"),
    "t2v_metrics": (
        "CLIPScore",
        "ITMScore",
        "VQAScore",
        "get_score_model",
        "list_all_clipscore_models",
        "list_all_itmscore_models",
        "list_all_models",
        "list_all_vqascore_models",
        "register_model",
    ),
}
"""Module -> the public names in it."""
__all__ = [
    "CLIPScore",
    "ITMScore",
    "Ranking",
    "Scorer",
    "Scores",
    "VQAScore",
    "get_score_model",
    "list_all_clipscore_models",
    "list_all_itmscore_models",
    "list_all_models",
    "list_all_vqascore_models",
    "load_scorer",
    "make_backend",
    "rank_options",
    "register_model",
]


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _LAZY.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'sightbridge.scoring' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"sightbridge.scoring.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
