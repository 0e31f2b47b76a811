"""sightbridge: give any language model sight by training only the bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightbridge.checkpoints.folder import load_any_model as load
    from sightbridge.checkpoints.folder import save_model as save
    from sightbridge.data.readers import load_records as records
    from sightbridge.generation.answer import ask

__version__ = "0.1.0"
__all__ = ["__version__", "ask", "load", "records", "save"]

_LAZY = {
    "ask": ("sightbridge.generation.answer", "ask"),
    "load": ("sightbridge.checkpoints.folder", "load_any_model"),
    "records": ("sightbridge.data.readers", "load_records"),
    "save": ("sightbridge.checkpoints.folder", "save_model"),
}
"""Public name -> module and name in it. They are imported on first use: importing the package loads no torch."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sightbridge' has no attribute '{name}'")
    from importlib import import_module

    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
