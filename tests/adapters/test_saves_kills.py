"""A loop with saves of the script's own beside it, killed at random moments."""

from __future__ import annotations

import pytest

from tests.adapters.kills import check

PROGRAM = """
import sys, time
import numpy as np
import casckpt

np.random.seed(2)
with casckpt.open(sys.argv[1]) as store, store.run("kill/hand") as run:
    state = {"w": np.zeros(500), "sum": 0.0}
    print("begin", flush=True)
    for epoch in run.epochs(20, state, save_every=4):
        for batch in run.batches(range(4), save_every_s=0.0):
            state["w"] += np.random.normal(size=500) * batch
            time.sleep(0.004)
        run.save({"mean": state["w"].mean(), "epoch": epoch})
        run.save({"tail": state["w"][-100:]}, name="tails", tags=f"at-{epoch}")
        state["sum"] += state["w"].sum()
        run.log(loss=state["sum"])
    run.save({"sum": state["sum"]}, name="report")
    made = [state["w"].tobytes(), repr(state["sum"])]
    for below, count in (("saves", 20), ("tails", 20), ("report", 1)):
        found = store.checkpoints(f"kill/hand/{below}")
        assert len(found) == count, found
        for one in found:
            state = store.restore(one)
            saved = [(key, np.asarray(state[key]).tobytes()) for key in sorted(state)]
            made.append((one.ref, saved, one.tags))
open(sys.argv[2], "w").write(repr(made))
"""


@pytest.mark.slow
@pytest.mark.crash
def test_killed_at_random_moments_the_loop_and_the_saves_beside_it_are_the_same(tmp_path):
    program = tmp_path / "saves_by_hand.py"
    program.write_text(PROGRAM)
    check(program, tmp_path, framework="saves by hand")
