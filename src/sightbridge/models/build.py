"""From settings to a model: find or make the three parts, put them together, freeze what does not train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Blip2VisionModel,
    InstructBlipVisionModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from sightbridge.config.model import (
    ImageSettings,
    LanguageModelSettings,
    ModelSettings,
    PartSource,
    VisionTowerSettings,
)
from sightbridge.errors import CheckpointError, SettingsError, nearest
from sightbridge.models.connectors import build_connector
from sightbridge.models.language_model import LanguageModel, build_with_own_head, check_head, wants_own_head
from sightbridge.models.lora import add_lora
from sightbridge.models.vision_tower import VisionTower, is_unused, resize_positions
from sightbridge.models.vlm import VisionLanguageModel

EMBEDDED = "embedded:"
"""Prefix of a source that is shipped inside the package."""
PARENTS = Path(__file__).parents[1] / "parents"
"""Folder of the shipped parents."""
VISION_CLASSES: dict[str, Any] = {
    "blip_2_vision_model": Blip2VisionModel,
    "instructblip_vision_model": InstructBlipVisionModel,
}
"""Vision models that ``AutoModel`` does not know."""
KEY_MAPPINGS = {"vision_tower": {r"^vision_model\.": ""}}
"""A whole CLIP, SigLIP or BLIP-2 keeps its tower one level deeper."""
EXTRA_CONFIG_KEYS = ("rope_theta", "rope_scaling", "torch_dtype", "decoder_start_token_id")
"""Keys that transformers 5 reads although a fresh configuration does not show them."""


def build_model(settings: ModelSettings, seed: int = 0) -> VisionLanguageModel:
    """Build a model in evaluation mode, on the CPU, every parameter trainable; ``parts.set_trainable`` freezes.

    Args:
        settings: the three parts.
        seed: of random weights. Each part draws from its own stream, so changing one leaves the others alone; the
            caller's random state is not touched.

    Raises:
        SettingsError: an option or a configuration key is wrong.
        CheckpointError: weights were not found, or are not complete.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision_tower = build_vision_tower(settings.vision_tower, settings.image)
        torch.manual_seed(seed + 1)
        language_model = build_language_model(settings.language_model)
        torch.manual_seed(seed + 2)
        connector = build_connector(
            settings.connector, vision_tower.channels, vision_tower.positions, language_model.width
        )
        if settings.lora:
            torch.manual_seed(seed + 3)
            add_lora(language_model, settings.lora)
    return VisionLanguageModel(vision_tower, connector, language_model).eval()


def build_vision_tower(settings: VisionTowerSettings, image: ImageSettings | None = None) -> VisionTower:
    """Load or make the vision model and cut it down to what is used; with ``image`` it takes pictures as bytes too."""
    config = find_config(settings, "vision_tower")
    if config.model_type == "blip_2_vision_model" and "initializer_range" not in (settings.config or {}):
        config.initializer_range = 0.02  # LAVIS' ViT-g; transformers' 1e-10 only suits loading weights over it
    if settings.source is None and settings.image_size is not None:
        config.image_size = settings.image_size
    vision_class = VISION_CLASSES.get(config.model_type, AutoModel)
    model = make_part(settings, config, vision_class, "vision_tower")
    if settings.image_size is not None:
        model = resize_positions(model, settings.image_size)
    tower = VisionTower(model, settings.layers, settings.class_token, settings.drop_path)
    if image is not None:
        tower.pixel_statistics = image.mean, image.std
    return tower.hold_linear_layers_in(getattr(torch, settings.dtype))


def build_language_model(settings: LanguageModelSettings) -> LanguageModel:
    """Load or make the language model; its configuration says whether it is an encoder-decoder."""
    config = find_config(settings, "language_model")
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    language_model = LanguageModel(make_part(settings, config, auto_class, "language_model"))
    language_model.assert_heads_untied()
    check_head(language_model.eval())
    return language_model


def find_config(settings: PartSource, part: str) -> Any:
    """Return the configuration of a part, from its source or from the settings, with every key checked."""
    if settings.source is None:
        return make_config(settings.config or {}, part)
    source = resolve_source(settings.source)
    with telling_what_is_missing(source, part):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if part == "vision_tower":
        config = getattr(config, "vision_config", config)  # a whole CLIP, SigLIP or BLIP-2 has one inside
    check_keys(settings.override, config, f"model.{part}.override")
    for key, value in settings.override.items():
        setattr(config, key, value)
    return config


def make_config(options: dict[str, Any], part: str) -> Any:
    """Make a configuration from the settings; ``model_type`` says of which class."""
    key = f"model.{part}.config"
    options = dict(options)
    model_type = options.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        hint = nearest(str(model_type), list(CONFIG_MAPPING))
        message = f"The configuration needs a 'model_type' that transformers knows, not '{model_type}'.{hint}"
        raise SettingsError(message, key=f"{key}.model_type")
    check_keys(options, CONFIG_MAPPING[model_type](), key)
    try:
        config = CONFIG_MAPPING[model_type](**options)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"transformers refuses the configuration of '{model_type}': {reason}", key=key) from error
    check_heads(config, key)
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id  # as in every released T5
    return config


def check_keys(options: dict[str, Any], config: Any, key: str) -> None:
    """Check that a configuration knows all these keys: transformers would store a misspelt one and ignore it."""
    for name in options:
        if not hasattr(config, name) and name not in EXTRA_CONFIG_KEYS:
            hint = nearest(name, list(config.to_dict()))
            raise SettingsError(f"A '{config.model_type}' configuration has no '{name}'.{hint}", key=f"{key}.{name}")


def check_heads(config: Any, key: str) -> None:
    """Refuse numbers of attention heads that some models of transformers only stumble over when they are built."""
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    has_own_width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    if heads < 1 or (width % heads and not has_own_width):
        raise SettingsError(
            f"A '{config.model_type}' of width {width} cannot have {heads} attention heads; expected a number that "
            f"{width} can be divided by.",
            key=f"{key}.num_attention_heads",
        )


def make_part(settings: PartSource, config: Any, auto_class: Any, part: str) -> Any:
    """Load a part's weights, or make it with random ones, in the type the settings ask for."""
    # A tower's linear layers are cast when it is built: what stays in float32 must not have been rounded before.
    dtype = torch.float32 if part == "vision_tower" else getattr(torch, settings.dtype)
    if settings.source is None:
        if wants_own_head(config):
            return build_with_own_head(auto_class, config, dtype=dtype)
        build = getattr(auto_class, "from_config", None) or auto_class._from_config
        return build(config, dtype=dtype)
    source = resolve_source(settings.source)
    with telling_what_is_missing(source, part), quiet_transformers():
        model, report = auto_class.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            key_mapping=KEY_MAPPINGS.get(part),
            trust_remote_code=False,  # left open, transformers asks on the terminal, and a pipe may answer "y"
        )
    layers = settings.layers if isinstance(settings, VisionTowerSettings) else "output"
    missing = sorted(key for key in report["missing_keys"] if not is_unused(key, config, layers))
    if missing:
        raise CheckpointError(
            f"'{source}' lacks {len(missing)} weights of the {part.replace('_', ' ')} ({config.model_type}), "
            f"such as '{missing[0]}'; they would stay random. Is it the right folder?"
        )
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' report of weights a file has too many (a text tower), and its advice to tie T5's head.

    Its progress bars too: they would go to stderr even if nobody looks, and several per model.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def telling_what_is_missing(source: str, part: str) -> Iterator[None]:
    """Turn transformers' long "not found" errors into one line that says what was looked for where."""
    try:
        yield
    except (OSError, ValueError, StrictDataclassError) as error:
        if Path(source).is_dir():
            message = f"The folder '{source}' does not hold a Hugging Face model ({first_line(error)})."
        elif HF_HUB_OFFLINE:
            message = (
                f"'{source}' is no folder here and is not in the cache {HF_HUB_CACHE}; HF_HUB_OFFLINE is set, so "
                "nothing was fetched. Give a folder, or fetch the model first."
            )
        else:
            message = (
                f"'{source}' is no folder here and could not be fetched from the Hugging Face hub "
                f"({first_line(error)}). Check the name and the network, or give a folder."
            )
        raise CheckpointError(f"Weights of the {part.replace('_', ' ')}: {message}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop."""
    return str(error).strip().split("\n")[0].rstrip(".")


def resolve_source(source: str) -> str:
    """Return where a source lies: 'embedded:NAME' is a parent shipped in the package, anything else stays as it is.

    Raises:
        CheckpointError: there is no parent of that name.
    """
    if not source.startswith(EMBEDDED):
        return source
    name = source.removeprefix(EMBEDDED)
    known = sorted(folder.name for folder in PARENTS.iterdir() if (folder / "config.json").is_file())
    if name not in known:
        listed = ", ".join(known) or "none"
        raise CheckpointError(f"The package has no parent '{name}'; it has: {listed}.{nearest(name, known)}")
    return str(PARENTS / name)


class PartSummary(NamedTuple):
    """One line of what a model consists of: numbers of parameters, all and trained."""

    part: str
    what: str
    parameters: int
    trained: int


def part_summary(model: nn.Module) -> list[PartSummary]:
    """Say of each part what it is, how many parameters it has and how many of them train."""
    summary = []
    for name, part in model.named_children():
        what = type(getattr(part, "model", part)).__name__
        parameters = list(part.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        summary.append(PartSummary(name, what, sum(parameter.numel() for parameter in parameters), trained))
    return summary
