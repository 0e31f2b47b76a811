"""The parts of a model: which of them train, wholly or not, and that the frozen rest stays in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sightbridge.config.base import Settings
from sightbridge.config.training import PartTraining
from sightbridge.errors import SettingsError, nearest
from sightbridge.models.lora import adapter_modules


def trains(part: nn.Module) -> bool:
    """Whether any parameter of a part takes gradients."""
    return any(parameter.requires_grad for parameter in part.parameters())


def set_trainable(model: nn.Module, parts: Settings) -> None:
    """Let each part of ``model`` train, some of its submodules (``only``), its adapters or none; the rest is frozen.

    ``parts`` holds a ``PartTraining`` for each part, under the name of the submodule it is about. A model that calls
    ``eval_frozen`` in its ``train`` keeps what is frozen in evaluation mode.

    Raises:
        SettingsError: a part has no submodule of a name in ``only``, or one without parameters.
    """
    for name in type(parts).model_fields:
        part, settings = model.get_submodule(name), getattr(parts, name)
        part.requires_grad_(settings.train == "full" and not settings.only)
        adapters = adapter_modules(part) if settings.train == "lora" else []
        part.trained_submodules = (*settings.only, *adapters)  # type: ignore[assignment]
        for submodule in (*find_submodules(part, settings, name), *map(part.get_submodule, adapters)):
            submodule.requires_grad_(True)
    model.train(model.training)


def find_submodules(part: nn.Module, settings: PartTraining, name: str) -> list[nn.Module]:
    """The submodules of part ``name`` that ``settings.only`` lists; raises ``SettingsError`` if one is not there."""
    with_weights = {inner: m for inner, m in part.named_modules() if inner and next(m.parameters(), None) is not None}
    for wanted in settings.only:
        if wanted not in with_weights:
            own = ", ".join(inner for inner, _ in part.named_children() if inner in with_weights)
            what = f"no submodule '{wanted}' with weights; it has {own} and what is inside them"
            hint = nearest(wanted, list(with_weights))
            raise SettingsError(f"the {name.replace('_', ' ')} has {what}.{hint}", key=f"training.parts.{name}.only")
    return [with_weights[wanted] for wanted in settings.only]


def eval_frozen(model: nn.Module, names: Iterable[str]) -> None:
    """Put what is frozen of the named parts back into evaluation mode: no dropout where nothing is learnt."""
    for name in names:
        part = model.get_submodule(name)
        only: tuple[str, ...] = getattr(part, "trained_submodules", ())
        if only or not trains(part):
            part.eval()
        for inner in only:
            part.get_submodule(inner).train(model.training)
