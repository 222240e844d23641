"""Children of a run, and what a run gives out: exports and restores."""

from __future__ import annotations

import json

import pytest

import casckpt
from casckpt.errors import BadRef
from casckpt.training.export import export_run

# ---- children


def test_children_resume_by_themselves(store, name):
    def script(fail_at=None):
        seen = []
        with store.run(name) as run:
            run.expect("model-*", 3)
            for number in range(3):
                with run.child(f"model-{number}", config={"n": number}) as child:
                    for epoch in child.epochs(2, {"n": 0}):
                        if (number, epoch) == fail_at:
                            raise RuntimeError
                        seen.append((number, epoch))
        return seen

    with pytest.raises(RuntimeError):
        script(fail_at=(1, 2))
    with store.run(name) as run:
        assert [one.status for one in run.children("model-*")] == ["finished", "failed"]
    assert script() == [(1, 2), (2, 1), (2, 2)]
    run = store.run(name)
    assert [one.name for one in run.children()] == [f"{name}/model-{n}" for n in range(3)]
    assert run.info.expected == {"model-*": 3}


def test_children_begin_anew_under_a_new_line_and_come_along_on_a_branch(store, name):
    def script(total, **run):
        seen = []
        with store.run(name, **run) as parent:
            parent.save({"n": 1})
            with parent.child("c") as child:
                for epoch in child.epochs(total, {"n": 0}):
                    seen.append(epoch)
        return seen

    assert script(2) == [1, 2]
    assert script(2, resume="never") == [1, 2]
    assert script(3) == [3]
    assert script(4, resume=f"{name}~1@0") == [4]
    assert {one.line for one in store.checkpoints(f"{name}/c~*")} == {0, 1, 2}


def test_export(store, name, tmp_path):
    with store.run(name, config={"lr": 0.1}) as run, run.child("a") as child:
        for epoch in child.epochs(2, {"n": 0}, monitor="loss", mode="min"):
            child.log(loss=1 / epoch, bad=float("nan"))
        run.export(tmp_path / "results")
    document = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [one["name"] for one in document["runs"]] == [name, f"{name}/a"]
    child = document["runs"][1]
    assert (child["metrics"], child["best"]["step"]) == ({"loss": 0.5, "bad": "NaN"}, 2)
    assert child["history"] == f"histories/{name}.a.csv"
    text = (tmp_path / "results" / child["history"]).read_text()
    assert text == "step,loss,bad\n1,1.0,nan\n2,0.5,nan\n"


def test_an_export_is_strict_json_with_a_file_for_each_run(store, tmp_path):
    def refuse(text):
        raise AssertionError(text)

    config = {"lr": float("nan"), "cut": [float("inf"), -float("inf")]}
    with store.run("x", config=config) as run:
        for part in ("a.b", "a/b"):
            with run.child(part) as child:
                for _ in child.epochs(1, {"n": 0}):
                    child.log(**{part[1:].replace(".", "dot").replace("/", "slash"): 1.0})
    written = export_run(store, "x", tmp_path)
    text = (tmp_path / "results.json").read_text()
    document = json.loads(text, parse_constant=refuse)
    assert document["runs"][0]["config"] == {"lr": "NaN", "cut": ["Infinity", "-Infinity"]}
    assert written == [(one["name"], one["history"]) for one in document["runs"]]
    files = {name: (tmp_path / file).read_text() for name, file in written}
    assert files["x/a.b"].startswith("step,dotb")
    assert files["x/a/b"].startswith("step,slashb")
    for pattern in ("*", "x*", "x@1"):
        with pytest.raises(BadRef):
            export_run(store, pattern, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_run_restore_by_what_and_into(train, store, name):
    train(4, save_every=2, monitor="loss", mode="min", loss=lambda epoch: abs(epoch - 2))
    run = store.run(name)
    assert run.restore()["epochs"] == [1, 2, 3, 4]
    assert run.restore("best:loss:min")["epochs"] == [1, 2]
    assert run.restore(2, only="value") == {"value": 0.0}
    into = casckpt.State(epochs=[], value=1.0)
    run.restore("latest", into=into)
    assert into.epochs == [1, 2, 3, 4]
