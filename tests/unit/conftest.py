from __future__ import annotations

from collections.abc import Iterator

import pytest

import casckpt


@pytest.fixture(scope="session")
def _shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[casckpt.Store]:
    with casckpt.open(tmp_path_factory.mktemp("shared") / "store") as store:
        yield store


@pytest.fixture
def store(_shared_store: casckpt.Store) -> Iterator[casckpt.Store]:
    """Return an empty store: one for all tests, emptied after each, as making one takes 0.2 s."""
    yield _shared_store
    _shared_store.wait()
    for checkpoint in _shared_store.checkpoints():
        if checkpoint.pinned:
            _shared_store.pin(checkpoint, on=False)
    if _shared_store.runs():
        _shared_store.delete("*")
    _shared_store.gc(now=True, force=True)
