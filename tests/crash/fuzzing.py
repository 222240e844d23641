"""Row 9: libFuzzer under ASan and UBSan on every parser and decoder of the C core.

The targets are those of native/fuzz; a corpus is kept between runs, outside the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.crash.job import Job
from tests.crash.ledger import ROOT

_NATIVE = ROOT / "native"
_BUILD = ROOT / "build" / "fuzz"
_FLAGS = (
    "-std=c11",
    "-O2",
    "-g",
    "-DCAS_PAIRS_WITH_CLANG",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)
_SECONDS = 20
_SHORT_SECONDS = 4
_LENGTHS = (8192, 64, 64, 512)
# Guided by comparisons an execution costs four times as much: for one turn in four.
_GUIDED_EVERY = 4
_UNGUIDED = "-fno-sanitize-coverage=trace-cmp"
# No stack of each allocation: a finding is repeated to see where it comes from.
_ASAN = "quarantine_size_mb=4:malloc_context_size=0:detect_stack_use_after_return=0"
_DONE = re.compile(rb"Done (\d+) runs|^#(\d+)\s", re.MULTILINE)


def targets() -> list[Path]:
    """Return the sources of the targets."""
    return sorted((_NATIVE / "fuzz").glob("fuzz_*.c"))


def build(target: Path, *, guided: bool) -> Path:
    """Return the program of a target, compiled if it is older than the core."""
    program = _BUILD / f"{target.stem}{'' if guided else '-fast'}"
    objects = [_compiled(source, guided) for source in sorted((_NATIVE / "src").glob("*.c"))]
    if not _is_newer(program, [target, *objects]):
        how = ["-fsanitize=fuzzer", *([] if guided else [_UNGUIDED])]
        _clang(*how, str(target), *map(str, objects), "-lm", "-o", str(program))
    return program


def _compiled(source: Path, guided: bool) -> Path:
    """Return the object of a source of the core, which all targets share."""
    made = _BUILD / f"{source.stem}{'' if guided else '-fast'}.o"
    if not _is_newer(made, [source, *_NATIVE.glob("*/*.h")]):
        how = ["-fsanitize=fuzzer-no-link", *([] if guided else [_UNGUIDED])]
        _clang(*how, "-c", str(source), "-o", str(made))
    return made


def _is_newer(made: Path, sources: list[Path]) -> bool:
    newest = max(path.stat().st_mtime for path in sources)
    return made.exists() and made.stat().st_mtime >= newest


def _clang(*arguments: str) -> None:
    _BUILD.mkdir(parents=True, exist_ok=True)
    command = ["clang", *_FLAGS, f"-I{_NATIVE / 'include'}", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def row(job: Job) -> None:
    """Every target by turns, 20 seconds each, every turn with its own seed; `jobs` at a time."""
    if shutil.which("clang") is None:
        job.skipped("fuzzing", "needs clang with libFuzzer")
        return
    short = job.limit is not None
    programs = {
        (target.stem, guided): build(target, guided=guided)
        for target in targets()
        for guided in ((False,) if short else (False, True))
    }
    totals = {name: 1 if short else None for name, guided in programs if not guided}

    def run(unit: tuple[str, int]) -> subprocess.CompletedProcess[bytes]:
        name, seed = unit
        guided = not short and seed % _GUIDED_EVERY == 0
        return _run(programs[name, guided], name, seed, _SHORT_SECONDS if short else _SECONDS)

    with ThreadPoolExecutor(job.jobs) as pool:
        for units in job.batches(totals, job.jobs):
            for (name, _), done in zip(units, pool.map(run, units), strict=True):
                numbers = [int(a or b) for a, b in _DONE.findall(done.stderr)]
                job.count(max(numbers, default=0))
                job.count(max(numbers, default=0), name)
                if done.returncode != 0:
                    last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
                    job.found(f"# {' '.join(done.args)}", f"{name}: {last}")


def _run(program: Path, name: str, seed: int, seconds: int) -> subprocess.CompletedProcess[bytes]:
    """Run the program of a target for so long, with a seed, on the target's corpus."""
    corpus = _BUILD / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    command = [str(program), f"-seed={seed + 1}", f"-max_len={_LENGTHS[seed % len(_LENGTHS)]}"]
    # To choose inputs by how rare what they reach is takes a fifth of the time of short executions.
    command += [f"-max_total_time={seconds}", "-entropic=0"]
    command += [f"-artifact_prefix={_BUILD}/{name}-", str(corpus)]
    environment = {**_environment(), "ASAN_OPTIONS": _ASAN}
    return subprocess.run(command, capture_output=True, check=False, env=environment)


def _environment() -> dict[str, str]:
    """Return the environment without the shim, which has no business in a fuzzer."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
