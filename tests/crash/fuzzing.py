"""Row 9: libFuzzer under ASan and UBSan on every parser and decoder of the C core.

The targets are those of native/fuzz; a corpus is kept between runs, outside the repository.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.crash.job import Job
from tests.crash.ledger import ROOT

_NATIVE = ROOT / "native"
_BUILD = ROOT / "build" / "fuzz"
_FLAGS = ("-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_RUNS = 500_000
_SHORT_RUNS = 100_000
_DONE = re.compile(rb"Done (\d+) runs|^#(\d+)\s", re.MULTILINE)


def targets() -> list[Path]:
    """Return the sources of the targets."""
    return sorted((_NATIVE / "fuzz").glob("fuzz_*.c"))


def build(target: Path) -> Path:
    """Return the program of a target, compiled if it is older than the core."""
    program = _BUILD / target.stem
    objects = [_compiled(source) for source in sorted((_NATIVE / "src").glob("*.c"))]
    if not _is_newer(program, [target, *objects]):
        _clang("-fsanitize=fuzzer", str(target), *map(str, objects), "-lm", "-o", str(program))
    return program


def _compiled(source: Path) -> Path:
    """Return the object of a source of the core, which all targets share."""
    made = _BUILD / f"{source.stem}.o"
    if not _is_newer(made, [source, *_NATIVE.glob("*/*.h")]):
        _clang("-fsanitize=fuzzer-no-link", "-c", str(source), "-o", str(made))
    return made


def _is_newer(made: Path, sources: list[Path]) -> bool:
    newest = max(path.stat().st_mtime for path in sources)
    return made.exists() and made.stat().st_mtime >= newest


def _clang(*arguments: str) -> None:
    _BUILD.mkdir(parents=True, exist_ok=True)
    command = ["clang", *_FLAGS, f"-I{_NATIVE / 'include'}", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def row(job: Job) -> None:
    """Every target by turns, some hundred thousand executions at a time, each with its own seed."""
    if shutil.which("clang") is None:
        job.skipped("fuzzing", "needs clang with libFuzzer")
        return
    programs = {target.stem: build(target) for target in targets()}
    runs = _SHORT_RUNS if job.limit is not None else _RUNS
    for name, seed in job.turns(dict.fromkeys(programs)):
        corpus = _BUILD / f"corpus-{name}"
        corpus.mkdir(exist_ok=True)
        command = [str(programs[name]), f"-runs={runs}", f"-seed={seed + 1}", "-max_len=8192"]
        command += [
            "-max_total_time=20",
            "-len_control=20",
            f"-artifact_prefix={_BUILD}/{name}-",
            str(corpus),
        ]
        done = subprocess.run(command, capture_output=True, check=False)
        numbers = [int(a or b) for a, b in _DONE.findall(done.stderr)]
        job.count(max(numbers, default=0))
        job.count(max(numbers, default=0), name)
        if done.returncode != 0:
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            job.found(f"# {' '.join(command)}", f"{name}: {last}")
