from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casckpt.store import Repository, files
from tests.unit.store.stores import copy_store


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "store"
    Repository.init(path)
    return path


@pytest.fixture
def make_store(_empty_store: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that gives a new, empty store of a name."""
    return lambda name: copy_store(_empty_store, tmp_path / name)


@pytest.fixture
def path(make_store: Callable[[str], Path]) -> Path:
    """Return the folder of an empty store."""
    return make_store("store")


@pytest.fixture
def repository(path: Path) -> Iterator[Repository]:
    """Return an empty store, open for writing."""
    with Repository.open(path) as repository:
        yield repository


@pytest.fixture(autouse=True)
def _no_hook_left() -> Iterator[None]:
    yield
    files.set_crash_hook(None)
