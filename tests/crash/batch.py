"""Many looks at many broken stores in one child: a fork for each would cost more than the look.

The child says after each look that it came back. If it dies, hangs or finds something, it ends
there, and the next child goes on behind that look.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.crash import oracle, threadless

Look = Callable[[], None]


def each(
    looks: Sequence[Look],
    said: Path,
    hang_s: float = oracle.HANG_S,
    before: Callable[[], None] = lambda: None,
) -> list[str]:
    """Carry out every look; return for each "" or what went wrong.

    `before` each child it puts right what one that died has left.
    """
    answers: list[str] = []
    while len(answers) < len(looks):
        before()
        rest = looks[len(answers) :]
        came_back, why = _one_child(rest, said, hang_s)
        answers += [""] * came_back
        if came_back < len(rest):
            answers.append(why)
    return answers


def _one_child(looks: Sequence[Look], said: Path, hang_s: float) -> tuple[int, str]:
    reading, writing = os.pipe()

    def work() -> None:
        gc.freeze()
        threadless.switch_off()
        for look in looks:
            look()
            os.write(writing, b".")

    said.unlink(missing_ok=True)
    child = oracle.start(work, said)
    os.close(writing)
    came_back, hangs = 0, False
    while not hangs:
        hangs = not oracle.readable(reading, hang_s, child)
        news = b"" if hangs else os.read(reading, 4096)
        if not news:
            break
        came_back += len(news)
    os.close(reading)
    if hangs:
        return came_back, oracle.hung(child, said, hang_s)
    why = oracle.verdict(os.waitpid(child, 0)[1], said)
    return came_back, why or "it ended early"
