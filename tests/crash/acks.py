"""What a workload was told, line by line, and what must therefore be in the store."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from casckpt.errors import CasckptError
from tests.crash import shim

Place = tuple[str, int]

_NO_LOCK = ("can't allocate lock", "can't allocate read lock")


class AckLog:
    """Written by the child, outside the store: a line before each call and one after it returns."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def _line(self, **facts: Any) -> None:
        text = json.dumps(facts)
        os.write(self._descriptor, (text + "\n").encode())
        shim.note(text)

    @contextlib.contextmanager
    def call(self, name: str, **facts: Any) -> Iterator[None]:
        """Record a call; an error of casckpt is noted and passed over, any other is a finding."""
        self._line(event="begin", call=name, **facts)
        try:
            yield
        except CasckptError as exc:
            self._line(
                event="error", call=name, kind=type(exc).__name__, code=exc.exit_code, text=str(exc)
            )
            return
        except Exception as exc:
            if _says_no_memory(exc):
                self._line(event="error", call=name, kind="MemoryError", code=0, text="no memory")
                return
            self._line(event="untyped", call=name, text=f"{type(exc).__name__}: {exc}")
            return
        self._line(event="done", call=name, **facts)

    def finish(self, operations: int) -> None:
        """Record that the workload came to its end, and how many operations it made."""
        self._line(event="finish", operations=operations)


def _says_no_memory(error: Exception) -> bool:
    """Tell whether Python had no memory, in whatever words.

    Where it cannot look whether a path is one, it says that a PosixPath is no os.PathLike. Of a
    path that says so about any other reason it would be a lie: a PosixPath is one. A lock that
    gets no memory is a RuntimeError, an argument of ctypes that gets none an ArgumentError, and a
    call that fails without saying why a SystemError.
    """
    said = str(error)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, TypeError) and said.endswith("not PosixPath") and "PathLike" in said)
        or (isinstance(error, RuntimeError) and said in _NO_LOCK)
        or (isinstance(error, SystemError) and "without" in said and "exception" in said)
        or (type(error).__name__ == "ArgumentError" and "MemoryError" in said)
    )


class Expected:
    """The states each checkpoint may be in: exactly one if nothing was left unanswered."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.live: dict[Place, set[int | None]] = {}
        self.tags: dict[Place, dict[str, bool]] = {}
        self.metrics: dict[Place, dict[str, float]] = {}
        self.untyped: list[str] = []
        self.errors: list[str] = []
        self.error_codes: set[int] = set()
        self.operations: int | None = None
        self.begun: set[str] = set()
        self.done: list[str] = []
        self.results: set[int] = set()
        self.rebuilt = False
        self._deleted: dict[Place, set[int | None]] = {}
        for line in lines:
            self._add(line)

    @staticmethod
    def read(path: Path) -> Expected:
        """Return what a log says; a torn last line was not said."""
        text = path.read_text() if path.exists() else ""
        return Expected([json.loads(line) for line in text.split("\n")[:-1] if line])

    def _add(self, line: dict[str, Any]) -> None:
        event, name = line["event"], line.get("call", "")
        if event == "untyped":
            self.untyped.append(f"{name}: {line['text']}")
        elif event == "error":
            self.errors.append(f"{name}: {line['kind']} ({line['code']}): {line['text']}")
            self.error_codes.add(line["code"])
        elif event == "finish":
            self.operations = line["operations"]
        else:
            self.begun.add(name)
            if event == "done":
                self.done.append(name)
                if name == "result":
                    self.results.add(line["key"])
            self.rebuilt |= name == "rebuild"
            self._effect(name, line, sure=event == "done")

    def _effect(self, name: str, line: dict[str, Any], *, sure: bool) -> None:
        if "run" not in line:
            return
        place = (line["run"], line["step"])
        before = self.live.setdefault(place, {None})
        if name == "save":
            self._set(place, {line["seed"]}, sure)
        elif name == "delete":
            self._deleted[place] = {seed for seed in before if seed is not None}
            self._set(place, {None}, sure)
        elif name == "undelete":
            self._set(place, self._deleted.get(place, {None}), sure)
        elif name == "tag" and sure:
            self.tags.setdefault(place, {})[line["tag"]] = True
        elif name == "untag":
            self.tags.setdefault(place, {}).pop(line["tag"], None)
        elif name == "metric":
            metrics = self.metrics.setdefault(place, {})
            if sure:
                metrics[line["metric"]] = line["value"]
            else:
                metrics.pop(line["metric"], None)

    def _set(self, place: Place, seeds: set[int | None], sure: bool) -> None:
        self.live[place] = set(seeds) if sure else self.live[place] | seeds
