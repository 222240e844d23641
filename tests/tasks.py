"""The task list: `python -m tests.tasks [TASK...]`, all the usual ones by default.

Each task is a command. A task whose tool is missing on this machine says so and is skipped; any
other failure ends the list with its status.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable


@dataclass(frozen=True)
class Task:
    """A named command; `needs` are programs without which it is skipped.

    One that is not `usual` runs only if it is named; a `greedy` one takes all that follows it.
    """

    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    usual: bool = True
    greedy: bool = False


def _pytest(*arguments: str) -> tuple[str, ...]:
    return (PYTHON, "-m", "pytest", "-q", *arguments)


TASKS = {
    "lint": Task((PYTHON, "-m", "ruff", "check", ".")),
    "format": Task((PYTHON, "-m", "ruff", "format", "--check", "casckpt", "tests", "bench")),
    "types": Task((PYTHON, "-m", "mypy")),
    # ASan and UBSan, NEON under qemu, and 10 s of fuzzing a target; names what it has to skip
    "sanitizers": Task(("sh", "native/tests/run_sanitizers.sh", "10"), ("gcc",)),
    # that decoders of the C core read and write nothing outside, for all inputs up to some lengths
    "proof": Task(("sh", "native/tests/proof/prove.sh"), ("frama-c",)),
    # the AVX-512 kernel under Linux in Bochs, a minute and a half; names what it has to skip
    "avx512": Task((PYTHON, "-m", "tests.emulator"), usual=False),
    "tests": Task(_pytest("-n", "2", "--dist", "worksteal")),
    # examples that no run before has drawn, and more of them
    "property": Task(_pytest("--hypothesis-profile=other", "tests/property"), usual=False),
    # 20 kills of each program that trains, the better part of an hour; writes bench/results
    "kills": Task((PYTHON, "-m", "tests.kills"), usual=False),
    # which branches of the C core, the store and the checkpoints are taken; writes bench/results
    "coverage": Task((PYTHON, "-m", "tests.branches"), usual=False),
    # `campaign [ROW...] --minutes 30`: adds to the counts in bench/results/reliability
    "campaign": Task((PYTHON, "-m", "tests.crash.rows"), usual=False, greedy=True),
}


def main(names: list[str]) -> int:
    """Run the named tasks in order and return the first status that is not 0."""
    greedy = next((at for at, name in enumerate(names) if name in TASKS and TASKS[name].greedy), -1)
    names, rest = (names, []) if greedy < 0 else (names[: greedy + 1], names[greedy + 1 :])
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        sys.stderr.write(f"no task {unknown[0]!r}; there are {', '.join(TASKS)}\n")
        return 2
    for name in names or [name for name, task in TASKS.items() if task.usual]:
        task = TASKS[name]
        missing = [tool for tool in task.needs if shutil.which(tool) is None]
        if missing:
            sys.stdout.write(f"== {name}: SKIPPED, {', '.join(missing)} is not installed\n")
            continue
        command = (*task.command, *(rest if task.greedy else ()))
        sys.stdout.write(f"== {name}: {' '.join(command[1:])}\n")
        sys.stdout.flush()
        began = time.monotonic()
        status = subprocess.run(
            command, cwd=ROOT, check=False, env={**os.environ, "PYTHONHASHSEED": "0"}
        ).returncode
        sys.stdout.write(f"== {name}: status {status}, {time.monotonic() - began:.0f} s\n")
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
