"""Make a golden store: `python -m tests.golden.make FOLDER`, for each change of what is written.

A golden store is never edited or made again: it is what an older casckpt wrote, and every later one
must read it. `v1-planes` is from before the entropy coder, `v1` from before dictionaries,
`v1-turned` has both, and chains that `compact` has turned round.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import casckpt
from casckpt.store import layout
from tests.golden import archive
from tests.golden.states import GROWN_STEPS, STEPS, grown, state


def main(target: Path) -> None:
    """Write the store, and what is in it, into `target`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        expected = {}
        for level in ("balanced", "fast", "small"):
            with casckpt.open(path, options=casckpt.Options(level=level)) as store:
                for step in range(STEPS):
                    checkpoint = store.save(
                        f"golden/{level}",
                        state(step),
                        step=step,
                        metrics={"loss": 1 / (step + 1), "nan": float("nan")},
                        tags=[f"t{step}"] if step == 1 else (),
                    )
                    expected[checkpoint.ref] = checkpoint.id
                store.pin(f"golden/{level}@2")
        with casckpt.open(path) as store:
            store.save("golden/trash", {"gone": np.arange(9)})
            store.delete("golden/trash")
            store.save("golden/big", {"blob": np.arange(3_000_000, dtype=np.int32) % 7})
            for step in range(GROWN_STEPS):
                if step == GROWN_STEPS - 2:
                    store.compact()
                store.save("golden/grown", grown(step), step)
        document = {"format": layout.FORMAT_VERSION, "checkpoints": expected}
        archive.pack(path, document, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
