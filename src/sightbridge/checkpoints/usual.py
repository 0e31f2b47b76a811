"""What published connectors were trained between, told by their shapes: for messages, never to choose."""

from __future__ import annotations

from sightbridge.checkpoints.sources.base import Weights

LANGUAGE_MODELS = {
    ("qformer", 2560): "facebook/opt-2.7b",
    ("qformer", 2048): "google/flan-t5-xl (BLIP-2) or bigscience/mt0-xl (mBLIP)",
    ("qformer", 4096): "facebook/opt-6.7b, google/flan-t5-xxl (BLIP-2) or bigscience/bloomz-7b1 (mBLIP)",
    ("mlp", 4096): "lmsys/vicuna-7b-v1.5 (LLaVA) or google/flan-t5-xxl (CLIP-FlanT5)",
    ("mlp", 5120): "lmsys/vicuna-13b-v1.5",
    ("mlp", 3072): "microsoft/Phi-3-mini-4k-instruct",
    ("mlp", 2048): "google/flan-t5-xl (CLIP-FlanT5)",
}
"""Language models that published connectors of a kind and an output width lead to."""
TOWERS = {
    ("qformer", 1408): "LAVIS' eva_vit_g.pth, or Salesforce/blip2-opt-2.7b, which holds the same tower",
    ("qformer", 1024): "LAVIS' clip_vit_L.pth, or openai/clip-vit-large-patch14",
    ("mlp", 1024): "openai/clip-vit-large-patch14-336",
    ("mlp", 5120): "openai/clip-vit-large-patch14-336, five of whose layers it reads",
}
"""Vision towers that published connectors of a kind and an input width read."""


def bridge_widths(weights: Weights) -> tuple[int | None, int | None]:
    """How wide the features are that a bridge reads, and the tokens that it makes; ``None`` if it has no such layer."""
    shapes = {name.removeprefix("bridge."): info.shape for name, info in weights.infos.items()}
    last = max((name for name in shapes if name.startswith("layers.") and name.endswith(".weight")), default=None,
               key=lambda name: int(name.split(".")[1]))  # fmt: skip
    to = shapes.get("output.weight") or (shapes[last] if last else None)
    if "layers.0.weight" in shapes:
        return shapes["layers.0.weight"][1], to[0] if to else None
    look = shapes.get("qformer.encoder.layer.0.crossattention.attention.key.weight")
    read = look or shapes.get("output.weight")
    return read[1] if read else None, to[0] if to else None


def usual(part: str, bridge: Weights) -> str | None:
    """What usually stands on that side of a bridge, ``None`` if its widths are nobody's."""
    looks = any(name.removeprefix("bridge.").startswith("qformer.") for name in bridge.infos)
    family = "qformer" if looks else "mlp"
    read, made = bridge_widths(bridge)
    if part == "language_model":
        return LANGUAGE_MODELS.get((family, made or 0))
    return TOWERS.get((family, read or 0))
