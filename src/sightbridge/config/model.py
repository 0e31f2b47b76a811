"""Settings of a model: vision tower, connector, language model, prompt template, image transform."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from sightbridge.config.base import Settings

Dtype = Literal["float32", "bfloat16", "float16"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Channel means of CLIP's training images, used by every CLIP, EVA and BLIP tower (openai/CLIP)."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel standard deviations that belong to ``CLIP_MEAN``."""


class PartSource(Settings):
    """Where a pretrained part comes from: a folder or hub name, or a configuration for random weights."""

    source: str | None = Field(
        default=None, description="folder, hub name, or 'embedded:NAME' for a parent shipped in the package"
    )
    config: dict[str, Any] | None = Field(
        default=None, description="Hugging Face configuration (with 'model_type') to build with random weights"
    )
    override: dict[str, Any] = Field(
        default_factory=dict, description="changes to the configuration found at 'source', e.g. dense_act_fn: gelu"
    )
    dtype: Dtype = Field(default="float32", description="type the weights are held in")

    @model_validator(mode="after")
    def _one_origin(self) -> PartSource:
        if (self.source is None) == (self.config is None):
            raise ValueError("give exactly one of 'source' (pretrained weights) and 'config' (random weights)")
        if self.config is not None and self.override:
            raise ValueError("'override' changes the configuration of a 'source'; write into 'config' instead")
        return self


class VisionTowerSettings(PartSource):
    """A Hugging Face vision model and which of its hidden states become features."""

    layers: list[int] | Literal["output"] = Field(
        default="output",
        description="hidden states to take, concatenated on channels (0 = embeddings, negative from the end, no final "
        "norm applied); 'output' = the model's own output, final norm included",
    )
    class_token: Literal["keep", "drop"] = Field(
        default="keep", description="keep or drop CLS (and register) positions"
    )
    image_size: int | None = Field(
        default=None, ge=1, description="side in pixels, if other than the tower was made for"
    )
    drop_path: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of residual branches left out per picture in the last block, while "
        "the tower trains; grows linearly from 0 in the first",
    )
    dtype: Dtype = Field(
        default="float32", description="type the linear layers are held in and run in; all else stays float32 (LAVIS)"
    )


class ConnectorSettings(Settings):
    """The bridge. ``kind`` names it in ``models.connectors``; all other keys are options of that kind.

    The options are checked against the kind's own settings class, so adding a connector touches one file.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str = Field(default="mlp", description="linear, mlp, qformer, or a registered name")
    output_scale: float = Field(
        default=1.0,
        gt=0,
        description="the last linear layer's random weights are multiplied by this; T5, whose embeddings are large and "
        "are not normalised on their way up, hears larger image tokens sooner",
    )

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the kind."""
        return dict(self.model_extra or {})


class LanguageModelSettings(PartSource):
    """Any ``AutoModelForCausalLM`` or ``AutoModelForSeq2SeqLM``; which of the two is read from its configuration."""

    tokenizer: str | None = Field(
        default=None, description="folder or hub name of the tokenizer, if not beside the weights"
    )
    tokenizer_legacy: bool | None = Field(
        default=None, description="'legacy' flag of SentencePiece tokenizers, if not default"
    )
    quantize: Literal["8bit", "nf4"] | None = Field(
        default=None,
        description="hold the frozen linear layers, but not embeddings and head, in 8 bits (LLM.int8()) or 4 (QLoRA's "
        "nf4); needs sightbridge[quant]",
    )

    @model_validator(mode="after")
    def _quantized_source(self) -> LanguageModelSettings:
        if self.quantize and self.source is None:
            raise ValueError("'quantize' needs a 'source': a quantised model cannot store its weights, only name them")
        return self


class LoraSettings(Settings):
    """Low-rank adapters beside linear layers of a frozen language model (Hu et al., arXiv 2106.09685)."""

    preset: Literal["lora", "lora_all"] | None = Field(
        default=None,
        description="lora: query and value of every attention (or the layer they share); lora_all: all linear layers "
        "of the blocks; which these are follows from the model's family, see docs/adapters.md",
    )
    targets: list[str] | str | None = Field(
        default=None,
        description="instead of a preset: names of linear layers such as [q_proj, v_proj], or one regular expression "
        "that matches whole names",
    )
    r: int = Field(default=8, ge=1, le=8192, description="rank of the adapters")
    alpha: int = Field(default=16, ge=1, description="what adapters add is multiplied by alpha / r")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="of the adapters' inputs, while they train")

    @model_validator(mode="after")
    def _one_choice(self) -> LoraSettings:
        if (self.preset is None) == (not self.targets):
            raise ValueError("give exactly one of 'preset' (lora, lora_all) and 'targets' (names of linear layers)")
        return self


class ImageSettings(Settings):
    """How a picture becomes pixels. Resizing is Pillow's bicubic, as in every seed system."""

    size: int = Field(default=224, ge=1, le=8192, description="side of the square the tower sees, in pixels")
    fit: Literal["squash", "crop", "pad"] = Field(
        default="squash",
        description="squash: resize to the square, ignoring the aspect ratio (BLIP); crop: resize the shorter side, "
        "centre crop (CLIP); pad: first pad to a square with the mean colour (LLaVA)",
    )
    mean: tuple[float, float, float] = Field(
        default=CLIP_MEAN, description="subtracted per channel, after scaling to 0..1"
    )
    std: tuple[float, float, float] = Field(default=CLIP_STD, description="divided by per channel")
    augment: Literal["none", "crop_flip", "crop"] = Field(
        default="none", description="training only: random resized crop, with or without horizontal flip"
    )
    crop_scale: tuple[float, float] = Field(
        default=(0.5, 1.0), description="share of the area that a random crop keeps"
    )
    mark_anchor: int | None = Field(
        default=None,
        ge=1,
        description="side in pixels of the pictures that the lengths of visual prompts are meant for; null = size, as "
        "in ViP-LLaVA. A larger one makes finer marks",
    )

    @property
    def anchor(self) -> int:
        """``mark_anchor``, or ``size`` in its place."""
        return self.mark_anchor or self.size


class PromptSettings(Settings):
    """Prompt template by name, and the switches that keep a released model's quirks."""

    template: str = Field(description="name of a prompt template, or 'hf' for the tokenizer's own chat template")
    system: str | None = Field(default=None, description="system text in place of the template's own")
    switches: dict[str, bool] = Field(
        default_factory=dict, description="named quirks of released weights, see docs/templates.md"
    )
    max_length: int | None = Field(default=None, ge=1, description="longest row in tokens, image slots included")
    max_answer_length: int | None = Field(
        default=None, ge=1, description="longest row of an encoder-decoder's decoder, EOS included; null = max_length"
    )


class ModelSettings(Settings):
    """A whole model: three parts, how its prompts are written, how its pictures are prepared."""

    vision_tower: VisionTowerSettings
    connector: ConnectorSettings
    language_model: LanguageModelSettings
    prompt: PromptSettings
    image: ImageSettings = ImageSettings()
    lora: LoraSettings | None = Field(default=None, description="adapters of the language model; null = none")
