"""Dotted paths of a state tree: how they are written, and which of them a glob selects."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

PATH_MAX: Final = 4096
"""Longest path, in characters: what an entry of a manifest may be asked to hold."""


def join(path: str, key: object) -> str:
    """Return the path of a child: keys that are strings read as they are, others as repr."""
    if type(key) is not str:
        text = repr(key)
    else:
        text = key if key.isascii() else key.encode("utf-8", "backslashreplace").decode()
    return f"{path}.{text}" if path else text


def told_apart(paths: Iterable[str]) -> list[str]:
    """Return paths, those that read alike each with a mark of its own.

    Keys 1 and "1" have one path, and so have `a.b` and `b` below `a`.
    """
    found: dict[str, None] = {}
    for path in paths:
        while path in found:
            path += "'"
        found[path] = None
    return list(found)


@dataclass(frozen=True)
class Selection:
    """What `only` selects; a glob that matches a container selects all of it.

    Attributes:
        globs: as given; `*` and `?` cross dots, letters are compared exactly.
    """

    globs: tuple[str, ...]
    used: set[str]
    _patterns: tuple[tuple[str, re.Pattern[str]], ...]

    @classmethod
    def of(cls, only: str | Iterable[str] | None) -> Selection | None:
        """Return the selection of `restore(only=...)`, None for everything."""
        if only is None:
            return None
        globs = (only,) if isinstance(only, str) else tuple(only)
        patterns = tuple((glob, re.compile(fnmatch.translate(glob))) for glob in globs)
        return cls(globs, set(), patterns)

    def matches(self, path: str) -> bool:
        """Return whether a glob matches this very path, and note which did."""
        found = False
        for glob, pattern in self._patterns:
            if pattern.match(path):
                self.used.add(glob)
                found = True
        return found

    @property
    def unused(self) -> list[str]:
        """Globs that have matched nothing so far."""
        return [glob for glob in self.globs if glob not in self.used]


class Absent:
    """The type of ABSENT."""

    def __repr__(self) -> str:
        """Return its name."""
        return "ABSENT"


ABSENT: Any = Absent()
"""Stands for a part of the tree that was not selected."""
