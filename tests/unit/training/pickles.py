"""Pickles of others: written as they write them, and one that runs code when it is loaded."""

from __future__ import annotations

import os
import pickle


def dump(path, value, protocol=None):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


class Evil:
    def __reduce__(self):
        return (os.system, ("true",))
