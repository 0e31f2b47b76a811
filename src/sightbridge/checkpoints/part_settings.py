"""Settings of a model from several files: laid together, each still knowing who gave it, contradictions refused."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sightbridge.config.load import apply_override
from sightbridge.config.model import PartSource
from sightbridge.config.yaml_tree import Given, replace_at
from sightbridge.errors import SettingsError
from sightbridge.models.build import find_config

ON_THE_COMMAND_LINE = "the command line"
GROUPS = {
    "vision_tower": {"vision_tower": ("config", "dtype", "override")},
    "connector": {"vision_tower": ("layers", "class_token"), "connector": None, "prompt": None, "image": None},
    "qformer": {"vision_tower": ("layers", "class_token"), "qformer": None, "text": None, "image": None},
    "language_model": {"language_model": None},
}
"""What is taken of the settings of a file that only gives one part; ``None`` = the whole group."""
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "vocab_size",
    "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "ffn_dim", "num_queries",
    "cross_attention_every", "layers", "input_norm", "kind", "model_type", "projection_size",
)  # fmt: skip
"""Settings that the shapes of weights or their family fix: nobody may say otherwise."""
HEADS = ("num_attention_heads", "num_heads", "n_head", "encoder_attention_heads")
"""What configurations call the number of attention heads, which no shape tells."""
DTYPES = ("float32", "bfloat16", "float16")


def given(value: Any, where: str) -> Given:
    """Plain settings as a tree whose every value was given by ``where``."""
    if isinstance(value, dict):
        return Given({str(key): given(child, where) for key, child in value.items()}, where)
    if isinstance(value, list | tuple):
        return Given([given(child, where) for child in value], where)
    return Given(value, where)


def settings_of_part(settings: dict[str, Any], part: str) -> dict[str, Any]:
    """What a file that is asked for one part alone has to say."""
    chosen = {}
    for group, keys in GROUPS[part].items():
        inside = settings.get(group)
        if inside:
            chosen[group] = inside if keys is None else {key: inside[key] for key in keys if key in inside}
    return chosen


def join(one: Given, other: Given, decided: Collection[str] = (), path: tuple[str, ...] = ()) -> Given:
    """Both trees together.

    Args:
        one: settings that somebody gave.
        other: settings that somebody else gave.
        decided: dotted keys about which the user has the last word anyway.
        path: the key of both, for messages.

    Raises:
        SettingsError: they disagree; it says who says what.
    """
    if isinstance(one.value, dict) and isinstance(other.value, dict):
        together = dict(one.value)
        for key, child in other.value.items():
            together[key] = join(together[key], child, decided, (*path, key)) if key in together else child
        return Given(together, one.where)
    if one.plain() == other.plain() or other.plain() is None or ".".join(path) in decided:
        return one
    if one.plain() is None:
        return other
    error = _contradiction(".".join(path), one, other)
    raise SettingsError(f"{error} If you know which is right, say so: {error.key}=VALUE", error.key)


def lay_override(tree: Given, override: str, notes: list[str]) -> Given:
    """The tree with a ``key=value`` of the user's in it, which wins over all but the shapes of weights."""
    key = override.partition("=")[0].strip()
    changed = apply_override(tree, override, ON_THE_COMMAND_LINE)
    before, after = _find(tree, key), _find(changed, key)
    assert after is not None, "it was just laid in"
    if before is None or before.plain() == after.plain() or before.plain() is None:
        return changed
    fixed = before.where != ON_THE_COMMAND_LINE and key.rpartition(".")[2] in SIZES and "." in key
    if fixed and not key.startswith(("vision_tower.layers", "prompt.", "image.")):
        raise _contradiction(key, before, after)
    notes.append(f"{key}: {after.plain()} as you say, in place of {before.plain()} ({before.where})")
    return changed


def use_weights(tree: Given, part: str, dtype: str) -> Given:
    """Settings of a part whose weights are at hand: its configuration, changed as others ask, in the file's type."""
    group = tree.step(part) or Given({}, tree.where)
    assert isinstance(group.value, dict), "a part's settings are a group"
    inside = dict(group.value)
    inside.pop("source", None)
    override = inside.pop("override", None)
    if override and isinstance(override.value, dict) and "config" in inside:
        for key, value in override.value.items():
            inside["config"] = replace_at(inside["config"], [key], value)
    inside.setdefault("dtype", Given(dtype, group.where))
    return replace_at(tree, [part], Given(inside, group.where))


def use_reference(tree: Given, part: str, reference: str | None, notes: list[str]) -> Given:
    """Settings of a part that is referenced: by a flag, or else as the file itself names it."""
    group = tree.step(part) or Given({}, tree.where)
    assert isinstance(group.value, dict), "a part's settings are a group"
    inside = dict(group.value)
    named = inside.get("source")
    if reference is not None:
        if named is not None and named.plain() not in (None, reference):
            notes.append(f"{part}: {reference} as you say; {named.where} names {named.plain()}")
        inside["source"] = Given(reference, ON_THE_COMMAND_LINE)
    elif named is None or named.plain() is None:
        return tree
    config = inside.pop("config", None)
    found: Any = find_config(PartSource(source=inside["source"].plain()), part)
    if config and isinstance(config.value, dict):
        _check_agrees(config, found, inside["source"], part)
    dtype = str(getattr(found, "dtype", None)).removeprefix("torch.")
    inside.setdefault("dtype", Given(dtype if dtype in DTYPES and part == "language_model" else "float32", group.where))
    return replace_at(tree, [part], Given(inside, group.where))


def _check_agrees(config: Given, found: Any, source: Given, part: str) -> None:
    """Refuse a Hugging Face model of other sizes than those that the file's own configuration asks for."""
    assert isinstance(config.value, dict), "a configuration is a group"
    for key, value in config.value.items():
        other = getattr(found, key, None)
        # Rows of a vocabulary may have been padded, and the tower is only used up to the layers taken.
        if key in SIZES and key not in ("vocab_size", "num_hidden_layers") and other not in (None, value.plain()):
            raise _contradiction(f"{part}.config.{key}", value, Given(other, f"'{source.plain()}'"))


def fill_from_tower(tree: Given, kind: str) -> Given:
    """The size of pictures, if nobody says it: that of the tower. What else pictures need must have been said.

    Raises:
        SettingsError: nobody says which hidden states are read, or how pictures are fitted.
    """
    tower = tree.step("vision_tower")
    assert tower is not None, "a missing tower is told first"
    assert isinstance(tower.value, dict), "a part's settings are a group"
    size = _find(tree, "image.size")
    if size is None:
        chosen = {key: value.plain() for key, value in tower.value.items() if key in PartSource.model_fields}
        found: Any = find_config(PartSource.model_validate(chosen), "vision_tower")
        asked = tower.step("image_size")
        side = asked.plain() if asked else None
        tree = replace_at(tree, ["image", "size"], Given(side or found.image_size, tower.where))
    wanted = {
        "vision_tower.layers": "which hidden states of the tower the connector reads, such as vision_tower.layers=[-2]",
        "image.fit": "how pictures are made square: image.fit=squash (BLIP-2), crop or pad (LLaVA)",
    }
    if kind == "generation":
        wanted["prompt.template"] = "how prompts are written, such as prompt.template=vicuna_v1 (see docs/templates.md)"
    missing = [f"{key}: {what}" for key, what in wanted.items() if _find(tree, key) is None]
    if missing:
        raise SettingsError(
            "none of the files says what the model was trained with. Add to the command:\n  " + "\n  ".join(missing),
            key=missing[0].partition(":")[0],
        )
    return tree


def require_heads(tree: Given) -> None:
    """Refuse to guess the number of attention heads of a tower or language model of no published width."""
    for part in ("vision_tower", "language_model"):
        config = _find(tree, f"{part}.config")
        if config is not None and isinstance(config.value, dict) and not any(key in config.value for key in HEADS):
            raise SettingsError(
                f"{config.where}: no published {part.replace('_', ' ')} has these sizes, so its number of attention "
                f"heads is not known, and no shape tells it. Say it: {part}.config.num_attention_heads=NUMBER",
                key=f"{part}.config.num_attention_heads",
            )
    for group in ("connector", "qformer"):
        options = _find(tree, group)
        if options is None or not isinstance(options.value, dict):
            continue
        is_qformer = group == "qformer" or getattr(options.step("kind"), "value", None) == "qformer"
        if is_qformer and "num_heads" not in options.value:
            raise SettingsError(
                f"{options.where}: no published Q-Former is as wide, so its number of attention heads is not known, "
                f"and no shape tells it. Say it: {group}.num_heads=NUMBER",
                key=f"{group}.num_heads",
            )


def _find(tree: Given, key: str) -> Given | None:
    found: Given | None = tree
    for step in key.split("."):
        found = found and found.step(step)
    return found


def _contradiction(key: str, one: Given, other: Given) -> SettingsError:
    return SettingsError(
        f"{key}: {one.where} says {one.plain()}, but {other.where} says {other.plain()}; these do not belong together.",
        key=key,
    )
