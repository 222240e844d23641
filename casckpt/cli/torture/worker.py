"""A program that saves until it is killed: `python -m casckpt.cli.torture.worker STORE RUN SEED N`.

It says on stdout what it is about to ask for and what has returned, each line in one write.
"""

from __future__ import annotations

import json
import os
import random
import sys

import casckpt
from casckpt.cli.torture.expected import state


def say(word: str, *facts: object) -> None:
    """Write one line at once, so that what was said before a kill was said."""
    os.write(1, (json.dumps({word: facts}) + "\n").encode())


def work(path: str, run: str, seed: int, count: int) -> None:
    """Save, remove and collect, `count` times; a run that is there goes on."""
    draw = random.Random(f"{run} {seed}")
    say("begin", "open", run, 0, 0)
    with casckpt.open(path) as store:
        say("done", "open", run, 0, 0)
        newest = store.latest(run)
        step = -1 if newest is None else newest.step
        live = [checkpoint.step for checkpoint in store.checkpoints(run)]
        for _ in range(count):
            chance = draw.random()
            if chance < 0.75 or not live:
                step += 1
                number = seed * 100 + step % 100
                say("begin", "save", run, step, number)
                store.save(run, state(number), step)
                say("done", "save", run, step, number)
                live.append(step)
            elif chance < 0.93:
                gone = live.pop(draw.randrange(len(live)))
                say("begin", "delete", run, gone, 0)
                store.delete(f"{run}@{gone}")
                say("done", "delete", run, gone, 0)
            else:
                say("begin", "gc", run, 0, 0)
                try:
                    store.gc(now=True)
                except casckpt.errors.Busy:
                    continue  # the other worker collects
                say("done", "gc", run, 0, 0)


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
