"""The reader made from docs/format.md alone reads what casckpt writes, and refuses what is damaged.

Nothing but the tests in this file knows both.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import casckpt
from casckpt.store import Repository, facts, snapshots
from tests.golden import archive, states
from tests.property.test_tree_roundtrip import TREES, fields_of
from tests.reader import codec, store, tree
from tests.unit.store.stores import flip

OPENINGS = [store.open_index, store.open_packs]
VECTORS = pathlib.Path(__file__).parents[1] / "vectors"
BIG = np.arange(3_000_000, dtype=np.int32) % 7
Opening = Callable[[pathlib.Path], store.Store]

Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass
class Settings:
    rate: float
    weights: Any


def assert_read(got: Any, want: Any) -> None:
    """Assert that the reader gave a value: its own form of it, or all that the store knows."""
    if type(want).__module__.partition(".")[0] == "torch":
        assert_tensor(got, want)
    elif isinstance(want, casckpt.Pickled):
        assert (got.kind, got.items[:2].tobytes()) == ("pickle", b"\x80\x04")
    elif isinstance(want, Pair | Settings):
        names = [field.name for field in dataclasses.fields(Settings)]
        kind, names = (
            ("namedtuple", list(Pair._fields)) if type(want) is Pair else ("dataclass", names)
        )
        assert (got.kind, got.name[1], got.argument) == (kind, type(want).__name__, names)
        assert_read(got.parts, [getattr(want, name) for name in names])
    elif isinstance(want, pathlib.PurePath):
        assert str(got) == str(want)
    elif isinstance(want, np.ndarray | np.generic):
        got = got.items if isinstance(got, tree.Typed) else got
        if want.dtype.num < 256:
            assert got.dtype == want.dtype
        assert got.shape == want.shape
        same = fields_of(np.asarray(got)) == fields_of(np.asarray(want))
        assert same or got.tobytes() == want.tobytes()
    else:
        assert type(got) is type(want)
        if isinstance(want, dict):
            assert_read(list(got), list(want))
            assert_read(list(got.values()), list(want.values()))
            assert getattr(got, "_metadata", None) == getattr(want, "_metadata", None)
        elif isinstance(want, list | tuple):
            for one, other in zip(got, want, strict=True):
                assert_read(one, other)
        elif isinstance(want, float | complex):
            parts = [(one.real, one.imag) for one in (got, want)]
            assert struct.pack("2d", *parts[0]) == struct.pack("2d", *parts[1])
        else:
            assert got == want


def assert_tensor(got: Any, want: Any) -> None:
    import torch

    raw = want.detach()
    flags = {"parameter"} if type(want) is torch.nn.Parameter else set()
    flags |= {"requires_grad"} if want.requires_grad else set()
    if raw.is_conj():
        flags, raw = flags | {"conj"}, raw.conj()
    assert (got.kind, got.dtype) == ("tensor", str(want.dtype).removeprefix("torch."))
    assert (set(got.flags), got.items.shape) == (flags, tuple(want.shape))
    flat = raw.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
    assert got.items.tobytes() == flat.numpy().tobytes()


def all_states(opened: store.Store) -> dict[bytes, Any]:
    return {one.id: tree.restore(opened, one.id) for one in tree.checkpoints(opened)}


def facts_of(one: Any) -> list[Any]:
    parent = one.parent.hex() if isinstance(one.parent, bytes) else one.parent
    listed = [list(value) for value in (one.tags, one.reasons)]
    return [
        one.run,
        one.line,
        one.step,
        one.batch,
        one.pinned,
        repr(dict(one.metrics)),
        parent,
        *listed,
    ]


@pytest.mark.parametrize("golden", archive.versions("v*"), ids=lambda path: path.name)
def test_golden_stores_are_read(golden: pathlib.Path, tmp_path: pathlib.Path) -> None:
    expected = archive.unpack(golden, tmp_path / "store")["checkpoints"]
    opened = store.open_index(tmp_path / "store")
    packs = store.open_packs(tmp_path / "store")
    assert packs.rows == opened.rows
    found = {f"{one.run}@{one.step}": one for one in tree.checkpoints(opened)}
    for ref, identity in expected.items():
        one = found.pop(ref)
        assert one.id.hex() == identity
        assert one.metrics["loss"] == 1 / (one.step + 1)
        assert np.isnan(one.metrics["nan"])
        assert (one.pinned, one.tags) == (one.step == 2, ["t1"] if one.step == 1 else [])
        assert_read(tree.restore(opened, one.id), states.state(one.step))
    others = {"golden/trash": {"gone": np.arange(9)}, "golden/big": {"blob": BIG}}
    assert {one.run for one in found.values()} - {"golden/grown"} == others.keys()
    for one in found.values():
        grown = one.run == "golden/grown"
        assert one.trash == (one.run == "golden/trash")
        assert_read(
            tree.restore(packs, one.id), states.grown(one.step) if grown else others[one.run]
        )


def hostile_state(seed: int, step: int) -> dict[Any, Any]:
    """Return one value of every kind, and bytes of which each step changes a few."""
    import ml_dtypes
    import torch

    generator = np.random.default_rng(seed)
    weights = generator.standard_normal(8_000).astype(np.float32)
    weights += np.float32(1e-6) * step * (np.arange(8_000) % 5 == 0)
    noise = generator.bytes(10_000)
    shared = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    ordered = collections.OrderedDict(z=1, y=shared[1:3])
    ordered._metadata = {"": {"version": 1}}
    array = np.arange(24).reshape(2, 3, 4)
    record = np.dtype([(("title", "a"), "i1"), ("b", [("c", ">f8", (2,))])], align=True)
    return {
        "weights": weights,
        "exponents": (weights.view(np.uint32) >> 16).astype(np.uint16),
        "counts": np.arange(5000, dtype=np.int64) + step + seed,
        "text": f"a line of log {seed}\n" * 300 + f"step {step}",
        "noise": noise[:5_000] + b"%d" % step + noise[5_000:],
        "odd": noise[: 4097 + step],
        "arrays": [array, array.transpose(1, 0, 2), array.T, array[:, ::-1], np.zeros((2, 0))],
        "dtypes": [np.zeros(2, record), np.array(["ä", "b"]), np.array([b"x"], ">S3"), np.array(5)],
        "narrow": [np.arange(3).astype(getattr(ml_dtypes, name)) for name in ("bfloat16", "int4")],
        "scalars": [np.float32(1.5), np.str_("\ud800\0"), np.bytes_(b"a\0"), np.str_("x" * 2000)],
        "tensors": [shared, shared, shared.t(), shared[:, ::3], torch.nn.Parameter(torch.ones(2))],
        "bits": [torch.ones(3).bfloat16(), (torch.ones(2) * (1 + 2j)).conj(), torch.tensor(True)],
        "overlap": [shared[:, :7].clone()[1:], torch.arange(100)[10:30], torch.empty(0, 3)],
        "named": [Pair(1, array), Settings(0.5, array), ordered, collections.Counter("abca")],
        "defaults": collections.defaultdict(collections.OrderedDict, {"a": (1, [{}])}),
        "numbers": [2**53 - 1, -(2**53), 2**200, True, None, -0.0, float("nan"), 1j, 1e-310],
        "texts": ["\ud800", "\0", '{"e":0}', b"\xff", bytearray(b"x"), bytearray(3000), "é\ud83d"],
        "paths": [pathlib.Path("/a\udcff"), pathlib.PureWindowsPath("c:\\x")],
        "pickled": casckpt.Pickled({1, 2}),
        1: "int", (1, ("x", None)): "tuple", 1.5: "float", b"x": "bytes", "\ud800": "surrogate",
    }  # fmt: skip


def test_a_store_of_every_kind_of_value_is_read(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "store"
    saved_states = {}
    with casckpt.open(path) as written:
        for seed, level in enumerate(("fast", "balanced", "small")):
            for step in range(2):
                saved = written.save(
                    f"{level}/" + "x" * 150,
                    hostile_state(seed, step),
                    step=step,
                    metrics={"ä": step / 3, "nan": float("nan")},
                    tags=[f"t{step}"],
                    level=level,
                )
                saved_states[bytes.fromhex(saved.id)] = hostile_state(seed, step)
        written.pin(saved)
        written.attach_metrics(saved, {"late": 1.0})
        before = encodings_of(path)
        removed = written.save("gone", {"w": np.arange(100_000)})
        written.delete(removed)
        written.compact(level="small")
        listed = [one for run in written.runs() for one in written.checkpoints(run.name)]
    assert before >= {(1, 0, False), (1, 1, False), (1, 2, False), (1, 2, True), (1, 3, True)}
    assert before >= {(2, 0, True), (3, 1, True), (4, 1, False)}
    listed.sort(key=lambda one: (one.run, one.step))
    for opening in OPENINGS:
        opened = opening(path)
        found = [one for one in tree.checkpoints(opened) if not one.trash]
        assert list(map(facts_of, found)) == list(map(facts_of, listed))
        times = [round(one.created.timestamp() * 1e6) for one in listed]
        assert [one.created for one in found] == times
        for one in found[opening is store.open_packs :: 2]:
            restored = tree.restore(opened, one.id)
            assert_read(restored, saved_states[one.id])
            first, again, transposed, strided, _ = restored["tensors"]
            assert first is again
            for view in (transposed, strided, restored["named"][2]["y"]):
                assert np.shares_memory(view.items, first.items)


def encodings_of(path: pathlib.Path) -> set[tuple[int, int, bool]]:
    return {(one.kind, one.encoding, bool(one.refs)) for one in records_of(path)}


def records_of(path: pathlib.Path) -> list[store.Record]:
    uuid = bytes.fromhex(json.loads((path / "format.json").read_text())["uuid"])
    found = []
    for file in sorted(path.glob("packs/??/*.pack")):
        found += store.Pack(file, uuid).records()
    return found


def test_states_that_nobody_thought_of_are_read(tmp_path: pathlib.Path) -> None:
    trees: list[Any] = []

    @settings(max_examples=40, database=None)
    @given(TREES)
    def draw(one: Any) -> None:
        trees.append(one)

    draw()
    with casckpt.open(tmp_path / "store") as written:
        for step, one in enumerate(trees):
            written.save("drawn", one, step=step)
    for opening in OPENINGS:
        opened = opening(tmp_path / "store")
        found = tree.checkpoints(opened)
        assert [one.step for one in found] == list(range(len(trees)))
        for one in found:
            assert_read(tree.restore(opened, one.id), trees[one.step])


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "store"
    weights = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    with casckpt.open(path) as written:
        for step in range(2):
            values = weights + np.float32(1e-6) * step * (np.arange(3000) % 7 == 0)
            written.save("run", {"w": values, "s": "text " * 500, "b": b"\xfe" * 2000}, step=step)
        written.save("run", {"random": np.random.default_rng(0).bytes(5000)}, step=2)
    whole = all_states(store.open_packs(path))
    records = [one for one in records_of(path) if one.kind != codec.FACT]
    assert {(one.kind, one.encoding) for one in records} >= {(1, 0), (1, 1), (1, 2), (3, 1)}
    for record in records:
        payload = record.end - len(record.payload)
        for offset in (record.offset + 9, record.offset + 50, payload - 1, payload, record.end - 1):
            flip(record.pack, offset, 0x10)
            opened = OPENINGS[offset % 2](path)
            refused = 0
            for identity, expected in whole.items():
                try:
                    got = tree.restore(opened, identity)
                except codec.Refused:
                    refused += 1
                else:
                    assert_read(got, expected)
            assert refused > 0, (record, offset)
            flip(record.pack, offset, 0x10)
    assert all_states(store.open_index(path)).keys() == whole.keys()


def test_what_only_the_newest_of_several_snapshots_says_is_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    # A part of a snapshot for each row.
    monkeypatch.setattr(facts, "_PART_BYTES", 1)
    with casckpt.open(path) as written:
        for step in range(3):
            written.save("run", {"n": step}, step=step)
        for _ in range(2):
            with Repository.open(path) as repository:
                snapshots.write_snapshot(repository._shared())
            written.tag("run@1", "seen") if not written.get("run@1").tags else None
        written.delete("run@0")
    parts = [one for one in records_of(path) if one.kind == codec.SNAPSHOT]
    assert len(parts) > 6
    for broken in ([], parts[-1:]):
        for one in broken:
            flip(one.pack, one.end - 1)
        opened = store.open_packs(path)
        assert opened.rows == store.open_index(path).rows
        found = [(one.step, one.trash, one.tags) for one in tree.checkpoints(opened)]
        assert found == [(0, True, []), (1, False, ["seen"]), (2, False, [])]


def test_a_manifest_that_no_fact_names_is_found(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "store"
    with casckpt.open(path) as written:
        saved = written.save("run", {"n": np.arange(3)}, step=4, metrics={"loss": 0.5})
    for one in records_of(path):
        if one.kind == codec.FACT:
            flip(one.pack, one.end - 1)
    opened = store.open_packs(path)
    assert not opened.rows["checkpoints"]
    (found,) = tree.checkpoints(opened)
    assert (found.id.hex(), found.run, found.step) == (saved.id, "run", 4)
    assert (found.metrics, found.reasons) == ({"loss": 0.5}, ["recovered"])
    assert_read(tree.restore(opened, found.id), {"n": np.arange(3)})


def test_the_streams_beside_the_document_decode() -> None:
    vectors = json.loads((VECTORS / "entropy.json").read_text())
    for case in vectors["cases"]:
        data = bytes.fromhex(case["data"]) * case["repeat"]
        stream = bytes.fromhex(case["stream"])
        assert codec._entropy(stream, len(data)) == data, case["name"]
        with pytest.raises(codec.Refused):
            codec._entropy(stream + b"\0\0", len(data))


def test_the_reader_knows_nothing_of_casckpt() -> None:
    for module in (codec, store, tree):
        source = pathlib.Path(module.__file__ or "").read_text()
        imports = [line for line in source.splitlines() if "import" in line.split()]
        assert imports
        assert not [line for line in imports if "casckpt" in line]
