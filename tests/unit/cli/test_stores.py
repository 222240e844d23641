"""The command line and Python look for the store at the same places."""

from __future__ import annotations

import pytest

import casckpt
from casckpt.checkpoint.places import default_store
from casckpt.cli import stores
from casckpt.cli.output import Settings
from casckpt.errors import NoStore


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("CASCKPT_STORE", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def made(path):
    path.parent.mkdir(exist_ok=True)
    casckpt.open(path).close()
    return path


@pytest.mark.parametrize("named", ["of", "inside", "both", "neither"])
def test_a_folder_that_is_named_is_a_store_or_holds_one(tmp_path, monkeypatch, named):
    path = tmp_path / "named"
    store = {"of": path, "inside": path / ".casckpt", "both": path, "neither": path}[named]
    if named != "neither":
        made(store)
    if named == "both":
        (path / ".casckpt").mkdir()
    assert stores.locate(Settings(store=str(path))) == store
    monkeypatch.setenv("CASCKPT_STORE", str(path))
    assert stores.locate(Settings()) == store
    assert default_store() == store


def test_the_nearest_store_upward_is_found_past_folders_that_are_none(tmp_path):
    store = made(tmp_path / ".casckpt")
    (tmp_path / "here" / ".casckpt").mkdir()
    assert stores.locate(Settings()) == store
    assert default_store() == store


def test_a_store_that_has_lost_its_format_is_named_for_repair(tmp_path):
    lost = made(tmp_path / "here" / ".casckpt")
    (lost / "format.json").unlink()
    assert stores.locate(Settings()) == lost
    assert stores.locate(Settings(store=str(tmp_path / "here"))) == lost
    with pytest.raises(NoStore, match="repair --rebuild-index"), stores.opened(Settings()):
        pass


def test_without_any_the_error_says_what_to_do():
    with pytest.raises(NoStore, match="casckpt init"):
        stores.locate(Settings())


def test_a_ref_may_name_the_folder_that_holds_the_store(tmp_path):
    made(tmp_path / "work" / ".casckpt")
    casckpt.save(f"{tmp_path}/work::a", {"x": 1})
    assert casckpt.restore(f"{tmp_path}/work::a") == {"x": 1}
    with casckpt.open(tmp_path / "other") as store:
        assert store.restore(f"{tmp_path}/work::a") == {"x": 1}
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [".casckpt"]
