"""A store with known contents, and the command line in a process of its own."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import casckpt

GOLDEN = Path(__file__).parent / "golden_output"
PACKAGE_HOME = Path(casckpt.__file__).parents[1]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


class CommandLine:
    """Runs `python -m casckpt` on one store, with nothing of this environment but the path."""

    def __init__(self, store: Path, folder: Path) -> None:
        self.store = store
        self.folder = folder

    def __call__(self, *words: str, stdin: str = "", **environment: str) -> Answer:
        run = subprocess.run(
            [sys.executable, "-m", "casckpt", *map(str, words)],
            cwd=self.folder,
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Answer(run.returncode, run.stdout, run.stderr)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "TZ": "UTC",
            "PYTHONPATH": str(PACKAGE_HOME),
            "CASCKPT_STORE": str(self.store),
            "COLUMNS": "100",
        }

    def begin(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """Start it and leave it at work."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-m", "casckpt", *map(str, words)],
            cwd=self.folder,
            text=True,
            **{"env": self.environment, **streams, **more},
        )


def fill(path: Path) -> None:
    """Save two runs whose values and sizes are always the same."""
    random = np.random.default_rng(7)
    weights = random.standard_normal((128, 96)).astype(np.float32)
    frozen = random.standard_normal((64, 512)).astype(np.float32)
    with casckpt.open(path) as store:
        for epoch in range(1, 7):
            weights = weights + np.float32(0.001) * epoch
            state = {"model": {"weight": weights, "frozen": frozen}, "epoch": epoch, "lr": 0.1}
            loss = math.nan if epoch == 3 else 2.0 / epoch
            metrics = {"val_loss": loss, "accuracy": 0.5 + epoch / 20}
            store.save("bpm/nn", state, epoch * 10, metrics=metrics)
        for step in (100, 200):
            model = {"model": random.bytes(50_000 + step)}
            store.save("bpm/xgboost", model, step, metrics={"val_loss": 50.0 / step})
        store.tag("bpm/nn@20", "paper-v1")
        store.pin("bpm/xgboost@100")


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A store that no test changes."""
    path = tmp_path_factory.mktemp("filled") / "store"
    fill(path)
    return path


@pytest.fixture
def cli(filled, tmp_path):
    """The command line on the store that no test changes."""
    return CommandLine(filled, tmp_path)


@pytest.fixture
def own_cli(tmp_path):
    """The command line on a store of the test's own."""
    store = tmp_path / "store"
    fill(store)
    return CommandLine(store, tmp_path)


@pytest.fixture
def new_cli(tmp_path):
    """The command line on a store that is not there yet."""
    return CommandLine(tmp_path / "store", tmp_path)


_VARIABLE = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "<ID>"),
    (re.compile(r"\b[0-9a-f]{10}\b"), "<id------>"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"), "<RFC3339>"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?( \([^)]*\))?"), "<date and time->"),
    (re.compile(r"/\S+/store\b"), "<STORE>"),
    # What depends on the machine, its libraries or its speed.
    (re.compile(r'("(?:stall_s|durable_s)": )[0-9.e-]+'), r"\1<s>"),
    (re.compile(r'("(?:stored|freed|unique|shared|checked)_bytes": )\d+'), r"\1<bytes>"),
    (re.compile(r'("saved": )-?[0-9.e-]+'), r"\1<share>"),
    (re.compile(r'("environment": )\{[^}]*\}'), r"\1{}"),
    (re.compile(r"(frees|freed) [0-9.]+ \w+ \([0-9,]+ bytes\)"), r"\1 <bytes>"),
    (re.compile(r"(freed) [0-9.]+ \w+$", re.MULTILINE), r"\1 <bytes>"),
    (re.compile(r"^(took|environment) .*$", re.MULTILINE), r"\1 ..."),
    (re.compile(r"[0-9.]+ \w+(: on disk for|  ?on disk| on disk shared| checked)"), r"<bytes>\1"),
)


def normal(text: str) -> str:
    """Return the output with what differs from run to run replaced."""
    for pattern, replacement in _VARIABLE:
        text = pattern.sub(replacement, text)
    return text


@pytest.fixture
def golden():
    """Compare with a file under golden_output/; UPDATE_GOLDEN=1 writes it instead."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            path.write_text(normal(text))
        assert normal(text) == path.read_text()

    return compare
