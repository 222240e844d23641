"""Counts that accumulate: a JSON file for each row of the campaign, in bench/results/reliability.

A file belongs to the code that its row depends on. When that code changes, what was counted moves
to `before`, and the row begins anew; other rows keep what they have. Comments and docstrings are
no change.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "reliability"


def digest_of(patterns: Iterable[str], root: Path = ROOT) -> str:
    """Return a hash of what the files that match the patterns below `root` mean."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        raw = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(_MEANINGS.get(path.suffix, bytes)(raw))
    return digest.hexdigest()


def _meaning_of_python(source: bytes) -> bytes:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [part for part in body if not _is_docstring(part)]
    return ast.dump(tree).encode()


def _is_docstring(part: ast.AST) -> bool:
    return (
        isinstance(part, ast.Expr)
        and isinstance(part.value, ast.Constant)
        and isinstance(part.value.value, str)
    )


# What may hold the marks of a comment comes first, and stays.
_C_PARTS = re.compile(
    rb"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?:\s|//[^\n]*|/\*.*?\*/)+""", re.DOTALL
)


def _meaning_of_c(source: bytes) -> bytes:
    return _C_PARTS.sub(lambda part: part[1] or b" ", source)


_MEANINGS = {".py": _meaning_of_python, ".c": _meaning_of_c, ".h": _meaning_of_c}


def git(*arguments: str) -> str:
    """Return what git prints, or nothing where there is no git."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


@dataclass
class Ledger:
    """The result file of one row; `cursor` is where its next run goes on."""

    path: Path
    sources: str
    counts: dict[str, int] = field(default_factory=dict)
    cursor: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, str]] = field(default_factory=list)
    before: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    @staticmethod
    def open(path: Path, patterns: Iterable[str], about: dict[str, Any]) -> Ledger:
        """Read a result file; what other code was counted for is set aside."""
        ledger = Ledger(path, digest_of(patterns), about=about)
        old = json.loads(path.read_text()) if path.exists() else {}
        ledger.before = old.get("before", [])
        if old.get("sources") == ledger.sources:
            ledger.counts, ledger.cursor = old["counts"], old["cursor"]
            ledger.runs, ledger.found = old["runs"], old["found"]
        elif old.get("runs"):
            ledger.before.append({key: old[key] for key in ("counts", "runs", "found")})
        commit = git("rev-parse", "HEAD")
        ledger.runs.append({"commit": commit, "when": _now(), "seconds": 0, "counts": {}})
        return ledger

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count, and to what this run has done."""
        for counts in (self.counts, self.runs[-1]["counts"]):
            counts[name] = counts.get(name, 0) + number

    def bad(self, replay: str, said: str) -> None:
        """Note a finding with the line that repeats it."""
        self.count("bad")
        self.found.append({"replay": replay, "said": said[:500], "when": _now()})

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.runs[-1]["seconds"] = round(time.monotonic() - self._began)
        document = {
            **self.about,
            "machine": f"{platform.system()} {platform.release()}, {os.cpu_count()} cores",
            "sources": self.sources,
            "counts": {"bad": 0, **self.counts},
            "cursor": self.cursor,
            "runs": [run for run in self.runs if run["counts"]],
            "found": self.found,
            "before": self.before,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(document, indent=1) + "\n")
        fresh.replace(self.path)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
