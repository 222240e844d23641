"""Run benchmarks: `python -m bench.run [QUESTION...] [--quick] [--out DIR]`."""

from __future__ import annotations

import argparse
import gc
import importlib
import tempfile
import time
import traceback
from pathlib import Path

from bench import plots, report
from bench.harness import RESULTS, ROUNDS_MIN, Context, default_cache, machine_facts

QUESTIONS = ("native", "size", "others", "save", "restore", "unchanged", "stall", "gc", "compact",
             "cli", "scale", "objects", "stage", "training", "booster",
             "coders", "entropy")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the questions, write one result file each, print tables and draw plots.

    Returns: 1 if a goal was missed or a question failed, else 0.
    """
    options = _parser().parse_args(arguments)
    if unknown := set(options.questions) - set(QUESTIONS):
        raise SystemExit(f"no such question: {', '.join(sorted(unknown))}; see --help")
    options.out.mkdir(parents=True, exist_ok=True)
    options.cache.mkdir(parents=True, exist_ok=True)
    work_root = options.work or options.cache
    documents, failed = [], []
    for question in options.questions or QUESTIONS:
        module = importlib.import_module(f"bench.{question}")
        with tempfile.TemporaryDirectory(prefix="work-", dir=work_root) as work:
            context = Context(options.cache, Path(work), options.quick, options.rounds)
            gc.freeze()  # what earlier questions imported would slow each collection down
            start = time.monotonic()
            try:
                path = module.run(context).write(options.out, machine_facts(Path(work)))
            except Exception:  # the other questions still have answers
                traceback.print_exc()
                failed.append(question)
                continue
        document = report.read(path)
        documents.append(document)
        print(report.as_text(document))
        took = time.monotonic() - start
        print(f"({question}: {took:.0f} s, written to {path.name})\n", flush=True)
    plots.draw(options.out)
    goals = [goal for document in documents for goal in document["goals"]]
    missed = [goal["name"] for goal in goals if not goal["met"]]
    print("all goals met" if not missed else "goals missed: " + "; ".join(missed))
    if failed:
        print("questions failed: " + ", ".join(failed))
    return 1 if missed or failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION",
                        help=f"some of: {' '.join(QUESTIONS)}; none: all")  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="small inputs, some ten minutes in all"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON results")
    parser.add_argument("--cache", type=Path, default=default_cache(),
                        help="folder of the trained inputs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--work", type=Path, help="folder on the disk under test (default: cache)")
    parser.add_argument("--rounds", type=_rounds, default=7,
                        help=f"rounds per contender, {ROUNDS_MIN} at least")  # fmt: skip
    return parser


def _rounds(text: str) -> int:
    if int(text) < ROUNDS_MIN:
        raise argparse.ArgumentTypeError(f"a median of fewer than {ROUNDS_MIN} is not quoted")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
