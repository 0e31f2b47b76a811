"""Connectors: what turns features of a vision tower into tokens of a language model.

A connector is a module with ``forward(features (N, S, C)) -> (N, tokens_per_image, D)`` and the attribute
``tokens_per_image``. One that also reads the question about a picture says so by ``takes_text``. Each kind has a file
of its own with its settings class beside it, and a line in ``CONNECTORS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sightbridge.config.base import Settings
from sightbridge.config.model import ConnectorSettings
from sightbridge.errors import SettingsError, nearest
from sightbridge.models.connectors.linear import LinearConnector, LinearOptions
from sightbridge.models.connectors.mlp import MLPConnector, MLPOptions
from sightbridge.models.connectors.qformer import QFormerConnector, QFormerOptions

AnyOptions = TypeVar("AnyOptions", bound=Settings)


class Connector(Protocol):
    """What every connector offers (besides being an ``nn.Module``)."""

    tokens_per_image: int

    def __call__(self, features: Tensor) -> Tensor:
        """Map features (N, S, C) to image tokens (N, tokens_per_image, D).

        With an attribute ``takes_text`` that is true, also ``text_ids`` and ``text_mask`` (N, Lq).
        """
        ...


Builder = Callable[..., nn.Module]
"""``(options, in_channels C, in_positions S, out_width D) -> connector``; usually the connector's class."""

CONNECTORS: dict[str, tuple[type[Settings], Builder]] = {
    "linear": (LinearOptions, LinearConnector),
    "mlp": (MLPOptions, MLPConnector),
    "qformer": (QFormerOptions, QFormerConnector),
}


def register_connector(name: str, options: type[Settings], build: Builder) -> None:
    """Add a kind of connector: its name in recipes, its settings class, and its class or builder.

    Submodules must not be called ``proj``: adapters match modules by the end of their names, and ``q_proj`` ends so.
    """
    if name in CONNECTORS:
        raise SettingsError(f"A connector '{name}' exists already; choose another name.", key="model.connector.kind")
    CONNECTORS[name] = (options, build)


def check_connector(settings: ConnectorSettings) -> Settings:
    """Return the checked options of a connector without building it.

    Raises:
        SettingsError: the kind or an option is unknown, or a value is out of range; ``key`` says which.
    """
    if settings.kind not in CONNECTORS:
        known = list(CONNECTORS)
        raise SettingsError(
            f"Unknown connector '{settings.kind}'; known are {', '.join(known)}.{nearest(settings.kind, known)}",
            key="model.connector.kind",
        )
    options_class, _ = CONNECTORS[settings.kind]
    return check_options(options_class, settings.options, f"connector '{settings.kind}'", "model.connector")


def check_options(options_class: type[AnyOptions], options: dict[str, Any], what: str, group: str) -> AnyOptions:
    """Make the options of ``what``, given under the key ``group`` of a recipe.

    Raises:
        SettingsError: one is unknown or out of range; ``key`` says which.
    """
    known = list(options_class.model_fields)
    for name in options:
        if name not in known:
            listed = f"its options are {', '.join(known)}" if known else "it has no options"
            unknown = f"{what[0].upper()}{what[1:]} has no option '{name}'; {listed}.{nearest(name, known)}"
            raise SettingsError(unknown, key=f"{group}.{name}")
    try:
        return options_class(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        subject = f"Option '{name}' of {what}" if name else f"{what[0].upper()}{what[1:]}"
        key = f"{group}.{name}" if name else group
        raise SettingsError(f"{subject}: {first['msg'].removeprefix('Value error, ')}.", key) from None


def build_connector(settings: ConnectorSettings, in_channels: int, in_positions: int, out_width: int) -> nn.Module:
    """Build a connector with random weights.

    Args:
        settings: kind and options.
        in_channels: C, channels of the vision tower's features.
        in_positions: S, features per picture.
        out_width: D, width of the language model's embeddings.
    """
    options = check_connector(settings)
    _, build = CONNECTORS[settings.kind]
    connector = build(options, in_channels, in_positions, out_width)
    if settings.output_scale != 1:
        *_, last = (module for module in connector.modules() if isinstance(module, nn.Linear))
        with torch.no_grad():
            last.weight *= settings.output_scale
    return connector


__all__ = ["CONNECTORS", "Connector", "build_connector", "check_connector", "register_connector"]
