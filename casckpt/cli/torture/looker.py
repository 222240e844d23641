"""Looks at stores that were left by a kill or a power failure: a process of its own, as it may die.

`python -m casckpt.cli.torture.looker` reads one job a line from stdin, as JSON: `store`, `lines`
(what workers said), `thorough`; and answers each with one line, a list of problems.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import casckpt
from casckpt.cli.torture.expected import Expected, Line, same, state
from casckpt.errors import CasckptError
from casckpt.store import opening, walk

_SEED = 7_000_001


def look(path: Path, lines: list[Line], *, thorough: bool) -> list[str]:
    """Return what is wrong with a store; `thorough` goes on to work in it."""
    expected = Expected(lines)
    if not (path / "format.json").exists():
        if expected.is_open:
            return ["the store was opened and is gone"]
        path.mkdir(exist_ok=True)
    try:
        with casckpt.open(path) as store:
            said = expected.problems(store)
            found = store.verify("bytes" if thorough else "refs")
            said += [f"verify: {damage.pack} {damage.message}" for damage in found.damaged]
            if thorough:
                checkpoint = store.save("after", state(_SEED))
                store.gc(now=True)
                said += [f"after gc: {problem}" for problem in _but(expected.problems(store))]
                if not same(store.restore(checkpoint), _SEED):
                    said.append("the next save came back as something else")
                store.delete(checkpoint)
        return said
    except CasckptError as exc:
        return [f"{type(exc).__name__}: {' / '.join(str(exc).splitlines())}"]


def _but(problems: list[str]) -> list[str]:
    """Return the problems without that of the save this program made itself."""
    return [problem for problem in problems if not problem.startswith("after@")]


def _walk_here(index: Path) -> bool:
    """Walk an index in this process, which may die of it: that is what it is for."""
    walk.walk(index)
    return True


def main() -> None:
    """Answer jobs until stdin ends."""
    opening.walk_index = _walk_here
    logging.disable(logging.CRITICAL)
    # Answers go to the first stdout; whatever else writes there must not spoil them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for text in sys.stdin:
        job = json.loads(text)
        said = look(Path(job["store"]), job["lines"], thorough=job["thorough"])
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
