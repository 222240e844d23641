"""How leaves are stored, as `codings` and `show` say it."""

from __future__ import annotations

import json

import numpy as np
import pytest

import casckpt
from casckpt.cli import formatting
from casckpt.cli.root import run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.02, 300_000).astype(np.float32)
    table = rng.integers(0, 256, 300_000, np.uint8)
    path = tmp_path_factory.mktemp("codings") / "store"
    with casckpt.open(path) as store:
        for step in range(3):
            table[10 * step] += 1
            state = {
                "weight": weight * np.float32(1 + 1e-6 * step),
                "table": table,
                "zeros": np.zeros(100_000, np.int64),
                "noise": rng.bytes(50_000),
                "text": "all work and no play " * 5000,
                "small": {"a": np.arange(3), "b": np.arange(5)},
                "empty": np.zeros(0),
                "same": weight,
                "step": step,
            }
            state["again"] = state["weight"]
            store.save("run", state, step)
        yield store, state


def test_each_leaf_says_predictor_layout_coder_and_depth(saved):
    store, _ = saved
    found = store.codings("run")
    plain = {path: (one.predictor, one.layout, one.coder, one.depth) for path, one in found.items()}
    assert plain["weight"][:2] == ("sub", "planes")
    assert plain["weight"][2].endswith("entropy")
    assert 1 <= plain["weight"][3] <= 3
    assert plain["table"] == ("dictionary", "bytes", "zstd", 2)
    assert plain["zeros"] == ("plain", "planes", "constant*8", 0)
    assert plain["noise"] == ("plain", "bytes", "raw", 0)
    assert plain["text"] == ("plain", "bytes", "zstd", 0)
    # What shares a blob is stored with it; what has no bytes of its own is not stored.
    assert found["small.a"] == found["small.b"]
    assert not {"empty", "step", "again"} & found.keys()


def test_leaves_whose_paths_read_alike_each_have_their_own(tmp_path, capsys):
    constant, random = np.zeros(50_000), np.random.default_rng(0).bytes(400_000)
    state = {"a.b": constant, "a": {"b": random}, 1: random[:100_000], "1": constant[1:]}
    with casckpt.open(tmp_path / "store") as store:
        store.save("run", state)
        found = store.codings("run")
        sizes = {path: one.logical_bytes for path, one in found.items()}
    assert sizes == {"a.b": 400_000, "a.b'": 400_000, "1": 100_000, "1'": 399_992}
    assert {path: one.layout for path, one in found.items()} == {
        "a.b": "planes", "a.b'": "bytes", "1": "bytes", "1'": "planes",
    }  # fmt: skip
    assert run(["--store", str(tmp_path / "store"), "show", "run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["entries"]
    assert [(one["path"], one["stored"]["layout"]) for one in shown] == [
        ("a.b", "planes"), ("a.b", "bytes"), ("1", "bytes"), ("1", "planes"),
    ]  # fmt: skip


def test_sizes_are_those_of_the_blobs_and_the_first_save_has_no_chain(saved):
    store, state = saved
    found = store.codings("run")
    assert found["weight"].logical_bytes == state["weight"].nbytes
    assert found["weight"].ratio == found["weight"].stored_bytes / state["weight"].nbytes
    assert found["weight"].ratio < 0.5
    assert found["noise"].ratio > 1
    assert all(one.depth == 0 for one in store.codings("run@0").values())
    assert store.codings("run@0")["weight"].predictor == "plain"


def test_the_store_adds_up_how_its_chunks_are_stored(saved):
    store, state = saved
    found = store.stats(codings=True).codings
    assert store.stats().codings == ()
    weights = [one for one in found if one.type == "<f4"]
    assert {one.predictor for one in weights} == {"plain", "sub"}
    # Each of the three versions is another: every chunk of each counts, and shared ones once.
    assert sum(one.logical_bytes for one in weights) == 3 * state["weight"].nbytes
    assert sum(one.chunk_count for one in weights) == 3 * 2
    assert max(one.depth for one in weights) == 2
    (zeros,) = (one for one in found if one.type == "<i8" and one.coder == "constant*8")
    assert (zeros.chunk_count, zeros.logical_bytes) == (1, state["zeros"].nbytes)
    assert "several" not in {one.type for one in weights}
    assert [one.stored_bytes for one in found] == sorted(o.stored_bytes for o in found)[::-1]
    # Nothing but lists, manifests and facts is stored besides.
    chunks = sum(one.stored_bytes for one in found)
    assert chunks < store.stats("run").stored_bytes < chunks + 20_000
    assert store.stats("other", codings=True).codings == ()


def test_stats_shows_the_codings(saved, capsys):
    store, _ = saved

    def shown(*words: str) -> str:
        assert run(["--store", str(store.path), *words]) == 0
        return capsys.readouterr().out

    table = shown("stats", "run", "--codings")
    assert "float32" in table
    assert "sub, planes: " in table
    first = json.loads(shown("du", "--codings", "--json"))["codings"][0]
    assert (first["type"], first["predictor"]) == ("<f4", "plain")
    assert first["ratio"] == round(first["stored_bytes"] / first["logical_bytes"], 4)
    assert "codings" not in json.loads(shown("du", "--json"))


def test_nothing_is_saved_by_a_store_that_takes_more_than_its_checkpoints(tmp_path, capsys):
    with casckpt.open(tmp_path / "new") as store:
        store.save("r", {"w": np.arange(2000.0)})
        assert store.stats().saved < 0
    assert run(["--store", str(tmp_path / "new"), "du"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1].endswith(" 0.0 %")
    assert "KiB more than restoring would write" in shown.err


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("<f4", "float32"),
        (">f8", "float64 big-endian"),
        ("|b1", "bool"),
        ("|u1", "uint8"),
        ("<c8", "complex64"),
        ("bfloat16", "bfloat16"),
        ("<U7", "<U7"),
        ('{"fields":[["left_child","<i8",0]],"size":8,"aligned":false}', "structured"),
        ("", ""),
    ],
)
def test_dtypes_have_names(dtype, name):
    assert formatting.dtype_name(dtype) == name
    assert formatting.value_text(f"{dtype} [3, 4]") == f"{name} [3, 4]"


def test_what_is_gone_is_unknown_and_no_error(tmp_path):
    rng = np.random.default_rng(1)
    with casckpt.open(tmp_path / "store") as store:
        store.save("run", {"w": rng.normal(size=50_000).astype(np.float32)})
        assert store.codings("run")["w"].predictor == "plain"
    for pack in (tmp_path / "store").glob("packs/*/*.pack"):
        data = bytearray(pack.read_bytes())
        # The head of the planes: a predictor that no version knows
        at = data.index(bytes([0, 0x84]), 80)
        data[at] = 9
        pack.write_bytes(data)
    with casckpt.open(tmp_path / "store") as store:
        assert store.codings("run")["w"].predictor == "unknown"
