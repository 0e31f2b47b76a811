"""The engine behind all key maps, and every table in the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sightbridge.checkpoints.key_map import JoinedWeights, KeyMap, Rule
from sightbridge.checkpoints.key_ops import OPS
from sightbridge.checkpoints.key_pattern import PLACEHOLDERS, Pattern, overlap
from sightbridge.checkpoints.sources.weights import Weights
from sightbridge.errors import CheckpointError

TABLES = sorted(
    entry.name.removesuffix(".tsv")
    for entry in (files("sightbridge.checkpoints") / "key_maps").iterdir()
    if entry.name.endswith(".tsv")
)
TABLE = """# theirs, ours, operation
blocks.{n}.mlp.{x}\ttower.layers.{n}.fc.{x}
blocks.{n}.attn.q_bias + blocks.{n}.attn.v_bias\ttower.layers.{n}.qkv.bias\tqkv_bias
llm.c_attn.weight\tlm.q.weight + lm.k.weight + lm.v.weight\tsplit3
fc.weight\tlm.fc.weight\ttranspose
old.{x}\tnew.{x}\tread
current.{x}\tnew.{x}
head.{*}\t\tdrop
\tours.temperature\tdrop
"""


def weights(**tensors: torch.Tensor) -> Weights:
    return Weights.of({name.replace("__", "."): tensor for name, tensor in tensors.items()})


def map_of(text: str = TABLE) -> KeyMap:
    return KeyMap.parse(text, "test")


def test_operations_change_names_values_and_the_shapes_told_beforehand() -> None:
    q, v = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0])
    c_attn, fc = torch.arange(12.0).reshape(6, 2), torch.arange(6.0).reshape(2, 3)
    theirs = {"blocks.0.mlp.weight": fc, "blocks.0.attn.q_bias": q, "blocks.0.attn.v_bias": v}
    theirs |= {"llm.c_attn.weight": c_attn, "fc.weight": fc, "head.a.b": q, "surprise": q}

    ours = map_of().to_ours(Weights.of(theirs))

    assert ours.read("tower.layers.0.qkv.bias").tolist() == [1, 2, 0, 0, 5, 6]
    assert torch.equal(ours.read("lm.k.weight"), c_attn[2:4])
    assert torch.equal(ours.read("lm.fc.weight"), fc.T)
    assert ours.read("lm.fc.weight").is_contiguous()
    assert (ours.dropped, ours.unexpected) == (("head.a.b",), ("surprise",))
    for name, info in ours.infos.items():
        read = ours.read(name)
        assert (tuple(read.shape), read.dtype) == (info.shape, info.dtype)
    back = map_of().to_theirs(ours)
    assert {name: back.read(name).tolist() for name in back.infos} == {
        name: tensor.tolist() for name, tensor in theirs.items() if name not in ("head.a.b", "surprise")
    }


def test_old_spellings_are_read_and_never_written() -> None:
    ours = map_of().to_ours(weights(old__bias=torch.ones(2)))
    assert list(ours.infos) == ["new.bias"]
    assert list(map_of().to_theirs(ours).infos) == ["current.bias"]


def test_what_the_other_side_has_no_place_for_is_named_not_lost() -> None:
    back = map_of().to_theirs(weights(ours__temperature=torch.ones(()), lm__fc__weight=torch.ones(2, 2)))
    assert (back.dropped, back.unexpected, list(back.infos)) == (("ours.temperature",), (), ["fc.weight"])


def test_half_of_a_pair_is_unexpected_whichever_half_it_is() -> None:
    for half in ("q", "v"):
        ours = map_of().to_ours(Weights.of({f"blocks.3.attn.{half}_bias": torch.ones(2)}))
        assert ours.unexpected == (f"blocks.3.attn.{half}_bias",)
        assert not ours.infos


def test_a_bias_of_keys_that_is_not_zero_has_no_place_in_the_pair() -> None:
    back = map_of().to_theirs(Weights.of({"tower.layers.0.qkv.bias": torch.ones(6)}, path="some/file"))
    with pytest.raises(CheckpointError, match=r"some/file: tower\.layers\.0\.qkv\.bias: the bias of its keys"):
        back.read("blocks.0.attn.q_bias")


def test_a_shape_that_cannot_be_is_found_before_anything_is_read() -> None:
    with pytest.raises(CheckpointError, match=r"memory: 'llm.c_attn.weight': its shape \(7, 2\) cannot be split"):
        map_of().to_ours(Weights.of({"llm.c_attn.weight": torch.ones(7, 2)}))
    with pytest.raises(CheckpointError, match=r"'fc.weight' has a shape that no such weight has: \(1, 2, 3\)"):
        map_of().to_ours(Weights.of({"fc.weight": torch.ones(1, 2, 3)}))


def test_two_spellings_of_one_weight_in_one_file_are_an_error_with_both() -> None:
    with pytest.raises(CheckpointError, match=r"'old.bias' and 'current.bias' are both 'new.bias' \(test\)"):
        map_of().to_ours(weights(old__bias=torch.ones(2), current__bias=torch.ones(2)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a.{n}\tb.{n}\na.1\tc", r"both 'a.\{n\}' and 'a.1'"),
        ("a.{*}\tb.{*}\na.x.{x}\tc.{x}", "some names fit both"),
        ("a\tb.{n}", "different placeholders"),
        ("a\tc\nb\tc", "some names fit both 'c' and 'c'"),
        ("a.{k}\tb.{k}", "line 1: unknown placeholder '{k}'"),
        ("a\tb\tturn", "line 1: expected theirs, ours and one of"),
        ("a\tb\tqkv_bias", "'qkv_bias' takes 2 names of theirs and 1 of ours"),
        ("a\tb\tdrop", "names one side only"),
        ("# comment\n\nlonely", "line 3"),
    ],
)
def test_a_table_that_cannot_be_followed_is_refused(table: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        map_of(table)


def test_numbers_are_written_in_one_way_only() -> None:
    ours = map_of("a.{n}\tb.{n}").to_ours(Weights.of({"a.01": torch.ones(1), "a.10": torch.ones(1)}))
    assert (list(ours.infos), ours.unexpected) == (["b.10"], ("a.01",))


def test_an_unknown_table_is_told_with_the_nearest_known() -> None:
    with pytest.raises(CheckpointError, match="Did you mean 'lavis'"):
        KeyMap.named("lawis")


def test_joined_weights_say_where_a_name_is_twice() -> None:
    one = Weights.of({"x": torch.ones(1), "y": torch.ones(1)}, path="one.pth")
    two = Weights.of({"y": torch.zeros(1), "z": torch.zeros(1)}, path="two.pth")
    with pytest.raises(CheckpointError, match=r"'y' is in one.pth and in two.pth"):
        JoinedWeights(one, two)
    joined = JoinedWeights(one, two, first_wins=True)
    assert [joined.read(name).item() for name in "xyz"] == [1, 1, 0]


names = st.text(st.sampled_from("ab1."), min_size=1, max_size=5)
patterns = st.lists(st.sampled_from(["a", "b", "1", ".", "{n}", "{x}", "{*}"]), min_size=1, max_size=5).map("".join)


@given(patterns, patterns, st.data())
def test_patterns_overlap_exactly_if_one_name_fits_both(one: str, other: str, data: st.DataObject) -> None:
    first, second = Pattern(one), Pattern(other)
    name = data.draw(name_of(first))
    if second.match(name) is not None:
        assert overlap(first, second)
    assert overlap(first, first)
    assert overlap(first, second) == overlap(second, first)
    if "{" not in one + other:
        assert overlap(first, second) == (one == other)


def test_patterns_that_share_no_name_do_not_overlap() -> None:
    for one, other in [("a.{n}.x", "a.{n}.y"), ("a{n}", "ab"), ("{*}.q", "{*}.v"), ("a.{x}", "a.scale")]:
        assert not overlap(Pattern(one), Pattern(other))


def name_of(pattern: Pattern) -> st.SearchStrategy[str]:
    """Names that fit a pattern."""
    fills = {
        "{n}": st.integers(0, 120).map(str),
        "{x}": st.sampled_from(["weight", "bias"]),
        "{*}": st.from_regex(r"[a-z]{1,3}(\.[0-9]{1,2})?(\.[a-z]{1,3})?", fullmatch=True),
    }
    return st.tuples(*(fills.get(piece, st.just(piece)) for piece in pattern.pieces)).map("".join)


def values_of(rule: Rule, data: st.DataObject) -> tuple[tuple[str, str], ...]:
    found = rule.theirs[0].match(data.draw(name_of(rule.theirs[0])))
    assert found is not None
    return found


@pytest.mark.parametrize("table", TABLES)
@settings(max_examples=10)
@given(st.data())
def test_every_table_leads_there_and_back_bit_equal(table: str, data: st.DataObject) -> None:
    key_map = KeyMap.named(table)
    theirs: dict[str, torch.Tensor] = {}
    for rule in key_map.rules:
        if rule.op in OPS and rule.theirs and OPS[rule.op].back:
            values = values_of(rule, data)
            theirs |= tensors_for(rule.op, [pattern.fill(values) for pattern in rule.theirs])

    ours = key_map.to_ours(Weights.of(theirs))
    back = key_map.to_theirs(ours)

    assert not ours.unexpected
    assert not back.unexpected
    assert back.infos.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(back.read(name), tensor), name


def tensors_for(op: str, names: list[str]) -> dict[str, torch.Tensor]:
    shape = {"qkv_bias": (4,), "number": (1,)}.get(op, (6, 2))
    tensors = {name: torch.randn(shape) for name in names}
    return dict.fromkeys(names, tensors[names[0]]) if op == "tied" else tensors


def test_tables_are_shipped_and_placeholders_documented() -> None:
    assert TABLES
    assert set(PLACEHOLDERS) == {"{n}", "{x}", "{*}"}
    assert (Path(__file__).parents[2] / "src/sightbridge/checkpoints/key_maps").is_dir()
