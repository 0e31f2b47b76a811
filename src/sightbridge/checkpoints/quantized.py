"""A quantised language model knows which full one it came from: that is what a folder references."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sightbridge.checkpoints.weights import fingerprint, parameter_count, part_dtype
from sightbridge.errors import SettingsError
from sightbridge.models.language_model import LanguageModel
from sightbridge.models.quantize import KEY, Quantization, quantize


@dataclass(frozen=True)
class Unquantized:
    """What was true of a part before it was quantised, or cast by DeepSpeed."""

    fingerprint: str
    parameters: int
    dtype: str

    @classmethod
    def of(cls, part: nn.Module) -> Unquantized:
        """Of a part as it is."""
        return cls(fingerprint(part), parameter_count(part), part_dtype(part))


def quantize_language_model(
    language_model: LanguageModel, kind: Quantization, device: torch.device | str = "cpu"
) -> list[str]:
    """Quantise the linear layers of a language model whose weights are all there; see ``models.quantize.quantize``.

    Its weights cannot be stored after that, only referenced, and adapters beside them.

    Raises:
        SettingsError: bitsandbytes does not work here; or the weights came from a model folder, so that there would be
            no source to reference.
    """
    if getattr(language_model, "filled_by_init_from", False):
        raise SettingsError(
            "training.init_from has given the language model weights of its own, which a quantised one could not "
            "store. Write them into a folder (sightbridge merge MODEL --out FOLDER) and make that the source.",
            key=KEY,
        )
    before = Unquantized.of(language_model)
    layers = quantize(language_model, kind, device)
    language_model.unquantized = before  # type: ignore[assignment]
    return layers


def remember_source(part: nn.Module) -> None:
    """Note what a part is like now, for a folder that references its source: it is about to be rounded."""
    part.unquantized = Unquantized.of(part)  # type: ignore[assignment]
