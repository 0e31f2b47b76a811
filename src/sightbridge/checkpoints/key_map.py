"""Key maps: which name and shape a weight has in a foreign layout, and which in ours.

A map is a table in ``key_maps/``, a line for each rule, columns divided by tabs::

    # theirs                                  ours                                        operation
    ln_vision.{x}                             bridge.input_norm.{x}
    blocks.{n}.attn.q_bias + blocks.{n}.attn.v_bias  vision_tower.encoder.layers.{n}.self_attn.qkv.bias  qkv_bias
    head.{x}                                                                              drop

Placeholders are those of ``key_pattern``, operations those of ``key_ops`` (``same`` if none is given) and ``drop`` for
what the other side has no place for. One table serves both directions, so no name may fit two rules: that is checked
when a table is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations

import torch
from torch import Tensor

from sightbridge.checkpoints.key_ops import OPS, Tensors
from sightbridge.checkpoints.key_pattern import PLACEHOLDERS, Pattern, overlap
from sightbridge.checkpoints.sources.base import TensorInfo, Weights
from sightbridge.errors import CheckpointError, nearest

DROP = "drop"
Values = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Rule:
    """One line of a table."""

    theirs: tuple[Pattern, ...]
    ours: tuple[Pattern, ...]
    op: str


@dataclass(frozen=True)
class Side:
    """A rule seen from one side: what is read, what is made of it."""

    source: tuple[Pattern, ...]
    target: tuple[Pattern, ...]
    change: Callable[[Tensors], Tensors] | None
    optional: bool = False

    @classmethod
    def of(cls, rule: Rule, to_ours: bool) -> Side:
        """The rule in one of its directions; ``change`` is ``None`` if it drops what it reads."""
        source, target = (rule.theirs, rule.ours) if to_ours else (rule.ours, rule.theirs)
        if rule.op == DROP:
            return cls(source, target, None)
        op = OPS[rule.op]
        return cls(source, target, op.to_ours if to_ours else op.to_theirs, op.optional)


class KeyMap:
    """The rules between one foreign layout and ours."""

    def __init__(self, rules: list[Rule], name: str = "key map") -> None:
        self.name = name
        self.rules = rules
        _check_unambiguous(name, self._sides(to_ours=True))
        _check_unambiguous(name, self._sides(to_ours=False))

    @classmethod
    def named(cls, *names: str) -> KeyMap:
        """The map of a table in ``key_maps/``, or of several together; an unknown name is an error with the known."""
        return _read_named(names)

    @classmethod
    def parse(cls, text: str, name: str = "key map") -> KeyMap:
        """The map of a table's text; raises ``CheckpointError`` naming the line if one cannot be understood."""
        return cls(_parse(text, name), name)

    def to_ours(self, weights: Weights) -> MappedWeights:
        """The foreign ``weights`` under our names, read when they are asked for."""
        return MappedWeights(weights, self._sides(to_ours=True), self.name)

    def to_theirs(self, weights: Weights) -> MappedWeights:
        """Our ``weights`` under the names of the foreign layout."""
        return MappedWeights(weights, self._sides(to_ours=False), self.name)

    def _sides(self, to_ours: bool) -> list[Side]:
        used = [rule for rule in self.rules if to_ours or rule.op == DROP or OPS[rule.op].back]
        return [side for side in (Side.of(rule, to_ours) for rule in used) if side.source]


@dataclass(frozen=True)
class _Recipe:
    """How one tensor is made: read ``sources``, change them, take the one at ``index``."""

    sources: tuple[str, ...]
    change: Callable[[Tensors], Tensors]
    index: int


class MappedWeights(Weights):
    """Weights under other names, shapes among them, made when they are read.

    Attributes:
        dropped: names of the source that a rule drops.
        unexpected: names of the source that no rule knows, or whose companions of one rule are missing.
    """

    def __init__(self, source: Weights, sides: list[Side], name: str) -> None:
        super().__init__(source.path, source.kind, {}, source.config, source.extra)
        self.source = source
        self._recipes: dict[str, _Recipe] = {}
        dropped: list[str] = []
        unexpected: list[str] = []
        find = _finder(sides)
        for name_there in source.infos:
            side, values = find(name_there)
            if side is None:
                unexpected.append(name_there)
            elif side.change is None:
                dropped.append(name_there)
            elif not self._add(name_there, side, values, name):
                unexpected.append(name_there)
        self.dropped, self.unexpected = tuple(dropped), tuple(unexpected)

    def _add(self, name: str, side: Side, values: Values, map_name: str) -> bool:
        """Note how the tensors that ``name`` is needed for are made; whether its companions are all there."""
        sources = tuple(pattern.fill(values) for pattern in side.source)
        if side.optional and sources[0] in self.source.infos:
            sources = tuple(source for source in sources if source in self.source.infos)
        if not all(source in self.source.infos for source in sources):
            return False
        if name != sources[0]:
            return True  # the first of the companions stands for all
        assert side.change is not None
        infos = [self.source.infos[source] for source in sources]
        made = _change_shapes(side.change, infos, f"{self.path}: '{name}'")
        for index, (pattern, tensor) in enumerate(zip(side.target, made, strict=True)):
            target = pattern.fill(values)
            if target in self.infos:
                raise CheckpointError(
                    f"{self.path}: '{self._recipes[target].sources[0]}' and '{name}' are both '{target}' ({map_name})."
                )
            self.infos[target] = TensorInfo(tuple(tensor.shape), tensor.dtype, infos[0].file)
            self._recipes[target] = _Recipe(sources, side.change, index)
        return True

    def read(self, name: str) -> Tensor:
        """Read what the tensor is made of, and make it."""
        if name not in self._recipes:
            raise self.unknown(name)
        recipe = self._recipes[name]
        try:
            return recipe.change([self.source.read(source) for source in recipe.sources])[recipe.index]
        except CheckpointError as error:
            if str(error).startswith(str(self.path)):
                raise
            raise CheckpointError(f"{self.path}: {recipe.sources[0]}: {error}") from error

    def close(self) -> None:
        """Close what is read from."""
        self.source.close()


def _change_shapes(change: Callable[[Tensors], Tensors], infos: list[TensorInfo], where: str) -> Tensors:
    """What an operation makes of tensors of these shapes and types, on the ``meta`` device."""
    try:
        return change([torch.empty(info.shape, dtype=info.dtype, device="meta") for info in infos])
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except RuntimeError as error:
        shapes = ", ".join(str(info.shape) for info in infos)
        raise CheckpointError(f"{where} has a shape that no such weight has: {shapes}.") from error


class JoinedWeights(Weights):
    """Several weights as one: a file and what supplies the parts it lacks.

    Args:
        parts: in order.
        first_wins: of a name that several have take the first; otherwise that is an error that says where both are.
    """

    def __init__(self, *parts: Weights, first_wins: bool = False) -> None:
        assert parts, "nothing to join"
        first = parts[0]
        super().__init__(first.path, first.kind, {}, first.config, first.extra)
        self._parts = parts
        self._owner: dict[str, Weights] = {}
        doubled: dict[str, tuple[Weights, Weights]] = {}
        for part in parts:
            for name, info in part.infos.items():
                if name in self._owner:
                    doubled[name] = (self._owner[name], part)
                else:
                    self.infos[name], self._owner[name] = info, part
        if doubled and not first_wins:
            raise CheckpointError(_doubled_message(doubled))

    def read(self, name: str) -> Tensor:
        """Read it from the one that has it."""
        if name not in self._owner:
            raise self.unknown(name)
        return self._owner[name].read(name)

    def close(self) -> None:
        """Close all."""
        for part in self._parts:
            part.close()


def _doubled_message(doubled: dict[str, tuple[Weights, Weights]]) -> str:
    name, (one, other) = next(iter(doubled.items()))
    more = f" (and {len(doubled) - 1} more weights)" if len(doubled) > 1 else ""
    return f"'{name}'{more} is in {one.path} and in {other.path}; give every part of the model once."


@cache
def _read_named(names: tuple[str, ...]) -> KeyMap:
    folder = files("sightbridge.checkpoints") / "key_maps"
    rules: list[Rule] = []
    for name in names:
        table = folder / f"{name}.tsv"
        if not table.is_file():
            known = sorted(entry.name.removesuffix(".tsv") for entry in folder.iterdir() if entry.name.endswith(".tsv"))
            raise CheckpointError(f"Unknown key map '{name}'; known: {', '.join(known)}.{nearest(name, known)}")
        rules += _parse(table.read_text("utf-8"), f"{name}.tsv")
    return KeyMap(rules, " + ".join(names))


def _parse(text: str, name: str) -> list[Rule]:
    return [_parse_line(line, f"{name}, line {n}") for n, line in enumerate(text.splitlines(), 1) if _is_rule(line)]


def _is_rule(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _parse_line(line: str, where: str) -> Rule:
    columns = [column.strip() for column in line.split("\t") if column.strip()]
    known = [*OPS, DROP]
    op = columns.pop() if columns[-1] in known else "same"
    if op == DROP:  # one column says which; on our side alone it begins with a tab
        if len(columns) != 1:
            raise CheckpointError(f"{where}: a rule that drops names one side only.")
        dropped = _patterns(columns[0], where)
        return Rule((), dropped, DROP) if line.startswith("\t") else Rule(dropped, (), DROP)
    if len(columns) != 2:
        raise CheckpointError(f"{where}: expected theirs, ours and one of {', '.join(known)}, divided by tabs.")
    theirs, ours = _patterns(columns[0], where), _patterns(columns[1], where)
    if (len(theirs), len(ours)) != (OPS[op].theirs, OPS[op].ours):
        raise CheckpointError(f"{where}: '{op}' takes {OPS[op].theirs} names of theirs and {OPS[op].ours} of ours.")
    if len({pattern.placeholders for pattern in theirs + ours}) > 1:
        raise CheckpointError(f"{where}: the names have different placeholders, so none follows from the other.")
    return Rule(theirs, ours, op)


def _patterns(column: str, where: str) -> tuple[Pattern, ...]:
    patterns = tuple(Pattern(text.strip()) for text in column.split(" + "))
    for pattern in patterns:
        if pattern.unknown:
            raise CheckpointError(
                f"{where}: unknown placeholder '{pattern.unknown}'; known: {', '.join(PLACEHOLDERS)}."
            )
    return patterns


def _check_unambiguous(name: str, sides: list[Side]) -> None:
    """Raise ``CheckpointError`` if some name fits two rules: only the first would ever be used."""
    for one, other in combinations([pattern for side in sides for pattern in side.source], 2):
        if overlap(one, other):
            raise CheckpointError(f"{name}: some names fit both '{one.text}' and '{other.text}'.")


def _finder(sides: list[Side]) -> Callable[[str], tuple[Side | None, Values]]:
    """A function from a name to its rule and what the placeholders stand for in it."""
    patterns = [(pattern, side) for side in sides for pattern in side.source]

    def find(name: str) -> tuple[Side | None, Values]:
        matches: Iterator[tuple[Side, Values | None]] = ((side, pattern.match(name)) for pattern, side in patterns)
        return next(((side, values) for side, values in matches if values is not None), (None, ()))

    return find
