"""Where boosters grow: between trees. Read from their bytes alone, so no framework is needed.

A booster that went on has the trees it had, byte for byte, and others behind them; what comes
before and after the trees changes with each save. A store that cuts there keeps the old trees once.

Sources: xgboost writes objects with sorted keys (UBJSON, https://ubjson.org, and JSON), and the
first key of a tree is `base_weights`; LightGBM writes text, a block for each tree.
"""

from __future__ import annotations

import re
from typing import Final

_HEAD_BYTES: Final = 64

_FORMS: Final = (
    # (how the bytes begin, where a tree begins, where the last one ends)
    (
        re.compile(rb"\{L\0{7}\x07learner\{"),
        re.compile(rb"\{L\0{7}\x0cbase_weights\["),
        re.compile(rb"tree_param\{.*?\}\}", re.DOTALL),
    ),
    (
        re.compile(rb"\s*\{\s*\"learner\""),
        re.compile(rb",?\s*\{\s*\"base_weights\""),
        re.compile(rb"\"tree_param\"\s*:\s*\{[^{}]*\}\s*\}"),
    ),
    (
        re.compile(rb"tree\nversion="),
        re.compile(rb"(?<=\n)Tree="),
        re.compile(rb"(?=end of trees\n)"),
    ),
)


def tree_edges(data: bytes | bytearray | memoryview) -> list[int]:
    """Return where the trees of a booster begin, and where the last one ends; else nothing.

    Any answer is safe: what lies between is stored as it is, wherever it is cut.
    """
    view = memoryview(data)
    head = bytes(view[:_HEAD_BYTES])
    for begin, tree, end in _FORMS:
        if begin.match(head):
            edges = [match.start() for match in tree.finditer(view)]
            last = end.search(view, edges[-1]) if edges else None
            return edges if last is None else [*edges, last.end()]
    return []
