"""The vision tower: any Hugging Face vision transformer, cut down to the hidden states that are used."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from sightbridge.errors import SettingsError
from sightbridge.images.transforms import normalise
from sightbridge.models.drop_path import add_drop_path

FINAL_NORMS = ("post_layernorm", "layernorm", "norm")
"""Where vision models keep the norm behind their last block."""
POOLERS = {"pooler": "add_pooling_layer", "head": "use_head"}
"""Modules that only serve the pooled output, which nothing here reads."""


class VisionTower(nn.Module):
    """Pictures to features: chosen hidden states of a vision model, concatenated on channels.

    ``layers`` follows Hugging Face's ``hidden_states``: 0 is what enters the first block, k what leaves block k, and
    negative numbers count from the end; no final norm is applied. LLaVA takes ``[-2]``, ViP-LLaVA
    ``[-2, -5, -8, -11, 6]``, BLIP-2 ``[-1]``. ``"output"`` is the model's own output with its final norm, if it has
    one there (SigLIP, DINOv2, ViT and Blip2VisionModel have, CLIP has not).

    Blocks above the highest one used, norms that no longer take part and poolers are deleted, so they cost neither
    time nor memory, and no parameter of a trained tower is left without a gradient.

    Attributes:
        channels: C, hidden size times the number of hidden states taken.
        positions: S, features per picture: patches, plus CLS and register positions if they are kept.
        image_size: side of the square pictures in pixels.
        pixel_statistics: mean and standard deviation that pictures given as bytes are normalised with.
    """

    pixel_statistics: tuple[Sequence[float], Sequence[float]] | None = None

    def __init__(
        self,
        model: Any,
        layers: list[int] | Literal["output"] = "output",
        class_token: Literal["keep", "drop"] = "keep",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.model: Any = model
        config = model.config
        self.image_size = int(config.image_size)
        prefix, patches = count_positions(model)
        self._skip = prefix if class_token == "drop" else 0
        self.positions: int = prefix + patches - self._skip
        self.layers = None if layers == "output" else resolve_layers(layers, config.num_hidden_layers)
        self.channels: int = config.hidden_size * (1 if self.layers is None else len(self.layers))
        remove_unused(model, self.layers)
        if drop_path:
            add_drop_path(find_blocks(model), drop_path)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights other than those of linear layers; pictures are cast to it."""
        return next(self.parameters()).dtype

    def hold_linear_layers_in(self, dtype: torch.dtype) -> VisionTower:
        """Cast the linear layers, which are all but a hundredth of the weights; they also compute in that type then.

        As LAVIS does with its frozen ViT: norms, position table and CLS stay in float32, and so does the sum that all
        residual branches add to. LAVIS casts the patch convolution, too; here it is cast when it is used, which is the
        same, and pictures stay in float32.
        """
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        return self

    def _own_autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Autocast to the type of the linear layers, if that is a half one."""
        types = {module.weight.dtype for module in self.model.modules() if isinstance(module, nn.Linear)}
        half = [dtype for dtype in types - {self.dtype} if dtype in (torch.float16, torch.bfloat16)]
        return torch.autocast(device.type, dtype=half[0]) if half else nullcontext()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Turn pictures (N, 3, H, W), normalised or as bytes (uint8), into features (N, S, C).

        Raises:
            SettingsError: the pictures have another size than the tower.
        """
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            height, width = pixel_values.shape[-2:]
            raise SettingsError(
                f"The vision tower takes pictures of {self.image_size}x{self.image_size} pixels but was given "
                f"{height}x{width}. Set image.size and vision_tower.image_size to the same number.",
                key="model.image.size",
            )
        if pixel_values.dtype == torch.uint8:
            assert self.pixel_statistics is not None, "a tower that is given bytes is built with image settings"
            pixel_values = normalise(pixel_values, *self.pixel_statistics)
        with self._own_autocast(pixel_values.device):
            return self._features(pixel_values.to(self.dtype))[:, self._skip :]

    def _features(self, pixel_values: Tensor) -> Tensor:
        """The hidden states taken, (N, positions, C), CLS and registers among them."""
        if self.layers is None:
            return self.model(pixel_values).last_hidden_state
        # The highest one is the model's output, now that its final norm is gone; of the others, transformers keeps
        # those in the list, at their usual places in the tuple.
        top = max(self.layers)
        output = self.model(pixel_values, output_hidden_states=sorted(set(self.layers) - {top}))
        states = [output.last_hidden_state if index == top else output.hidden_states[index] for index in self.layers]
        return torch.cat(states, dim=-1)


def resolve_layers(layers: list[int], depth: int) -> list[int]:
    """Turn indices into a model's ``depth + 1`` hidden states into non-negative ones, keeping their order."""
    if not layers:
        message = "'layers' is empty; give at least one hidden state, or 'output'."
        raise SettingsError(message, key="model.vision_tower.layers")
    for index in layers:
        if not -depth - 1 <= index <= depth:
            raise SettingsError(
                f"Hidden state {index} does not exist: the vision tower has {depth} blocks, so indices run from "
                f"{-depth - 1} to {depth}.",
                key="model.vision_tower.layers",
            )
    return [index % (depth + 1) for index in layers]


def count_positions(model: Any) -> tuple[int, int]:
    """Return how many (CLS and register, patch) positions a model's embeddings make of one picture."""
    size, patch = model.config.image_size, model.config.patch_size
    parameter = next(model.parameters())
    picture = torch.zeros(1, 3, size, size, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        positions = model.embeddings(picture).shape[1]
    patches = (size // patch) ** 2
    return positions - patches, patches


def remove_unused(model: Any, layers: list[int] | None) -> None:
    """Delete the poolers and, if hidden states are taken, the blocks above the highest one and the final norm."""
    config = model.config
    for name, flag in POOLERS.items():
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
            if hasattr(model, flag):
                setattr(model, flag, False)
    if config.model_type.startswith("dino"):
        model.embeddings.mask_token = None  # for DINO's own training only
    # CLIP's final norm is applied to its pooled output only.
    if layers is not None or config.model_type == "clip_vision_model":
        for name in FINAL_NORMS:
            if hasattr(model, name):
                setattr(model, name, nn.Identity())
    if layers is not None:
        blocks = find_blocks(model)
        del blocks[max(layers) :]
        config.num_hidden_layers = len(blocks)


def is_unused(name: str, config: Any, layers: list[int] | Literal["output"]) -> bool:
    """Whether a weight is of a module that ``remove_unused`` deletes for certain: files need not hold it.

    LAVIS' towers have no norm behind their last block.
    """
    module = name.split(".")[0]
    norm_is_unused = layers != "output" or config.model_type == "clip_vision_model"
    return module in POOLERS or (norm_is_unused and module in FINAL_NORMS)


def find_blocks(model: Any) -> nn.ModuleList:
    """Return the list of transformer blocks: the one module list as long as the configuration says."""
    depth = model.config.num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1:
        raise SettingsError(
            f"Cannot tell the blocks of a '{model.config.model_type}' vision model; choose a plain vision transformer "
            "such as clip_vision_model, siglip_vision_model, dinov2, vit or blip_2_vision_model.",
            key="model.vision_tower",
        )
    return found[0]


def resize_positions(model: Any, image_size: int) -> Any:
    """Return the model for square pictures of another size, its position table resampled once.

    The resampling is the model's own (bicubic, CLS row kept), which for ViT-g equals LAVIS'
    ``interpolate_pos_embed``. Resampling the table, rather than doing so in every forward pass, is what LAVIS does:
    an unfrozen tower then trains the new table.

    Raises:
        SettingsError: the side is no multiple of the patch size.
    """
    config = model.config
    if image_size == config.image_size:
        return model
    if image_size % config.patch_size:
        raise SettingsError(
            f"image_size {image_size} is no multiple of the vision tower's patch size {config.patch_size}.",
            key="model.vision_tower.image_size",
        )
    resized_config = type(config).from_dict({**config.to_dict(), "image_size": image_size})
    with no_init_weights():
        resized = type(model)(resized_config).to(next(model.parameters()).dtype)
    weights = model.state_dict()
    for name, wanted in resized.state_dict().items():
        if wanted.shape != weights[name].shape:  # the position table; rotary towers have none
            weights[name] = resample_positions(model, weights[name], image_size).reshape(wanted.shape)
    resized.load_state_dict(weights)
    return resized


def resample_positions(model: Any, table: Tensor, image_size: int) -> Tensor:
    """Return a position table (..., S, C) resampled to pictures of ``image_size`` pixels, (1, S', C)."""
    _, patches = count_positions(model)
    has_class_row = table.shape[-2] - patches  # registers have no row in the table
    positions = (image_size // model.config.patch_size) ** 2 + has_class_row
    stand_in = table.new_zeros(1, positions, table.shape[-1])  # only its shape is read
    with torch.no_grad():
        return model.embeddings.interpolate_pos_encoding(stand_in, image_size, image_size)
