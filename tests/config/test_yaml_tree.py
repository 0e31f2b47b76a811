"""What a YAML scalar means, and what is refused."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sightbridge.config.load import _Dumper
from sightbridge.config.yaml_tree import MAX_BYTES, Given, merge, read_yaml, replace_at
from sightbridge.errors import SettingsError


def read(text: str) -> Given:
    tree = read_yaml(text, lambda line: f"x.yaml:{line}")
    assert tree is not None
    return tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("-1_000", -1000),
        ("010", 10),
        ("0x1F", 31),
        ("~", None),
        ("null", None),
        ("True", True),
        ("no", "no"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("1e", "1e"),
        ("'1e-4'", "1e-4"),
        ("!!str 12", "12"),
        ("[1, [a], {b: null}]", [1, ["a"], {"b": None}]),
        ("{0: a, null: b}", {"0": "a", "null": "b"}),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    plain = read(text).plain()
    assert plain == value
    assert type(plain) is type(value)


def test_nan_is_read() -> None:
    assert math.isnan(read(".nan").plain())


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_document_is_nothing(text: str) -> None:
    tree = read_yaml(text, str)
    assert tree is None or tree.plain() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: 'a' is given twice, first at x.yaml:1"),
        ("a: 1\nb: [1, 2\n", "x.yaml:3: not valid YAML"),
        ("a: 1\nb: !!python/object:os.system ls\n", "x.yaml:2: the tag"),
        ("a: !foo {b: 1}\n", "x.yaml:1: the tag '!foo'"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "x.yaml:3: a key must be a name"),
        ("[a]: 1\n", "x.yaml:1: a key must be a name"),
        ("a: &x [*x]\n", "nested too deeply"),
        ("[" * 600, "nested too deeply"),
        ("a: 1\nb: \x07\n", "x.yaml:2: the character U+0007"),
        ("a: 1\n---\nb: 1\n", "expected a single document"),
        ("x" * (MAX_BYTES + 1), "larger than 256 KiB"),
        ("a: !!int x\n", "x.yaml:1: cannot read 'x' as a number"),
        ("9" * 5000, "as a number"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(text)
    assert message in str(caught.value)


def test_aliases_cannot_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(SettingsError, match="more than 20000 values"):
        read("\n".join(lines))


def test_every_value_knows_its_line() -> None:
    tree = read("a:\n  b: 1\n  c:\n    - x\n    - y\n")
    assert tree.value["a"].where == "x.yaml:1"  # type: ignore[index, union-attr]
    c = tree.step("a").step("c")  # type: ignore[union-attr]
    assert c is not None
    assert c.where == "x.yaml:3"
    assert [child.where for child in c.value] == ["x.yaml:4", "x.yaml:5"]  # type: ignore[union-attr]


def test_merge_goes_into_mappings_only() -> None:
    base = read("a: {x: 1, y: 2}\nb: [1, 2]\nc: 1\n")
    over = read("a: {y: 3}\nb: [9]\nd: {e: 1}\n")
    assert merge(base, over).plain() == {"a": {"x": 1, "y": 3}, "b": [9], "c": 1, "d": {"e": 1}}


def test_replace_tag_stops_the_merge() -> None:
    assert merge(read("a: {x: 1, y: 2}"), read("a: !replace {z: 3}")).plain() == {"a": {"z": 3}}


def test_replace_at_leaves_the_original_alone() -> None:
    tree = read("a: {b: [1, {c: 2}]}\nn: null\n")
    assert replace_at(tree, ["a", "b", "1", "c"], Given(5, "o")).plain() == {"a": {"b": [1, {"c": 5}]}, "n": None}
    assert replace_at(tree, ["n", "m"], Given(5, "o")).plain()["n"] == {"m": 5}
    assert tree.plain() == {"a": {"b": [1, {"c": 2}]}, "n": None}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
tricky = st.sampled_from(
    ["1e-4", "no", "~", "0x1", "1_0", "010", ".5", "=", "<<", "1:30", "- a", "a: b", "#", "\u2028", "\x85", " \x85 a"]
)


@given(json_values | tricky | st.lists(tricky) | st.dictionaries(tricky.filter(lambda key: key != "<<"), tricky))
def test_what_is_written_reads_back_equal(value: object) -> None:
    text = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    assert read(text).plain() == value
