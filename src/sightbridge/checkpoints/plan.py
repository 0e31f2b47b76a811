"""What is to become of files: which of them gives which part, and the settings of the model they make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sightbridge.checkpoints.key_map import JoinedWeights
from sightbridge.checkpoints.part_settings import (
    fill_from_tower,
    given,
    join,
    lay_override,
    require_heads,
    settings_of_part,
    use_reference,
    use_weights,
)
from sightbridge.checkpoints.sources.base import Weights
from sightbridge.checkpoints.supply import (
    FLAGS,
    PREFIXES,
    WORDS,
    Supply,
    as_second_stage,
    open_several,
    part_of,
    read_any,
)
from sightbridge.checkpoints.usual import bridge_widths, usual
from sightbridge.config.model import ModelSettings
from sightbridge.config.problems import validate
from sightbridge.config.qformer_recipe import QFormerModelSettings
from sightbridge.config.yaml_tree import Given
from sightbridge.errors import CheckpointError, SettingsError
from sightbridge.models.kinds import AnyModelSettings

BRIDGES = {"generation": "connector", "qformer": "qformer"}
"""What the bridge is called in each kind of model."""
SETTINGS = {"generation": ModelSettings, "qformer": QFormerModelSettings}


@dataclass
class Flags:
    """What the user named for each part, in order, beside the file that is converted."""

    vision: Sequence[str] = ()
    bridge: Sequence[str] = ()
    language_model: Sequence[str] = ()
    later_wins: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that is known before a weight is read.

    Attributes:
        kind: of model.
        settings: of the model. A part whose weights are at hand has a configuration, one that is referenced a source.
        weights: of each part that is at hand, under the names of the part's own modules.
        adapter: weights of adapters under the names of ``peft``, if there are some.
        tokenizer: folders or names that may have the tokenizer, the likeliest first.
        supplies: what everything comes from.
        notes: for the report.
    """

    kind: str
    settings: AnyModelSettings
    weights: dict[str, Weights]
    adapter: Weights | None
    tokenizer: list[str]
    supplies: list[Supply]
    notes: list[str] = field(default_factory=list)


def make_plan(source: str | None, flags: Flags, overrides: Sequence[str] = ()) -> Plan:
    """Find out what is at hand and what is missing, without reading a weight.

    Args:
        source: file or folder to convert; ``None`` to put a model together from ``flags`` alone.
        flags: what gives the parts that ``source`` lacks.
        overrides: settings as ``key=value``.

    Raises:
        CheckpointError: a file is not there or of no known format, a part is missing or given twice.
        SettingsError: settings are missing, wrong, or contradict each other.
    """
    overrides = [override.removeprefix("model.") for override in overrides]  # as recipes and messages call settings
    main = Supply(source, read_any(Path(source).expanduser())) if source else None
    bridge = _open(flags.bridge, "connector", flags.later_wins, main)
    if main and main.found and main.found.partial:
        bridge = _complete(main, bridge)
    with_bridge = bridge or main
    kind = with_bridge.found.kind if with_bridge and with_bridge.found else "generation"
    part_names = ["vision_tower", BRIDGES[kind]] + (["language_model"] if kind == "generation" else [])
    if kind == "qformer" and flags.language_model:
        assert with_bridge is not None
        raise CheckpointError(
            f"{with_bridge.named}: holds BLIP-2's first stage, in which no language model has a place. Convert it "
            "without --language-model, and start a second stage from it: training.init_from=FOLDER."
        )
    by_part: dict[str, Supply | None] = {
        "vision_tower": _open(flags.vision, "vision_tower", flags.later_wins, main),
        BRIDGES[kind]: bridge,
    }
    if kind == "generation":
        by_part["language_model"] = _open(flags.language_model, "language_model", flags.later_wins, main)
    givers = {part: by_part[part] or (main if main and main.gives(part) else None) for part in part_names}
    tree, notes = _settle(main, givers, by_part, kind, overrides)
    settings = validate(SETTINGS[kind], tree)
    weights = {
        part: part_of(giver.found.weights, PREFIXES[part]) for part, giver in givers.items() if giver and giver.found
    }
    supplies: list[Supply] = []
    for supply in (main, *givers.values()):
        if supply is not None and not any(supply is other for other in supplies):
            supplies.append(supply)
    adapter = _adapter(main)
    if adapter is None and getattr(settings, "lora", None):
        raise SettingsError("no file holds adapters, so there is nothing that lora can describe", key="lora")
    return Plan(kind, settings, weights, adapter, _tokenizers(main, givers, settings), supplies, notes)


def _open(named: Sequence[str], part: str, later_wins: bool, main: Supply | None) -> Supply | None:
    """What a flag names, if it was given; never in place of what the converted file has itself."""
    if not named:
        return None
    completes = part == "connector" and main is not None and main.found is not None and main.found.partial
    if main and main.gives(part) and not completes:
        raise CheckpointError(
            f"{main.named} holds a {WORDS[part]} of its own, so {FLAGS[part]} is not needed. To put parts of several "
            "files together, name each of them: sightbridge merge-weights OUT --vision ... --bridge ..."
        )
    return open_several(list(named), part, later_wins)


def _complete(main: Supply, rest: Supply | None) -> Supply:
    """The bridge of ``main``, which is only what trained of it, with the rest of what the training started from.

    What trained wins over what it was before; of the rest only the connector counts, as it led elsewhere.
    """
    assert main.found is not None, "only what was opened can be partial"
    if rest is None or rest.found is None:
        raise CheckpointError(
            f"{main.named}: {main.found.what}. That is only what was trained of the connector; say where the rest is, "
            "the file that its training started from: --bridge FILE."
        )
    start = as_second_stage(rest.found)
    views = [part_of(found.weights, PREFIXES["connector"], keep=True) for found in (main.found, start)]
    before, trained = (found.settings.get("connector", {}) for found in (start, main.found))
    settings = {"connector": before | trained}
    joined = replace(rest.found, weights=JoinedWeights(*views, first_wins=True), settings=settings, kind="generation")
    return Supply(f"{main.named} and {rest.named}", joined)


def _settle(
    main: Supply | None,
    givers: dict[str, Supply | None],
    by_flag: dict[str, Supply | None],
    kind: str,
    overrides: Sequence[str],
) -> tuple[Given, list[str]]:
    """Settings from all that is given, and what is to be told of them."""
    tree = Given({}, "the settings")
    decided = {override.partition("=")[0].strip() for override in overrides}
    notes = list(main.found.notes) if main and main.found else []
    if main and main.found:
        tree = join(tree, given(main.found.settings, main.named), decided)
    for part, supply in by_flag.items():
        if supply and supply.found:
            notes += supply.found.notes
            tree = join(tree, given(settings_of_part(supply.found.settings, part), supply.named), decided)
    for override in overrides:
        tree = lay_override(tree, override, notes)
    for part, giver in givers.items():
        if part not in ("vision_tower", "language_model"):
            if giver is None:
                raise CheckpointError(_missing_bridge(main, givers))
            continue
        if giver and giver.found:
            tree = use_weights(tree, part, dominant_dtype(giver.found.weights, PREFIXES[part]))
        else:
            tree = use_reference(tree, part, giver.reference if giver else None, notes)
            if tree.step(part) is None or not _source(tree, part):
                raise CheckpointError(_missing(part, main, givers, kind))
    require_heads(tree)
    tree = fill_from_tower(tree, kind)
    return tree, list(dict.fromkeys(notes))  # files of one format often say the same


def _source(tree: Given, part: str) -> Any:
    group = tree.step(part)
    source = group.step("source") if group else None
    return source.plain() if source else None


def _adapter(supply: Supply | None) -> Weights | None:
    if supply is None or supply.found is None:
        return None
    weights = part_of(supply.found.weights, "adapter.")
    return weights if weights.infos else None


def _tokenizers(main: Supply | None, givers: dict[str, Supply | None], settings: AnyModelSettings) -> list[str]:
    """Where the tokenizer may be: what settings name, then beside the file, then beside the language model."""
    if isinstance(settings, QFormerModelSettings):
        giver = givers["qformer"]
        assert giver is not None, "a missing bridge is told first"
        assert giver.found is not None, "a bridge is never referenced"
        beside = giver.found.tokenizer
        is_usual = settings.text.tokenizer == giver.found.settings.get("text", {}).get("tokenizer")
        return [str(beside) if beside and is_usual else settings.text.tokenizer]
    named = settings.language_model.tokenizer
    giver = givers["language_model"]
    folders = [supply.found.tokenizer for supply in (main, giver) if supply and supply.found]
    places = [named, *folders, settings.language_model.source]
    return [str(place) for place in places if place]


def dominant_dtype(weights: Weights, prefix: str) -> str:
    """Name of the type that most of a part is stored in."""
    sizes: dict[torch.dtype, int] = {}
    for name, info in weights.infos.items():
        if name.startswith(prefix) and info.dtype.is_floating_point:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.bytes
    if not sizes:
        raise CheckpointError(f"{weights.path}: holds no numbers under {prefix}*, only integers.")
    return str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")


def _missing_bridge(main: Supply | None, givers: dict[str, Supply | None]) -> str:
    where = f"{main.named}: {main.found.what}" if main and main.found else "nothing given so far"
    return f"{where}: there is no connector to put between tower and language model; say where it is: --bridge FILE."


def _missing(part: str, main: Supply | None, givers: dict[str, Supply | None], kind: str) -> str:
    """Which flag to give, and what usually belongs there, if the bridge's shape tells."""
    bridge = givers[BRIDGES[kind]]
    assert bridge is not None, "a missing bridge is told first"
    assert bridge.found is not None, "a bridge is never referenced"
    read, made = bridge_widths(bridge.found.weights)
    likely = usual(part, bridge.found.weights)
    if part == "language_model":
        width, says = made, f"The connector leads to a language model of width {made}"
    else:
        width, says = read, f"The {WORDS[BRIDGES[kind]]} reads features of width {read}"
    told = f" {says}{f': {likely}' if likely else ''}." if width else ""
    where = f"{main.named} holds no {WORDS[part]} ({main.found.what})" if main and main.found else f"no {WORDS[part]}"
    return f"{where}; say where it is: {FLAGS[part]} NAME_OR_PATH.{told}"
