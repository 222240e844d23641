"""Nodes of a tree as no casckpt writes them: each is refused before anything is made of it."""

from __future__ import annotations

import pytest

from casckpt.checkpoint.leaves import RestoreOptions
from casckpt.checkpoint.tree import DEPTH_MAX
from casckpt.checkpoint.tree_build import Builder, selected_entries
from casckpt.checkpoint.tree_paths import Selection
from casckpt.errors import Corrupt


def build(node, selection=None, **options):
    leaves = ["first", "second"]
    return Builder(leaves.__getitem__, 2, RestoreOptions(**options), selection).build(node)


def nested(depth: int):
    node: object = {"e": 0}
    for _ in range(depth):
        node = [node]
    return node


FIELDS = [f"f{number}" for number in range(10_001)]

MALFORMED = [
    (1.5, "a JSON number with a fraction"),
    ([0, 1.5], "a JSON number with a fraction"),
    ({}, r"the keys \[\]"),
    ({"magic": 1}, r"the keys \['magic'\]"),
    ({"e": 0, "k": 1}, r"the keys \['e', 'k'\]"),
    ({"e": 2}, "not in the list of entries"),
    ({"e": -1}, "not in the list of entries"),
    ({"e": True}, "not in the list of entries"),
    ({"t": 5}, "a tuple that is no list"),
    ({"d": ["a"], "v": []}, "do not pair up"),
    ({"d": 5, "v": []}, "do not pair up"),
    ({"n": ["module"], "f": [], "v": []}, "not a module and a name"),
    ({"D": "module.Name", "f": [], "v": []}, "not a module and a name"),
    ({"n": ["m", "N"], "f": ["a"], "v": []}, "fields and values do not pair up"),
    ({"n": ["m", "N"], "f": [5], "v": [1]}, "fields and values do not pair up"),
    ({"D": ["m", "N"], "f": ["a", "a"], "v": [1, 2]}, "too many fields, or one twice"),
    ({"n": ["m", "N"], "f": FIELDS, "v": [None] * len(FIELDS)}, "too many fields"),
    ({"x": ["numpy"], "a": None, "v": []}, "an extension node without a root and a kind"),
    ({"x": ["numpy", "scalar"], "a": None, "v": 5}, "an extension node without a root"),
    (nested(DEPTH_MAX + 2), "nested too deeply"),
]


@pytest.mark.parametrize(("node", "why"), MALFORMED)
def test_nodes_of_no_known_form_are_corrupt(node, why):
    with pytest.raises(Corrupt, match=why):
        build(node)
    with pytest.raises(Corrupt, match=why):
        selected_entries(node, 2, Selection.of("*"))


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ({"d": [], "v": [], "k": "magic"}, "a dict of an unknown kind"),
        ({"d": [], "v": [], "k": "default:eval"}, "a dict of an unknown kind"),
        ({"d": [], "v": [], "k": 5}, "a dict of an unknown kind"),
        ({"d": ["a", "a"], "v": [1, 2]}, "a dict with a key twice"),
        ({"d": [], "v": [], "m": 1}, "metadata on a plain dict"),
        ({"d": [], "v": [], "k": "counter", "m": 1}, "metadata on a plain dict"),
    ],
)
def test_dicts_of_no_known_kind_are_corrupt(node, why):
    with pytest.raises(Corrupt, match=why):
        build(node)


def test_a_tensor_of_torch_can_be_made_without_torch():
    pytest.importorskip("numpy")
    scalar = {"x": ["torch", "scalar"], "a": ["<f4", "0000803f"], "v": []}
    assert build(scalar, as_numpy=True) == 1.0


def test_the_parts_of_an_extension_are_taken_whole_or_not_at_all():
    node = {"d": ["a", "b"], "v": [{"x": ["numpy", "scalar"], "a": 0, "v": [{"e": 0}]}, {"e": 1}]}
    for only, entries in (("a", [0]), ("b", [1]), ("a.0", []), (("a", "b"), [0, 1])):
        assert selected_entries(node, 2, Selection.of(only)) == entries
    assert build(node, Selection.of("b")) == {"b": "second"}
