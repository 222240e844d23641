"""Which branches the tests take: `python -m tests.tasks coverage`.

Writes bench/results/coverage.json. The C core is built with clang's coverage, conditions included
(MC/DC, from clang 18 on), in a folder of its own. Its program of tests runs here, under every
kernel of this processor, and on emulated processors that have less or more; its Python tests run on
an extension built from the same objects; what fuzzing has kept is replayed. A branch that nothing
takes must be in `UNTAKEN`, with the reason, and all that is there must be untaken: else the status
is 1. `casckpt/store` and `casckpt/checkpoint` are measured by coverage.py, child processes
included, over `SUITES`.

    python -m tests.branches [native] [python] [--tests PATH...]

A part that is not run keeps what the file says of it, with the commit that it was for; so does
`python` where a test failed, and the status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.harness import machine_facts
from tests import emulator

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "coverage.json"
NATIVE = ROOT / "native"
FLAGS = (
    "-std=c11",
    "-O1",
    "-g",
    "-fPIC",
    "-DCAS_PAIRS_WITH_CLANG",
    "-fprofile-instr-generate",
    "-fcoverage-mapping",
)
MCDC = "-fcoverage-mcdc"
MCDC_SINCE = 18
# No AVX2; no SSE4.1; AVX2 without POPCNT; AVX2 without AVX-512.
PROCESSORS = ("Nehalem", "core2duo", "max,-popcnt", "Haswell")
CORPORA = (ROOT / "build" / "fuzz", NATIVE / "build")
PACKAGES = ("casckpt/store", "casckpt/checkpoint")
SUITES = (
    "tests/unit/store",
    "tests/unit/checkpoint",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/unit").glob("test_api_*.py")),
    "tests/golden",
    "tests/reader",
    "tests/property",
    "tests/crash",
    # what is only used from above: commands, runs, and files of other libraries
    "tests/unit/cli",
    "tests/unit/training",
    *(f"tests/adapters/test_{name}.py" for name in ("files", "file_cuts", "fsspec", "dcp")),
    "tests/adapters/test_torch_state.py",
    "tests/e2e/test_golden.py",
    "tests/e2e/test_changes.py",
)


class Untaken(NamedTuple):
    """Sides of a condition that no test can take here, and why."""

    file: str
    function: str
    condition: str
    sides: str
    why: str


_AVX512 = "neither this processor nor an emulator at hand has AVX-512"
_PARTLY = "no processor or emulator at hand has AVX-512F without VL and BW"
_CANNOT_FAIL = "the call cannot fail with these arguments; asked all the same"
_CHECKED = "no case fits: the parameters were checked before"
UNTAKEN = (
    Untaken("blake3_lanes.h", r"cas_b3_\w+_avx512", ".*", "TF", _AVX512),
    Untaken("dispatch.c", "cas_kernel_available", r'.*"avx512f".*', "T", _AVX512),
    Untaken("dispatch.c", "cas_kernel_available", r'.*"avx512(vl|bw)".*', "F", _PARTLY),
    Untaken("dispatch.c", "cas_kernel_available", r'.*"avx512(vl|bw)".*', "TF", _AVX512),
    Untaken("chunking.c", "cas_gear_table", "status != CAS_OK", "T", _CANNOT_FAIL),
    Untaken("chunking.c", "cas_chunker_init", "status != CAS_OK", "T", _CANNOT_FAIL),
    Untaken("entropy.c", "cas_entropy_encode", "status != CAS_OK", "T", _CANNOT_FAIL),
    Untaken("filters_avx2.c", r"cas_(split|join)_avx2", r".*\(rotate != 0\)", "T", _CHECKED),
    Untaken(
        "filters_portable.c", r"cas_(split|join)_portable", r".*\(rotate != 0\)", "T", _CHECKED
    ),
    Untaken(
        *("entropy_model.c", "best_step", r"\(int32_t\)s != model->common", "T"),
        "while slots are missing, no other value than the common one has 4,095 of them",
    ),
)


@dataclass
class Count:
    """What there is, and what of it was taken."""

    taken: int = 0
    total: int = 0

    def add(self, taken: int, total: int) -> None:
        """Count more."""
        self.taken += taken
        self.total += total


class Place(NamedTuple):
    """A condition in a function; those of macros and headers once for each function."""

    file: str
    function: str
    line: int
    column: int
    line_end: int
    column_end: int


@dataclass
class Taken:
    """What the runs of all programs took, added up over the copies of a function."""

    branches: dict[Place, list[int]] = field(default_factory=dict)
    conditions: dict[Place, list[bool]] = field(default_factory=dict)
    lines: dict[str, Count] = field(default_factory=dict)

    def missing(self) -> Iterator[tuple[Place, str]]:
        """Yield the conditions that were never true ("T"), never false ("F"), or neither."""
        for place, (true, false) in sorted(self.branches.items()):
            if not true or not false:
                yield place, "T" * (not true) + "F" * (not false)


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the result.

    Returns: 1 if a branch of C is wrongly taken or not taken, or a test failed; else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.branches", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["native", "python"])
    parser.add_argument("--tests", nargs="+", default=SUITES, help="what python is measured over")
    options = parser.parse_args(arguments)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="casckpt-branches-") as folder:
        for part in options.parts:
            work = Path(folder) / part
            work.mkdir()
            began_s = time.monotonic()
            if part == "native":
                found, untaken = _native(work)
                wrong += untaken
            else:
                found = _python(work, options.tests)
                if found["status"]:
                    wrong.append(f"pytest ended with {found['status']}: {RESULT.name} stays")
                    continue
            facts = machine_facts(work)
            found["seconds"] = round(time.monotonic() - began_s)
            result[part] = {"ran_on": facts, **found}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for line in wrong:
        sys.stdout.write(line + "\n")
    return 1 if wrong else 0


# ---- the C core ----


def _native(work: Path) -> tuple[dict[str, Any], list[str]]:
    version = _clang_version()
    if version is None:
        return {"skipped": "no clang with llvm-cov"}, []
    suffix, number = version
    clang, mcdc = f"clang{suffix}", (MCDC,) if number >= MCDC_SINCE else ()
    flags = (*FLAGS, *mcdc, f"-I{NATIVE / 'include'}", f"-I{work}")
    (work / "vectors.h").write_bytes(_output(sys.executable, NATIVE / "tests/vectors_header.py"))
    for source in NATIVE.glob("src/*.c"):
        _run(clang, *flags, "-c", source, "-o", work / f"{source.stem}.o")
    objects = sorted(work.glob("*.o"))
    smoke = work / "smoke"
    _run(clang, *flags, *objects, *NATIVE.glob("tests/*.c"), "-lm", "-o", smoke)
    runs = [_profiled(work, "here", smoke)]
    if shutil.which("qemu-x86_64"):
        runs += [
            _profiled(work, cpu, "qemu-x86_64", "-cpu", cpu, smoke, "quick") for cpu in PROCESSORS
        ]
    if not emulator.missing():
        static = work / "smoke-static"
        _run(clang, *flags, "-static", *objects, *NATIVE.glob("tests/*.c"), "-lm", "-o", static)
        (work / "wide.profraw").write_bytes(emulator.run(static).kept)
        runs.append(emulator.PROCESSOR)
    extension = _python_tests(work, clang, flags, objects)
    inputs = _replay(work, clang, flags, objects)
    profile = work / "all.profdata"
    _run(f"llvm-profdata{suffix}", "merge", "-sparse", *work.glob("*.profraw"), "-o", profile)
    export = (f"llvm-cov{suffix}", "export", "-format=text", f"-instr-profile={profile}", smoke)
    taken = _read(json.loads(_output(*export, "-object", extension))["data"][0])
    return _summary(taken, f"clang {number}", runs, inputs)


def _clang_version() -> tuple[str, int] | None:
    """Return the suffix of the newest complete clang's programs, and its number."""
    for suffix in (*(f"-{number}" for number in range(24, 13, -1)), ""):
        names = (f"clang{suffix}", f"llvm-profdata{suffix}", f"llvm-cov{suffix}")
        if all(shutil.which(name) for name in names):
            match = re.search(rb"clang version (\d+)", _output(names[0], "--version"))
            return (suffix, int(match[1])) if match else None
    return None


def _python_tests(work: Path, clang: str, flags: Iterable[str], objects: Iterable[Path]) -> Path:
    """Run the Python tests of the C core, over a copy of the package; return the extension."""
    copy = work / "copy"
    ignored = shutil.ignore_patterns("build", "__pycache__", "*.so", "_core.c")
    for name in ("casckpt", "native", "tests/unit/native", "tests/vectors"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, copy / name)
    _run(sys.executable, "build_cffi.py", cwd=copy / "native")
    extension = copy / "casckpt" / "native" / "_core.abi3.so"
    python = ("-DPy_LIMITED_API=0x030B0000", f"-I{sysconfig.get_path('include')}", "-shared")
    _run(clang, *flags, *python, copy / "native/_core.c", *objects, "-lm", "-o", extension)
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/native")
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "LLVM_PROFILE_FILE": f"{work}/python-%p.profraw",
    }
    _run(*command, cwd=copy, env=environment)
    return extension


def _replay(work: Path, clang: str, flags: Iterable[str], objects: Iterable[Path]) -> int:
    """Run the targets over what fuzzing has kept on this machine; return how much that was."""
    inputs = 0
    for target in sorted(NATIVE.glob("fuzz/fuzz_*.c")):
        corpora = [
            corpus
            for folder in CORPORA
            if (corpus := folder / f"corpus-{target.stem}").is_dir() and any(corpus.iterdir())
        ]
        if not corpora:
            continue
        program = work / target.stem
        _run(clang, *flags, "-fsanitize=fuzzer", *objects, target, "-lm", "-o", program)
        _profiled(work, target.stem, program, "-runs=0", *corpora)
        inputs += sum(len(list(corpus.iterdir())) for corpus in corpora)
    return inputs


def _profiled(work: Path, name: str, *command: object) -> str:
    _run(*command, env={**os.environ, "LLVM_PROFILE_FILE": f"{work}/{name}-%p.profraw"})
    return name


def _read(document: dict[str, Any]) -> Taken:
    taken = Taken()
    for function in document["functions"]:
        files = [Path(name) for name in function["filenames"]]
        name = function["name"].rsplit(":", 1)[-1]
        for *span, true, false, file, _, _ in function["branches"]:
            if files[file].parent.name == "src":
                sides = taken.branches.setdefault(Place(files[file].name, name, *span), [0, 0])
                sides[0] += true
                sides[1] += false
        for *span, file, _, shown in function.get("mcdc_records", ()):
            if files[file].parent.name == "src":
                place = Place(files[file].name, name, *span)
                before = taken.conditions.get(place, [False] * len(shown))
                taken.conditions[place] = [a or b for a, b in zip(before, shown, strict=True)]
    for file in document["files"]:
        path, lines = Path(file["filename"]), file["summary"]["lines"]
        if path.parent.name == "src":
            taken.lines.setdefault(path.name, Count()).add(lines["covered"], lines["count"])
    return taken


def _summary(
    taken: Taken, compiler: str, runs: list[str], inputs: int
) -> tuple[dict[str, Any], list[str]]:
    files: dict[str, dict[str, Count]] = {}

    def count(name: str, what: str, some: int, of: int) -> None:
        for key in (name, "all"):
            files.setdefault(key, {}).setdefault(what, Count()).add(some, of)

    for name, lines in sorted(taken.lines.items()):
        count(name, "lines", lines.taken, lines.total)
    for place, sides in taken.branches.items():
        count(place.file, "branches", sum(map(bool, sides)), 2)
    for place, shown in taken.conditions.items():
        count(place.file, "mcdc", sum(shown), len(shown))
    untaken, wrong = _explain(taken)
    document = {
        "compiler": compiler,
        "processors": runs,
        "fuzz_inputs": inputs,
        "all": _plain(files.pop("all")),
        "files": {name: _plain(counts) for name, counts in sorted(files.items())},
        "explained": sum(len(one["sides"]) for one in untaken if one["why"]),
        "untaken": untaken,
    }
    return document, wrong


def _explain(taken: Taken) -> tuple[list[dict[str, Any]], list[str]]:
    """Return each untaken branch with its reason, and what is untaken without, or not untaken."""
    untaken, wrong, used = [], [], set()
    for place, sides in taken.missing():
        text = _source_of(place)
        known = next((one for one in UNTAKEN if _fits(one, place, text, sides)), None)
        used.add(known)
        where = f"{place.file}:{place.line} {place.function}"
        untaken.append(
            {"where": where, "condition": text, "sides": sides, "why": known.why if known else ""}
        )
        if known is None:
            wrong.append(f"{where}: never {sides}: {text}")
    # Where Bochs is, or on another processor, there is an AVX-512.
    wrongly = {one for one in UNTAKEN if one.why not in (_AVX512, _PARTLY)} - used
    wrong += [f"{one.file} {one.function}: taken: {one.condition}" for one in wrongly]
    return untaken, wrong


def _fits(one: Untaken, place: Place, text: str, sides: str) -> bool:
    return (
        one.file == place.file
        and re.fullmatch(one.function, place.function) is not None
        and re.fullmatch(one.condition, text) is not None
        and set(sides) <= set(one.sides)
    )


def _source_of(place: Place) -> str:
    lines = (NATIVE / "src" / place.file).read_text().splitlines()
    end = place.column_end - 1 if place.line == place.line_end else None
    return lines[place.line - 1][place.column - 1 : end].strip()


def _plain(counts: dict[str, Count]) -> dict[str, list[int]]:
    return {what: [count.taken, count.total] for what, count in sorted(counts.items())}


# ---- store and checkpoint ----


def _python(work: Path, tests: Iterable[str]) -> dict[str, Any]:
    settings, modules = work / "coveragerc", [one.replace("/", ".") for one in PACKAGES]
    settings.write_text(
        "[run]\nbranch = true\nparallel = true\nrelative_files = true\n"
        f"patch = subprocess, _exit\ndata_file = {work}/data\nsource = {', '.join(modules)}\n"
        "[report]\nexclude_also =\n    if TYPE_CHECKING:\n    ^\\s*\\.\\.\\.$\n"
    )
    # The tests of programs started elsewhere must measure this tree too.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    # Programs of another user are measured too.
    for folder in (work.parent, work):
        folder.chmod(0o777)
    workers = ("-n", "2", "--dist", "worksteal")
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, *tests)
    measure = (sys.executable, "-m", "coverage")
    began = subprocess.run(
        [*measure, "run", f"--rcfile={settings}", *pytest], cwd=ROOT, env=environment, check=False
    )
    _run(*measure, "combine", "-q", f"--rcfile={settings}", cwd=ROOT)
    _run(*measure, "json", "-q", f"--rcfile={settings}", "-o", work / "all.json", cwd=ROOT)
    files = json.loads((work / "all.json").read_text())["files"]
    counts: dict[str, dict[str, Count]] = {}
    for name, found in files.items():
        package = next(one for one in PACKAGES if name.startswith(one))
        for key in (name, package):
            one = counts.setdefault(key, {"lines": Count(), "branches": Count()})
            lines = found["summary"]
            one["lines"].add(lines["covered_lines"], lines["num_statements"])
            one["branches"].add(lines["covered_branches"], lines["num_branches"])
    packages = {one: _plain(counts.pop(one)) for one in PACKAGES if one in counts}
    return {
        "tests": list(tests),
        "status": began.returncode,
        "packages": packages,
        "files": {name: _plain(one) for name, one in sorted(counts.items())},
    }


def _run(*command: object, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    """Run a program; what it says is shown only if it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, check=False
    )
    if done.returncode:
        sys.stdout.write((done.stdout + done.stderr).decode("utf-8", "replace"))
        raise SystemExit(f"{command[0]} failed with status {done.returncode}")


def _output(*command: object) -> bytes:
    return subprocess.run([str(word) for word in command], capture_output=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
