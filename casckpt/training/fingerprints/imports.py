"""What imports inside functions lead to, and what a module says under a name: by source alone.

A module that a function imports need not be imported yet, and the function is the same before and
after its first call. So such a module counts as it is written, whether it is loaded or not: the
statements that bind a name, and those that bind what they name in turn, as far as the code is
ours. Of what is installed the version counts, and nothing is imported here.
"""

from __future__ import annotations

import collections
import dis
import functools
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from casckpt.training.fingerprints.modules import (
    Import,
    Source,
    Statement,
    locate,
    may_be_edited,
    source_in,
    text_of,
)
from casckpt.training.fingerprints.source import edited
from casckpt.training.fingerprints.spelling import put

_IMPORT: Final = dis.opmap["IMPORT_NAME"]
_REBIND: Final = dis.opmap["STORE_GLOBAL"]


class _OfCode(NamedTuple):
    """What a function imports, and names that it binds itself: not there before its first call."""

    imports: tuple[Import, ...]
    own: frozenset[str]


class _Module(NamedTuple):
    name: str
    package: str
    source: Source | None  # None for what is not ours
    may_be_edited: bool = False


class _Wish(NamedTuple):
    """A name of a module that is to be written, or with None what `names` are in it.

    Attributes:
        target: name of the module.
        name: the name.
        names: all that is named where this is: if it is a module, its part among them counts.
    """

    target: str
    name: str | None
    names: frozenset[str]


class ImportWriter:
    """Writes what names of modules stand for, each statement once.

    Args:
        is_home: whether a file is of the code that counts.
    """

    def __init__(self, is_home: Callable[[str | None], bool]) -> None:
        self._is_home = is_home
        self._modules: dict[str, _Module | None] = {}
        self._seen: set[object] = set()

    def begin(self) -> None:
        """Forget what was written, and look at the files again."""
        self._modules.clear()
        self._seen.clear()

    def of_code(
        self, code: types.CodeType, scope: Mapping[str, Any], names: set[str], out: bytearray
    ) -> None:
        """Append what the imports inside a function lead to; `names` is all that it names."""
        imports = imports_of(code).imports
        if imports:
            self._write(_wishes(imports, _package_of(scope), frozenset(names)), out)

    def of_global(self, scope: Mapping[str, Any], name: str, out: bytearray) -> None:
        """Append how a module makes what it has under a name."""
        module = scope.get("__name__")
        # A function may have been given a dict that is no module's.
        if isinstance(module, str) and getattr(sys.modules.get(module), "__dict__", 0) is scope:
            self._write([_Wish(module, name, frozenset())], out)

    def _write(self, wishes: Iterable[_Wish], out: bytearray) -> None:
        # No recursion: what a package calls may be longer than Python's stack.
        waiting = collections.deque(wishes)
        while waiting:
            wish = waiting.popleft()
            if wish not in self._seen:
                self._seen.add(wish)
                waiting.extend(self._one(wish, out))

    def _one(self, wish: _Wish, out: bytearray) -> Iterator[_Wish]:
        """Write what a wish is for, and yield what that leads to."""
        target, name, names = wish
        head, _, _ = target.rpartition(".")
        module = self._module(target)
        if module is not None and module.source is None:
            self._foreign(target, out)
            return
        if name is None and head:
            yield _Wish(head, None, names)
        if module is None:
            if name is not None:  # of a folder without __init__
                yield _Wish(f"{target}.{name}", None, names)
            return
        source, package = module.source, module.package
        assert source is not None
        if name is None:
            for one in sorted(names & source.names):
                yield _Wish(target, one, names)
            yield from _wishes(source.stars, package, names)
            return
        for statement in source.bound.get(name, ()):
            yield from self._statement(module, source, name, statement, out)
        yield from _wishes(source.imports.get(name, ()), package, names)
        if name not in source.names:
            yield _Wish(f"{target}.{name}", None, names)
            for star in _wishes(source.stars, package, names):
                yield star._replace(name=name)

    def _statement(
        self, module: _Module, source: Source, name: str, statement: Statement, out: bytearray
    ) -> Iterator[_Wish]:
        if (module.name, statement) in self._seen or statement.is_data:
            return
        self._seen.add((module.name, statement))
        put(out, b"=", f"binds {name}")
        put(out, b"=", statement.look())
        if module.may_be_edited:
            for text in _edited(module.name, name):
                put(out, b"=", text)
        names = statement.names
        for one in sorted(names & source.names):
            yield _Wish(module.name, one, names)
        yield from _wishes(statement.imports, module.package, names)
        yield from _wishes(source.stars, module.package, names)

    def _foreign(self, target: str, out: bytearray) -> None:
        root = target.partition(".")[0]
        if root not in self._seen and root not in sys.stdlib_module_names:
            self._seen.add(root)
            put(out, b"=", f"imports {_installed(root)}")

    def _module(self, name: str) -> _Module | None:
        """Return a module by its name; None if there is none, or it has no source."""
        if name not in self._modules:
            self._modules[name] = self._look(name)
        return self._modules[name]

    def _look(self, name: str) -> _Module | None:
        file, package = locate(name)
        if file is None:
            return None
        if not self._is_home(file):
            return _Module(name, package, None)
        source = source_in(text_of(name, file))
        return None if source is None else _Module(name, package, source, may_be_edited(file))


@functools.lru_cache(4096)
def imports_of(code: types.CodeType) -> _OfCode:
    """Return what a function and those inside it import, and which names are only bound by it."""
    codes = list(_codes(code))
    if not any({_IMPORT, _REBIND} & set(one.co_code[::2]) for one in codes):
        return _OfCode((), frozenset())
    imports: list[Import] = []
    own: set[str] = set()
    rebound: set[str] = set()
    used: set[str] = set()
    for one in codes:
        said: list[Any] = []
        for step in dis.get_instructions(one):
            if step.opname == "IMPORT_NAME":
                own.add(step.argval)
                level, names = said[-2:]
                imports += [Import(level, step.argval, name) for name in names or (None,)]
            elif step.opname == "IMPORT_FROM":
                own.add(step.argval)
            elif step.opname == "STORE_GLOBAL":
                rebound.add(step.argval)
            elif step.opcode in dis.hasname:
                used.add(step.argval)
            if step.opname.startswith("LOAD_"):
                said.append(step.argval)
    return _OfCode(tuple(imports), frozenset(own - used | rebound))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _package_of(scope: Mapping[str, Any]) -> str:
    package, name = scope.get("__package__"), scope.get("__name__")
    if isinstance(package, str):
        return package
    return name.rpartition(".")[0] if isinstance(name, str) else ""


def _wishes(imports: Iterable[Import], package: str, names: frozenset[str]) -> Iterator[_Wish]:
    for level, module, name in imports:
        target = module
        if level:
            try:
                target = importlib.util.resolve_name("." * level + module, package)
            except ImportError:  # of a script: it has no package
                continue
        yield _Wish(target, name, names)


def _edited(module: str, name: str) -> Iterator[str]:
    """Yield what is loaded of a function or class whose source was edited since."""
    held = vars(sys.modules[module]).get(name) if module in sys.modules else None
    members = vars(held).values() if isinstance(held, type) else [held]
    for one in members:
        if isinstance(one, types.FunctionType) and one.__module__ == module:
            text = edited(one.__code__)
            if text is not None:
                yield text


@functools.cache
def _installed(root: str) -> str:
    """Return the name and version of a package, which may not be loaded, so not `__version__`."""
    try:
        return f"{root} {importlib.metadata.version(root)}"
    except importlib.metadata.PackageNotFoundError:
        # Of another name, as scikit-learn. `packages_distributions` takes ten times as long.
        return f"{root} {' '.join(sorted(set(_distributions(root))))}"


def _distributions(root: str) -> Iterator[str]:
    for one in importlib.metadata.distributions():
        files = "\n" + (one.read_text("RECORD") or "")
        if f"\n{root}/__init__.py," in files or f"\n{root}.py," in files:
            yield f"{one.name} {one.version}"
