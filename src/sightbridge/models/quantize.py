"""A frozen language model in 8 or 4 bits: its linear layers rounded, one by one; all else stays as it is.

The layers are those of ``bitsandbytes``, which computes with them on CUDA and other GPUs and, slowly, on CPUs.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sightbridge.errors import SettingsError
from sightbridge.models.language_model import LanguageModel
from sightbridge.models.lora import base_name

Quantization = Literal["8bit", "nf4"]
KEY = "model.language_model.quantize"
OUTLIER = 6.0
"""Activations above it are multiplied in 16 bits, the default of LLM.int8() (Dettmers et al., arXiv 2208.07339)."""


def check_quantization(kind: Quantization, device: torch.device | str) -> None:
    """Quantise and run one small layer.

    Raises:
        SettingsError: bitsandbytes is not there, or does not work on this device.
    """
    if find_spec("bitsandbytes") is None:
        raise SettingsError(
            f"{kind} needs the bitsandbytes package: pip install 'sightbridge[quant]', or load the language model in "
            "full (quantize=none)",
            key=KEY,
        )
    try:
        layer = quantized_layer(nn.Linear(64, 64), kind, device, double=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            working = bool(layer(torch.ones(1, 64, device=device)).isfinite().all())
        problem = "its output is not finite"
    except Exception as error:  # whatever a backend that is not there or too old raises
        working, problem = False, str(error).strip().partition("\n")[0]
    if not working:
        raise SettingsError(
            f"bitsandbytes cannot compute in {kind} on '{torch.device(device).type}' here ({problem}); load the "
            "language model in full (quantize=none), in bfloat16 if memory is short",
            key=KEY,
        )


def quantize(language_model: LanguageModel, kind: Quantization, device: torch.device | str) -> list[str]:
    """Replace the linear layers of a language model, in place, and put them on ``device``; returns their names.

    Kept as they are, like in mBLIP (there by transformers' own rule): embeddings, the output head, and the second
    feed-forward layer of T5 and mT5, whose outputs are too large for it. Adapters are kept, too. What is left full is
    not moved. To be called once all weights are there, and before the model first runs.

    Raises:
        SettingsError: see ``check_quantization``.
    """
    check_quantization(kind, device)
    # it tells of every single call that LLM.int8() multiplies in 16 bits
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    model = language_model.model
    head, apart = model.get_output_embeddings(), model._keep_in_fp32_modules or ()
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    done = []
    for name, layer in linear:
        own_name = base_name(f"{name}.").rstrip(".")
        if layer is head or ".lora_" in name or set(apart) & set(own_name.split(".")):
            continue
        # mBLIP quantises the constants of mT0 once more (double quantisation), and not those of causal models
        new = quantized_layer(layer, kind, device, double=language_model.is_encoder_decoder)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
        done.append(own_name)
    language_model.assert_heads_untied()
    return done


def quantized_layer(layer: Any, kind: Quantization, device: torch.device | str, double: bool) -> nn.Module:
    """Return a layer that computes nearly what ``layer`` (linear, or GPT-2's transposed one) does.

    Args:
        layer: stays as it is.
        kind: 8bit = LLM.int8(); nf4 = the 4-bit type of QLoRA (Dettmers et al., arXiv 2305.14314), in blocks of 64,
            computing in the type of ``layer``.
        device: of the new layer.
        double: whether nf4's block constants are quantised, too.
    """
    import bitsandbytes  # type: ignore[import-not-found]

    layers: Any = bitsandbytes.nn
    weight: Tensor = layer.weight.data
    weight = weight.T.contiguous() if isinstance(layer, Conv1D) else weight
    rows, columns = weight.shape
    with torch.device("meta"):
        if kind == "8bit":
            new = layers.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False, threshold=OUTLIER)
        else:
            new = layers.Linear4bit(columns, rows, bias=False, compute_dtype=weight.dtype)
    if kind == "8bit":
        parameter: Any = layers.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    else:
        parameter = layers.Params4bit(
            weight, requires_grad=False, compress_statistics=double, quant_type="nf4", module=new
        )
    new.weight = parameter.to(device)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.data.to(device), requires_grad=False)
    return new.train(layer.training)  # in training mode bitsandbytes multiplies 8 bits differently on CPUs
