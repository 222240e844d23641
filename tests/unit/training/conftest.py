from __future__ import annotations

import importlib
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

import casckpt

_numbers = itertools.count()


@pytest.fixture(scope="session")
def _training_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[casckpt.Store]:
    with casckpt.open(tmp_path_factory.mktemp("training") / "store") as store:
        yield store


@pytest.fixture
def store(_training_store: casckpt.Store) -> casckpt.Store:
    """Return a store that all tests share: each works under a name of its own."""
    return _training_store


@pytest.fixture
def name() -> str:
    """Return the name of a run that no other test has."""
    return f"run-{next(_numbers)}"


class Training:
    """A script that trains: a counter, and a list that says what it saw."""

    def __init__(self, store: casckpt.Store, name: str) -> None:
        self.store, self.name = store, name
        self.seen: list[int] = []

    def __call__(
        self,
        total: int,
        *,
        stop_at: int | None = None,
        loss: Callable[[int], float] = float,
        run: dict | None = None,
        **loop,
    ) -> dict:
        """Train; at epoch `stop_at` the body dies, as a process does that says no goodbye."""
        state = {"epochs": [], "value": 0.0}
        self.seen = []
        with self.store.run(self.name, **(run or {})) as opened:
            for epoch in opened.epochs(total, state, **loop):
                self.seen.append(epoch)
                if epoch == stop_at:
                    raise RuntimeError("power cut")
                state["epochs"].append(epoch)
                opened.log(loss=loss(epoch))
        return state

    def until(self, total: int, stop_at: int, **more) -> None:
        with pytest.raises(RuntimeError, match="power cut"):
            self(total, stop_at=stop_at, **more)

    @property
    def steps(self) -> list[int]:
        return [one.step for one in self.store.checkpoints(self.name)]

    @property
    def reasons(self) -> dict[int, tuple[str, ...]]:
        return {one.step: one.reasons for one in self.store.checkpoints(self.name)}


@pytest.fixture
def train(store: casckpt.Store, name: str) -> Training:
    return Training(store, name)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write and import a package of `main` and others; give the module `main`."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(**modules: str):
        # Always the same name, as in the next process: names of modules count here and there.
        name = "coded"
        for known in [one for one in sys.modules if one.partition(".")[0] == name]:
            del sys.modules[known]
        folder = tmp_path / f"{next(_numbers)}"
        (folder / name).mkdir(parents=True)
        monkeypatch.syspath_prepend(str(folder))
        (folder / name / "__init__.py").write_text("")
        for module, text in modules.items():
            path = folder / name / f"{module}.py"
            path.write_text(textwrap.dedent(text).replace("PKG", name))
        importlib.invalidate_caches()
        return importlib.import_module(f"{name}.main")

    return make
