"""The training process, as the demo sees it: started, listened to, killed."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from casckpt.errors import OperationFailed
from casckpt.programs import command_of, environment_of

Event = dict[str, Any]


class Training:
    """One process that runs `train.py`; leaving the `with` block ends it."""

    def __init__(self, store: Path, files: Path) -> None:
        """Start it."""
        self._errors = (files / "errors.txt").open("w+")
        self._process = subprocess.Popen(
            command_of("casckpt.cli.demo.train", str(store), str(files)),
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # Threads that spin while they wait steal the cores of the demo itself.
            env=environment_of(OMP_WAIT_POLICY="PASSIVE", PYTHONUNBUFFERED="1"),
        )

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def __enter__(self) -> Training:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave no process behind."""
        self.kill()
        self._errors.close()

    def events(self) -> Iterator[Event]:
        """Yield what the process tells, until it ends or is killed.

        Raises:
            OperationFailed: if it ended with an error of its own.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # The last line of a killed process may be half a line.
            if line.endswith("\n"):
                yield json.loads(line)
        code = self._process.wait()
        if code not in (0, -signal.SIGKILL):
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:]
            raise OperationFailed(
                f"the training process of the demo failed with exit code {code}",
                last[0] if last else "it gave no reason",
                "run the demo again with --keep DIR and look at DIR/files/errors.txt",
            )

    def kill(self) -> None:
        """Kill it as `kill -9` does: no handler runs, nothing is flushed."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
