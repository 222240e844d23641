from __future__ import annotations

from pathlib import Path

import pytest

from casckpt.checkpoint.places import default_store, folder_of_ref, is_store, store_in


def a_store(path):
    path.mkdir(parents=True)
    (path / "format.json").write_text("{}")
    return path


def test_the_environment_wins_then_the_nearest_upward_then_here(tmp_path, monkeypatch):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.delenv("CASCKPT_STORE", raising=False)
    monkeypatch.chdir(deep)
    assert default_store() == deep / ".casckpt"
    store = a_store(tmp_path / "a" / ".casckpt")
    assert default_store() == store
    monkeypatch.setenv("CASCKPT_STORE", str(tmp_path / "other"))
    assert default_store() == tmp_path / "other"


def test_a_folder_that_is_no_store_is_passed_by(tmp_path, monkeypatch):
    monkeypatch.delenv("CASCKPT_STORE", raising=False)
    (tmp_path / "a" / ".casckpt").mkdir(parents=True)
    assert default_store(tmp_path / "a") == tmp_path / "a" / ".casckpt"
    store = a_store(tmp_path / ".casckpt")
    assert default_store(tmp_path / "a") == store


def test_a_folder_is_or_holds_a_store(tmp_path):
    assert store_in(tmp_path) is None
    inner = a_store(tmp_path / "exp" / "checkpoints")
    assert store_in(tmp_path / "exp") == inner
    assert store_in(inner) == inner
    hidden = a_store(tmp_path / "exp" / ".casckpt")
    assert store_in(tmp_path / "exp") == hidden


def test_a_folder_as_a_ref_keeps_its_selector(tmp_path):
    store = a_store(tmp_path / "exp@1" / "checkpoints")
    folder = str(tmp_path / "exp@1")
    assert folder_of_ref(folder) == (store, "exp@1", "")
    assert folder_of_ref(f"{folder}@best:m:min") == (store, "exp@1", "@best:m:min")
    assert folder_of_ref(str(tmp_path / "nothing@3")) is None
    assert folder_of_ref("") is None
    assert folder_of_ref("a" * 400) is None


def test_a_folder_without_a_store_gives_way_to_what_is_before_its_at_sign(tmp_path):
    (tmp_path / "run@latest").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "format.json").write_text("{}")
    found = folder_of_ref(f"{tmp_path}/run@latest")
    assert found == (tmp_path / "run" / "checkpoints", "run", "@latest")


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + "@latest"])
def test_a_name_that_no_folder_can_have_is_none(name):
    assert not is_store(Path(name))
    assert folder_of_ref(name) is None
