"""Manifests: one spelling, and nothing hostile gets through."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casckpt.checkpoint import manifest as manifests
from casckpt.checkpoint import manifest_reader
from casckpt.checkpoint.decode import restore_tree
from casckpt.checkpoint.environment import environment_facts
from casckpt.errors import CasckptError, Corrupt, NewerFormat
from tests.suites.memory_repository import Saved

SAVED = Saved(
    {"a": np.arange(4), "l": [1, 2.5, "x"], "b": (b"y" * 2000, {1: None}), "e": np.empty(0)}
)
MANIFEST = dataclasses.replace(
    SAVED.manifest,
    metrics={"loss": 0.1, "nan": math.nan, "inf": -math.inf, "tiny": 5e-324},
    reasons=("latest",),
    environment={"python": "3.11"},
    config={"lr": "0x1p-3"},
    parent="ab" * 32,
)
BODY = manifests.encode(MANIFEST)


def decode(document):
    body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return manifests.decode(body, len(SAVED.refs))


def test_a_manifest_comes_back_as_it_was():
    back = manifests.decode(BODY, len(SAVED.refs))
    assert manifests.encode(back) == BODY
    assert back.entries == MANIFEST.entries
    assert back.metrics["tiny"] == 5e-324
    assert math.isnan(back.metrics["nan"])
    assert back.parent == MANIFEST.parent


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b" " + BODY,
        BODY + b"\n",
        BODY.replace(b'"batch":0', b'"batch":0,"batch":0'),
        BODY.replace(b'"batch":0', b'"batch": 0'),
        BODY.replace(b'"batch":0', b'"batch":0.0'),
        BODY.replace(b'"batch":0', b'"batch":-1'),
        BODY.replace(b'"batch":0', b'"batch":true'),
        BODY.replace(b'"batch":0', b'"batch":1e3'),
        BODY.replace(b'"batch":0', b'"batch":NaN'),
        BODY.replace(b'"batch":0', b'"batch":' + b"9" * 5000),
        BODY.replace(b'"run":"run"', b'"run":"../run"'),
        BODY.replace(b'"run":"run"', b'"run":"r\xc3\xa9"'),
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_any_other_spelling_is_corrupt(body):
    with pytest.raises(Corrupt):
        manifests.decode(body, len(SAVED.refs))


def test_a_newer_format_says_so():
    with pytest.raises(NewerFormat):
        manifests.decode(BODY.replace(b'"format":1', b'"format":2'), 9)


@pytest.mark.parametrize(
    "change",
    [
        {"blob": 99},
        {"blob": -1},
        {"blob": None},
        {"blob": True},
        {"length": 2**64},
        {"length": -1},
        {"offset": 2**63},
        {"shape": [2**40, 2**40]},
        {"shape": [-1]},
        {"shape": [1] * 65},
        {"shape": "4"},
        {"flags": ["b", "a"]},
        {"flags": ["a", "a"]},
        {"flags": [1]},
        {"kind": "module"},
        {"dtype": 4},
        {"order": "C" * 1000},
        {"path": "x" * 5000},
        {"path": None},
        {"extra": 1},
        {"alias": 0},
    ],
)
def test_entries_out_of_bounds_are_corrupt(change):
    document = json.loads(BODY)
    document["entries"][0].update(change)
    with pytest.raises(Corrupt):
        decode(document)


@pytest.mark.parametrize(
    "entry",
    [
        {"alias": 9, "path": "x"},
        {"alias": -1, "path": "x"},
        {"alias": 3, "path": "x"},
        {"alias": 0, "path": "x", "stride": [1]},
    ],
)
def test_aliases_that_lead_nowhere_are_corrupt(entry):
    document = json.loads(BODY)
    document["entries"].append(entry)
    with pytest.raises(Corrupt):
        decode(document)


VIEW = {
    "alias": 0,
    "path": "x",
    "kind": "tensor",
    "dtype": "int8",
    "flags": [],
    "offset": 0,
    "shape": [1],
    "stride": [1],
}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, "x: a view of what has no memory"),
        ({"kind": "array"}, "x: a view of an unknown kind"),
        ({"dtype": 5}, "x: a dtype that is no text, or too long"),
        ({"dtype": "d" * 70_000}, "x: a dtype that is no text, or too long"),
        ({"offset": -1}, "x: an offset out of bounds"),
        ({"offset": 2**63}, "x: an offset out of bounds"),
        ({"stride": [-1]}, "x: a shape with a size out of bounds"),
    ],
)
def test_views_out_of_bounds_are_corrupt(change, why):
    document = json.loads(BODY)
    document["entries"].append(VIEW | change)
    with pytest.raises(Corrupt, match=why):
        decode(document)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"entries": {}}, "entries that are no list, or too many"),
        ({"entries": [5]}, "an entry that is no object"),
        ({"metrics": {"loss": "0x1p0"}}, "a metric that is no canonical hex float"),
        ({"metrics": {"loss": "much"}}, "a metric that is no hex float"),
        ({"metrics": {"loss": "0x1p99999"}}, "a metric that is no hex float"),
        ({"metrics": [1]}, "metrics that is no table, or too large"),
        ({"environment": {"python": 3}}, "environment that is no table of words"),
        ({"reasons": "latest"}, "reasons that are no list, or too many"),
        ({"captured": [1]}, "captured that are no words"),
        ({"parent": "abc"}, "a parent that is no id"),
        ({"created": "yesterday"}, "a time of creation that is none"),
        ({"run": 5}, "the run is no name"),
        ({"format": "1"}, "the format version is not a number from 1 on"),
        ({"more": 1}, "top keys other than those of format 1"),
    ],
)
def test_facts_that_no_save_writes_are_corrupt(change, why):
    with pytest.raises(Corrupt, match=why):
        decode(json.loads(BODY) | change)


def test_a_body_over_the_limit_is_not_parsed(monkeypatch):
    monkeypatch.setattr(manifest_reader, "BODY_MAX_BYTES", len(BODY))
    assert manifests.decode(BODY, len(SAVED.refs)).run == "run"
    with pytest.raises(Corrupt, match=f"{len(BODY) + 1} bytes, over the limit of {len(BODY)}"):
        manifests.decode(BODY + b"}", len(SAVED.refs))


@pytest.mark.parametrize("body", [b"", b"[", b"\xff", b"[" * 100_000, b"5", BODY])
def test_what_is_no_result_is_told_without_an_error(body):
    assert not manifests.is_result(body)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "O"},
        {"dtype": "|O8"},
        {"dtype": "<f99"},
        {"dtype": "f8,f8"},
        {"dtype": "{}"},
        {"dtype": '{"base":"<f8","shape":[4,-1]}'},
        {"dtype": '{"aligned":false,"fields":[["a","<i8",-8]],"size":8}'},
        {"dtype": "M8[__import__]"},
        {"shape": [5]},
        {"order": "1"},
        {"order": "x"},
        {"kind": "tensor"},
    ],
)
def test_entries_that_contradict_themselves_are_an_error_at_restore(change):
    document = json.loads(BODY)
    document["entries"][0].update(change)
    manifest = decode(document)
    with pytest.raises(CasckptError):
        restore_tree(SAVED.repo, manifest, SAVED.refs)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just("<f8"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "e",
                    "d",
                    "v",
                    "k",
                    "m",
                    "t",
                    "n",
                    "f",
                    "D",
                    "x",
                    "a",
                    "i",
                    "c",
                    "s",
                    "b",
                    "B",
                    "p",
                    "q",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(tree=JSON)
def test_any_tree_is_restored_or_refused(tree):
    document = json.loads(BODY)
    document["tree"] = tree
    with contextlib.suppress(CasckptError):
        restore_tree(SAVED.repo, decode(document), SAVED.refs)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_changed_field_is_restored_or_refused(data):
    document = json.loads(BODY)
    place = data.draw(st.sampled_from(sorted(document)))
    if place == "entries":
        entry = data.draw(st.sampled_from(document["entries"]))
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(JSON)
    else:
        document[place] = data.draw(JSON)
    with contextlib.suppress(CasckptError):
        restore_tree(SAVED.repo, decode(document), SAVED.refs)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(BODY) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_spelled_canonically(position, byte):
    body = bytearray(BODY)
    body[position] = byte
    try:
        manifest = manifests.decode(body, len(SAVED.refs))
    except CasckptError:
        return
    assert manifests.encode(manifest) == body


def test_same_content_ignores_when_and_where():
    other = Saved(
        {"a": np.arange(4), "l": [1, 2.5, "x"], "b": (b"y" * 2000, {1: None}), "e": np.empty(0)}
    )
    moved = dataclasses.replace(
        other.manifest, created="", step=9, metrics={"x": 1.0}, environment={"p": "q"}
    )
    assert manifests.same_content(MANIFEST, SAVED.refs, moved, other.refs)


@pytest.mark.parametrize(
    "pair",
    [([1], [True]), ([1], [1.0]), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (np.zeros(2), np.ones(2))],
)
def test_different_content_is_told_apart(pair):
    a, b = (Saved(state) for state in pair)
    assert not manifests.same_content(a.manifest, a.refs, b.manifest, b.refs)


class Cuda:
    def __init__(self, count):
        self.count = count

    def is_initialized(self):
        return self.count > 0

    def device_count(self):
        return self.count

    def get_device_name(self):
        if self.count > 7:
            raise RuntimeError("the driver is gone")
        return "H200"


@pytest.mark.parametrize(("count", "device"), [(0, "cpu"), (2, "2 x H200"), (8, None)])
def test_the_environment_names_the_device_in_use(monkeypatch, count, device):
    torch = types.SimpleNamespace(__version__="9.9", cuda=Cuda(count))
    monkeypatch.setitem(sys.modules, "torch", torch)
    facts = environment_facts()
    assert facts.get("device") == device
    assert facts["torch"] == "9.9"


@pytest.mark.parametrize("torch", [None, types.SimpleNamespace(__version__=9)])
def test_a_torch_that_is_none_or_half_there_names_no_device(monkeypatch, torch):
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert environment_facts().keys().isdisjoint({"torch", "device"})


def test_environment_names_no_variables(monkeypatch):
    monkeypatch.setenv("SECRET", "swordfish")
    facts = environment_facts()
    assert facts["numpy"] == np.__version__
    assert "swordfish" not in json.dumps(facts)
    assert set(facts) <= {
        "python",
        "platform",
        "casckpt",
        "numpy",
        "torch",
        "xgboost",
        "lightgbm",
        "optuna",
        "sklearn",
        "lightning",
        "device",
    }
