"""What a module says at its top, by its source: statements that bind its names, and imports.

Nothing is imported or executed, so that a module says the same whether it is loaded or not.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from casckpt.training.fingerprints.source import without_docstrings

_OWN_SCOPE: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_DATA: Final = (
    ast.List, ast.Dict, ast.Set, ast.Tuple, ast.Constant, ast.UnaryOp, ast.unaryop,
    ast.expr_context,
)  # fmt: skip


_looking: Final = threading.Lock()


class Import(NamedTuple):
    """An import: of a name of a module, or with None of the module itself."""

    level: int
    module: str
    name: str | None


class Statement:
    """A statement of a module.

    Attributes:
        names: all that it names, attributes too.
        imports: all that it imports, inside functions too.
    """

    def __init__(self, node: ast.stmt) -> None:
        """Stand for a statement; `look` says the rest."""
        self._node = node
        self.names: frozenset[str] = frozenset()
        self.imports: list[Import] = []
        self._text = ""

    def look(self) -> str:
        """Find its names and imports, once, and return its syntax without docstrings."""
        with _looking:  # it is shared by threads, and changed
            return self._text or self._look()

    def _look(self) -> str:
        nodes = list(ast.walk(self._node))
        self.imports = [one for _, one in _imports_in(nodes)]
        self.names = frozenset(
            one.id if isinstance(one, ast.Name) else one.attr
            for one in nodes
            if isinstance(one, ast.Name | ast.Attribute)
        )
        self._text = ast.dump(without_docstrings(self._node, nodes))
        return self._text

    @property
    def is_data(self) -> bool:
        """Whether it binds a list, a dict or a set of constants: those do not count."""
        value = self._node.value if isinstance(self._node, ast.Assign | ast.AnnAssign) else None
        return isinstance(value, ast.List | ast.Dict | ast.Set) and all(
            isinstance(one, _DATA) for one in ast.walk(value)
        )


class Source:
    """What the source of a module binds at its top.

    Attributes:
        bound: name to the statements that bind it, or change what it stands for.
        imports: name to the imports that bind it.
        stars: modules of which all is imported.
        names: those of `bound` and `imports`.
    """

    def __init__(self, tree: ast.Module) -> None:
        """Look through the statements of a module."""
        self.bound: dict[str, list[Statement]] = {}
        self.imports: dict[str, list[Import]] = {}
        self.stars: list[Import] = []
        changed: list[tuple[str, Statement]] = []
        for node in tree.body:
            if isinstance(node, ast.If) and not node.orelse and _is_never_run(node.test):
                continue
            inside = list(_at_top(node))
            for name, one in _imports_in(inside):
                if name == "*":
                    self.stars.append(one._replace(name=None))
                else:
                    self.imports.setdefault(name, []).append(one)
            if isinstance(node, ast.Import | ast.ImportFrom):
                continue
            statement = Statement(node)
            for name in sorted(_bound_by(inside)):
                self.bound.setdefault(name, []).append(statement)
            changed += [(name, statement) for name in sorted(_changed_by(inside))]
        for name, statement in changed:  # what is imported may be anything: a decorator
            if statement not in self.bound.get(name, [statement]):
                self.bound[name].append(statement)
        self.names = self.bound.keys() | self.imports.keys()


# ---- what statements say


def _at_top(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a statement that are not inside a function or a class of it."""
    yield node
    for child in [] if isinstance(node, _OWN_SCOPE) else ast.iter_child_nodes(node):
        yield from _at_top(child)


def _imports_in(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, Import]]:
    """Yield the name that each import binds, and the import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                yield name, Import(0, alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, Import(node.level, node.module or "", alias.name)


def _bound_by(nodes: Iterable[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
    return found


def _changed_by(nodes: Iterable[ast.AST]) -> set[str]:
    """Return what is changed where it is: `OPS["f"] = f`, `OPS.update(...)`, `@many.register`."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            found |= _root(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found |= _root(node.value.func)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                found |= _root(decorator)
    return found


def _root(node: ast.AST) -> set[str]:
    """Return the name that an attribute or an item is of; a plain name is of nothing."""
    if isinstance(node, ast.Call):
        return _root(node.func)
    if not isinstance(node, ast.Subscript | ast.Attribute):
        return set()
    inner = node.value
    return {inner.id} if isinstance(inner, ast.Name) else _root(inner)


def _is_never_run(test: ast.expr) -> bool:
    """Return whether a condition is TYPE_CHECKING, or that the module is the script."""
    if isinstance(test, ast.Compare):
        return isinstance(test.left, ast.Name) and test.left.id == "__name__"
    return ast.unparse(test).rpartition(".")[2] == "TYPE_CHECKING"


# ---- where a module is, and its text


def locate(name: str) -> tuple[str | None, str]:
    """Return the file of a module, loaded or not, and its package; nothing is executed."""
    path: Sequence[str] | None = None
    spec: Any = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        prefix = ".".join(parts[:end])
        module = sys.modules.get(prefix)
        spec = getattr(module, "__spec__", None)
        if spec is None and module is not None:  # a script
            return (getattr(module, "__file__", None), "") if end == len(parts) else (None, "")
        spec = spec or _search(prefix, path)
        if spec is None:
            return None, ""
        # What follows is the same for a module that is loaded and for one that is not.
        inside = spec.submodule_search_locations
        # That of a folder without __init__ looks for the module above, which may not be loaded.
        path = None if inside is None else list(getattr(inside, "_path", inside))
        if path is None and end < len(parts):
            return None, ""
    return (spec.origin if spec.has_location else None), spec.parent


def _search(name: str, path: Sequence[str] | None) -> Any:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except (AttributeError, ImportError, KeyError, ValueError):
            continue  # finders of others, of things that are not loaded
        if spec is not None:
            return spec
    return None


def may_be_edited(file: str) -> bool:
    """Return whether a file may have changed since this process began."""
    try:
        # Not mtime, which programs set.
        return Path(file).stat().st_ctime > _BEGAN_S - _CLOCKS_DIFFER_S
    except OSError:
        return True


_BEGAN_S: Final = time.time()
_CLOCKS_DIFFER_S: Final = 300.0
"""Clocks of file servers are not the machine's."""

_texts: dict[str, tuple[Any, str | None]] = {}
"""Text of loaded modules when it was first looked at: edits since are not what is loaded."""


def text_of(name: str, file: str) -> str | None:
    """Return the text of a module; of a loaded one as it was first looked at."""
    module = sys.modules.get(name)
    if module is None:
        return _read(file)
    version = getattr(module, "__spec__", None) or module  # reload gives it another spec
    known = _texts.get(name)
    if known is None or known[0] is not version:
        known = _texts[name] = (version, _read(file))
    return known[1]


def _read(file: str) -> str | None:
    if not file.endswith(".py"):
        return None
    try:
        return importlib.util.decode_source(Path(file).read_bytes())
    except (OSError, UnicodeDecodeError, SyntaxError):
        return None


@functools.lru_cache(1024)
def source_in(text: str | None) -> Source | None:
    """Return what a text says; None for one that is no source."""
    if text is None:
        return None
    try:
        return Source(ast.parse(text))
    except (SyntaxError, ValueError):
        return None
