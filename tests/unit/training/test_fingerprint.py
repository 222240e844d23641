from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import itertools
import os
import sys
import textwrap
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest

import casckpt
from casckpt.errors import BadRequest
from casckpt.training.fingerprints import files as fingerprint_files
from casckpt.training.fingerprints.files import FileHashes
from casckpt.training.fingerprints.values import Fingerprinter


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Config:
    lr: float = 0.1
    layers: tuple = (1, 2)


_numbers = itertools.count()
Point = namedtuple("Point", "x y")

DIFFERENT = [
    None, True, False, 0, 1, -1, 2**70, 1.0, -0.0, 0.0, float("nan"), 1j, "", "1", "é", "\ud800",
    b"", b"1", [], [1], (1,), [[1]], {1}, {}, {"a": 1}, {"a": 2}, {1: "a"},
    Colour.RED, Colour.BLUE, Config(), Config(0.2), Point(1, 2), Point(2, 1), (1, 2),
    datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1), range(3), range(4),
    np.arange(3), np.arange(3.0), np.arange(3).reshape(3, 1), np.float32(1), np.float64(1),
    np.datetime64("2024-01-01"), np.array(["a", None], dtype=object), np.zeros(0), len, max,
    OrderedDict(a=1), np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
]  # fmt: skip


def test_values_that_differ_have_different_fingerprints():
    found = [casckpt.fingerprint(value) for value in DIFFERENT]
    assert len(set(found)) == len(DIFFERENT)
    assert found == [casckpt.fingerprint(value) for value in DIFFERENT]
    assert all(len(text) == 64 for text in found)


def test_equal_content_has_one_fingerprint():
    same = casckpt.fingerprint
    assert same({"a": 1, "b": 2}) == same({"b": 2, "a": 1})
    assert same({3, 1, 2}) == same({2, 3, 1})
    assert same(np.asfortranarray(np.eye(3))) == same(np.eye(3))
    assert same(np.arange(10)[::2]) == same(np.array([0, 2, 4, 6, 8]))
    assert same(a=1, b=2) == same(b=2, a=1) != same(a=1, c=2)
    assert same(1, 2) != same(2, 1)


def test_it_is_the_same_in_every_process():
    # Never edited: a change here would redo everybody's work.
    value = {"text": "é", "numbers": [1, 2.5, -3], "none": None, "bytes": b"x" * 5000, "set": {1}}
    assert casckpt.fingerprint(value) == (
        "909a1144ee2ac987aab7131b7f0953ed909a8a56850fb988413acdf7e7ce77f9"
    )


def test_tensors_count_by_content():
    torch = pytest.importorskip("torch")
    same = casckpt.fingerprint
    assert same(torch.ones(3)) == same(torch.ones(3))
    assert same(torch.ones(3)) != same(torch.zeros(3)) != same(torch.ones(3).half())


@pytest.mark.parametrize("value", [object(), {"deep": [open(os.devnull)]}, (i for i in "a")])  # noqa: SIM115, PTH123
def test_what_cannot_be_looked_at_is_refused_by_its_place(value):
    with pytest.raises(BadRequest, match="has no fingerprint") as caught:
        casckpt.fingerprint(value)
    if isinstance(value, dict):
        assert "['deep'][0]" in caught.value.what
    assert Fingerprinter(lenient=True).of(value)


def test_what_contains_itself_is_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(BadRequest, match="contains itself"):
        casckpt.fingerprint(loop)


# ---- paths


def test_a_path_means_its_content_and_a_str_its_text(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"same")
    two.write_bytes(b"same")
    assert casckpt.fingerprint(one) == casckpt.fingerprint(two)
    assert casckpt.fingerprint(str(one)) != casckpt.fingerprint(str(two))
    two.write_bytes(b"other")
    assert casckpt.fingerprint(one) != casckpt.fingerprint(two)


def test_a_folder_means_its_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_bytes(b"1")
    first = casckpt.fingerprint(tmp_path / "a")
    assert first == casckpt.fingerprint(tmp_path / "b")
    (tmp_path / "b" / "deep" / "file").rename(tmp_path / "b" / "deep" / "renamed")
    assert first != casckpt.fingerprint(tmp_path / "b")


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(BadRequest, match="nothing-here"):
        casckpt.fingerprint(tmp_path / "nothing-here")


def test_the_stat_cache_saves_reading_and_sees_every_change(tmp_path, store, monkeypatch):
    path = tmp_path / "track.wav"
    path.write_bytes(b"first")
    old = 1_600_000_000
    os.utime(path, (old, old))
    monkeypatch.setattr(fingerprint_files, "_SETTLED_NS", -(10**18))
    monkeypatch.setattr(fingerprint_files, "_known", {})
    hashes = FileHashes(store._repository)
    first = hashes.of(path)
    hashes.save()
    fingerprint_files._known.clear()
    reads = []
    original = FileHashes._hash
    monkeypatch.setattr(FileHashes, "_hash", lambda self, *a: reads.append(a) or original(self, *a))
    assert FileHashes(store._repository).of(path) == first
    assert reads == []
    # Same size, same mtime: the change of ctime tells.
    path.write_bytes(b"secon")
    os.utime(path, (old, old))
    assert FileHashes(store._repository).of(path) != first
    assert len(reads) == 1


def test_a_file_just_written_is_not_trusted_to_its_stat(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint_files, "_known", {})
    path = tmp_path / "file"
    path.write_bytes(b"now")
    FileHashes().of(path)
    assert fingerprint_files._known == {}


# ---- functions


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write and import modules of a package; each call gives the state of the files."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(**modules: str):
        name = f"made{next(_numbers)}_{os.getpid()}"
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(textwrap.dedent(text).replace("PKG", name))
        __import__(f"{name}.main")
        return sys.modules[f"{name}.main"]

    return make


MAIN = """
    from PKG.helpers import helper
    RATE = 16000

    def extract(x, window=512):
        return helper(x) * RATE + window
"""
HELPERS = """
    def helper(x):
        return x + 1

    def other(x):
        return x
"""


def of_extract(package, main=MAIN, helpers=HELPERS):
    return casckpt.fingerprint(package(main=main, helpers=helpers).extract)


def test_a_function_is_its_source_and_what_it_calls_in_its_package(package):
    first = of_extract(package)
    assert first == of_extract(package)
    assert first != of_extract(package, MAIN.replace("+ window", "- window"))
    assert first != of_extract(package, MAIN.replace("512", "513"))
    assert first != of_extract(package, MAIN.replace("16000", "8000"))
    assert first != of_extract(package, helpers=HELPERS.replace("x + 1", "x + 2"))


def test_comments_docstrings_layout_and_other_functions_do_not_count(package):
    first = of_extract(package)
    commented = MAIN.replace("        return", '        """Say."""\n        # why\n        return')
    assert first == of_extract(package, commented)
    assert first == of_extract(package, helpers=HELPERS.replace("return x\n", "return x * 7\n"))


def test_modules_and_classes_of_the_package_are_followed(package):
    main = """
        from PKG import helpers

        class Base:
            scale = 2
            def run(self, x):
                return helpers.helper(x) * self.scale

        class Extractor(Base):
            pass

        def extract(x):
            return Extractor().run(x)
    """
    first = of_extract(package, main)
    assert first == of_extract(package, main)
    assert first != of_extract(package, main.replace("scale = 2", "scale = 3"))
    assert first != of_extract(package, main, HELPERS.replace("x + 1", "x + 2"))


def test_functions_that_call_each_other_end(package):
    main = """
        def extract(x):
            return x if x < 1 else again(x - 1)

        def again(x):
            return extract(x)
    """
    first = of_extract(package, main)
    assert first != of_extract(package, main.replace("extract(x)\n", "extract(x) + 1\n"))


def test_closures_partials_methods_and_lambdas():
    def made(number):
        return lambda x: x + number

    class Scaler:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

        def apply(self, x):
            return x

    def plain(x, y=1):
        return x + y

    values = [made(1), made(2), plain, functools.partial(plain, 1), functools.partial(plain, y=1),
              Scaler().apply, Scaler.apply, Scaler, lambda x: x * 2, lambda x: x * 3,
              functools.lru_cache(made(3)), np.dot, np.mean]  # fmt: skip
    found = [casckpt.fingerprint(value) for value in values]
    assert len(set(found)) == len(values)
    assert casckpt.fingerprint(made(1)) == found[0]


def test_a_closure_over_a_client_is_refused_by_name():
    client = object()

    def ask(text):
        return client, text

    with pytest.raises(BadRequest, match="variable client"):
        casckpt.fingerprint(ask)


def test_the_path_cache_is_not_fooled_by_another_folder(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    monkeypatch.chdir(tmp_path / "a")
    first = casckpt.fingerprint(Path("x"))
    (tmp_path / "x").write_text("2")
    monkeypatch.chdir(tmp_path)
    assert casckpt.fingerprint(Path("x")) != first
