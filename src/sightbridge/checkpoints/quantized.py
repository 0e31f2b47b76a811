"""A quantised language model knows which full one it came from: that is what a folder references."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sightbridge.checkpoints.weights import fingerprint, parameter_count, part_dtype
from sightbridge.errors import SettingsError
from sightbridge.models.language_model import LanguageModel
from sightbridge.models.quantize import KEY, Quantization, quantize


@dataclass(frozen=True)
class Unquantized:
    """What was true of a part before it was quantised."""

    fingerprint: str
    parameters: int
    dtype: str


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
    before = Unquantized(
        fingerprint(language_model),
        parameter_count(language_model),
        part_dtype(language_model),
    )
    layers = quantize(language_model, kind, device)
    language_model.unquantized = before  # type: ignore[assignment]
    return layers
