"""What a function does, as bytes: its source and that of what it calls in its package.

Source goes in as its syntax tree, so comments, docstrings and layout do not count. What a
function names is followed as long as it is of the same package (of a script: the script's
folder); what is installed counts by name and version. Values count: plain ones of a module that it
reads and does not set, defaults, what a closure holds, and plain values of classes. Of lists and
dicts of a module the functions and classes in them count, of its objects their class and the
statement that makes them: what they hold may change while a program runs.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib.metadata
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

from casckpt.training.fingerprints.imports import ImportWriter, imports_of
from casckpt.training.fingerprints.objects import (
    BY_REPR,
    PLAIN,
    first_function,
    globals_read_by,
    holds,
    is_generated,
    is_number,
    is_plain,
    key_text,
    names_of,
    parts,
    place,
)
from casckpt.training.fingerprints.settings import is_setting
from casckpt.training.fingerprints.source import source_of
from casckpt.training.fingerprints.spelling import put

if TYPE_CHECKING:
    from casckpt.training.fingerprints.values import Fingerprinter

_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_STDLIB: Final = Path(sysconfig.get_paths()["stdlib"])
_BOUND: Final = functools.partial | types.MethodType
_CALLED: Final = _BOUND | type | types.FunctionType
_NO_CODE: Final = frozenset(PLAIN)
_TABLES: Final = (list, tuple, dict, set, frozenset, types.MappingProxyType)
_HOLDERS: Final = (*_TABLES, types.ModuleType)

_TABLE_MAX: Final = 2000
"""Of a longer list, with the lists in it, nothing is a table of functions: it is data."""


class CodeWriter:
    """Writes the spelling of functions, classes and modules for a Fingerprinter."""

    def __init__(self, fingerprinter: Fingerprinter) -> None:
        self._to = fingerprinter
        self._home: Path | None = None
        self._seen: set[int] = set()
        self._modules: list[types.ModuleType] = []
        self._depth = 0
        self._imports = ImportWriter(self._is_home)

    def write(self, value: Any, out: bytearray, where: str) -> None:
        """Append the spelling of anything that can be called, or wraps something that can.

        Raises:
            BadRequest: a closure or a bound object has no fingerprint.
        """
        with self._begun(value):
            self._write(value, out, where)

    def write_class_of(self, value: Any, out: bytearray, where: str) -> None:
        """Append the code of an object's class if it is ours; nothing if it is somebody else's."""
        with self._begun(type(value)), self._to.leniently():
            if self._is_ours(type(value)):
                _text(out, "of class")
                self._write(type(value), out, where)

    @contextlib.contextmanager
    def _begun(self, value: Any) -> Iterator[None]:
        if self._depth == 0:
            self._seen.clear()
            self._modules.clear()
            self._imports.begin()
            self._home = _home_of(first_function(value))
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def write_module(self, value: types.ModuleType, out: bytearray) -> None:
        """Append the name and version of a module."""
        _text(out, f"module {_version_of(value.__name__)}")

    def _write(self, value: Any, out: bytearray, where: str) -> None:
        if isinstance(value, functools.partial):
            _text(out, "partial")
            self._to.write((value.func, value.args, value.keywords), out, where)
        elif isinstance(value, types.MethodType):
            _text(out, "method")
            self._to.write(value.__func__, out, where)
            # A class method's object is its class; another object's content counts.
            self._to.write(value.__self__, out, f"{where}.__self__")
            self._own_methods(value, out, where)
        elif isinstance(value, staticmethod | classmethod):
            self._write(value.__func__, out, where)
        elif isinstance(value, types.FunctionType):
            self._once(value, out, where, self._function)
        elif isinstance(value, type):
            self._once(value, out, where, self._class)
        elif hasattr(value, "__wrapped__") and not isinstance(value, types.BuiltinFunctionType):
            self._write(value.__wrapped__, out, where)  # functools.lru_cache and its like
        else:
            self._foreign(value, out)

    def _own_methods(self, value: types.MethodType, out: bytearray, where: str) -> None:
        """Write the class of a bound method if the method names other methods of it."""
        function = first_function(value)
        cls = type(value.__self__)
        if not isinstance(function, types.FunctionType) or isinstance(value.__self__, type):
            return
        names = names_of(function.__code__)
        if self._is_ours(cls) and any(hasattr(cls, name) for name in names):
            _text(out, "of class")
            self._write(cls, out, where)

    def _once(self, value: Any, out: bytearray, where: str, write: Any) -> None:
        if id(value) in self._seen:
            _text(out, f"again {value.__qualname__}")
            return
        self._seen.add(id(value))
        write(value, out, where)

    def _function(self, value: types.FunctionType, out: bytearray, where: str) -> None:
        if not self._is_ours(value):
            self._foreign(value, out)
            self._hidden(value, out, where)
            return
        code = value.__code__
        _text(out, f"def {value.__name__}")
        _text(out, source_of(value.__code__))
        self._to.write((value.__defaults__, value.__kwdefaults__), out, f"{where}'s defaults")
        for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            try:
                held = cell.cell_contents
            except ValueError:  # not filled yet: it is the name being defined
                continue
            _text(out, f"cell {name}")
            self._to.write(held, out, f"{where}'s variable {name}")
        self._names(code, value.__globals__, out, where)

    def _class(self, value: type, out: bytearray, where: str) -> None:
        if not self._is_ours(value):
            self._foreign(value, out)
            return
        _text(out, f"class {value.__name__}")
        if type(value) is not type and self._is_ours(type(value)):
            _text(out, "metaclass")
            self._write(type(value), out, where)
        for base in value.__bases__:
            if base is not object:
                self._write(base, out, where)
        _text(out, f"fields {list(vars(value).get('__annotations__', ()))}")
        if issubclass(value, enum.Enum):
            with self._to.leniently():
                self._to.write([(one.name, one.value) for one in value], out, where)
        for name, field in sorted(vars(value).get("__dataclass_fields__", {}).items()):
            if isinstance(field.default_factory, types.FunctionType):
                self._member(f"{name} factory", field.default_factory, out, f"{where}.{name}")
        for name, member in sorted(vars(value).items()):
            if name == "_fields" and "__annotations__" in vars(value):
                continue  # of a NamedTuple: written above
            for kind, inner in parts(member):
                if not is_generated(inner):
                    self._member(f"{name}{kind}", inner, out, f"{where}.{name}")

    def _member(self, name: str, value: Any, out: bytearray, where: str) -> None:
        if isinstance(value, types.FunctionType | staticmethod | classmethod):
            _text(out, f"member {name}")
            self._write(value, out, where)
        elif is_plain(value) or is_number(value) or isinstance(value, BY_REPR):
            if not name.startswith("__"):
                _text(out, f"value {name}")
                self._to.write(value, out, where)
        elif isinstance(value, PurePath):
            _text(out, f"value {name}")
            self._to.write(str(value), out, where)
        elif self._leads_home(value):
            _text(out, f"member {name}")
            self._call(value, out, where)
        elif isinstance(value, _TABLES) and not (name.startswith("_") and name.endswith("_")):
            if not is_setting(value):
                self._table(value, name, out, where)
            elif value:  # one that is empty may be a memory, of which objects do not count
                _text(out, f"value {name}")
                with self._to.leniently():
                    self._to.write(value, out, where)

    def _names(
        self, code: types.CodeType, scope: dict[str, Any], out: bytearray, where: str
    ) -> None:
        """Write what the code names in its module that is ours, in order of name."""
        mentioned = names_of(code)
        # Not what it binds itself: that is there after its first call, and not before.
        names = mentioned - imports_of(code).own
        read = globals_read_by(code)
        for name in sorted(names):
            if name not in scope:
                continue
            value = scope[name]
            if isinstance(value, types.ModuleType):
                self._through_module(value, name, names, out, where)
            else:
                self._named(scope, name, name, out, where, is_read=name in read)
        self._imports.of_code(code, scope, mentioned, out)

    def _named(
        self,
        scope: dict[str, Any],
        name: str,
        shown: str,
        out: bytearray,
        where: str,
        *,
        is_read: bool = True,
    ) -> None:
        """Write what a module has under a name: what can be called, or a plain value.

        A name that is mentioned may be an attribute of something else: then only a constant, in
        capitals, counts.
        """
        value = scope[name]
        if isinstance(value, types.FunctionType | type) or hasattr(value, "__wrapped__"):
            _text(out, f"calls {shown}")
            self._write(value, out, f"{where} -> {shown}")
        elif is_plain(value) or is_number(value):
            # What begins so says where code is, and differs in a script and a module.
            if name.isupper() or (is_read and not name.startswith("__")):
                _text(out, f"constant {shown}")
                self._to.write(value, out, where)
        elif isinstance(value, _BOUND) or self._leads_home(value):
            _text(out, f"calls {shown}")
            self._call(value, out, f"{where} -> {shown}")
            if not isinstance(value, _BOUND | functools.partialmethod):
                self._imports.of_global(scope, name, out)
        elif isinstance(value, _TABLES):
            if self._table(value, shown, out, where):
                self._imports.of_global(scope, name, out)
        elif is_read:
            self._imports.of_global(scope, name, out)

    def _table(self, table: Any, shown: str, out: bytearray, where: str) -> bool:
        """Write what can be called among the content of a list, a dict; return if there is any."""
        found = self._in_table(table, _TABLE_MAX)
        if found:
            _text(out, f"table {shown}")
        for key, one in found:
            _text(out, f"at {key}")
            self._call(one, out, f"{where} -> {shown}")
        return bool(found)

    def _in_table(self, table: Any, room: int, depth: int = 2) -> list[tuple[str, Any]]:
        values = list(table.values()) if isinstance(table, Mapping) else table
        if len(table) > room or set(map(type, values)) <= _NO_CODE:
            return []
        found: list[tuple[str, Any]] = []
        # A dict of objects may be a memory that calls fill; a list of them is steps to take.
        is_dict = isinstance(table, Mapping)
        for key, one in list(table.items()) if is_dict else enumerate(table):
            if isinstance(one, _TABLES):
                inner = self._in_table(one, room // len(table), depth - 1) if depth else []
                found += [(f"{key_text(key)} {name}", held) for name, held in inner]
            elif (not is_dict or _is_called(one)) and (
                isinstance(one, types.FunctionType) or self._leads_home(one)
            ):
                found.append((key_text(key), one))
        if isinstance(table, set | frozenset):  # in the order of addresses
            found = sorted((("", one) for _, one in found), key=lambda pair: place(pair[1]))
        return found

    def _call(self, value: Any, out: bytearray, where: str) -> None:
        """Write what may be called by way of an object that a name holds."""
        # Nobody passed what it holds, so a client among it is no reason to refuse.
        with self._to.leniently():
            if isinstance(value, functools.partialmethod):
                self._to.write((value.func, value.args, value.keywords), out, where)
            elif _is_called(value):
                self._write(value, out, where)
            elif self._is_ours(type(value)):
                self._write(type(value), out, where)
            else:
                self._hidden(value, out, where)

    def _leads_home(self, value: Any) -> bool:
        """Return whether an object that is no function has code of ours."""
        if isinstance(value, (*PLAIN, *_HOLDERS)):
            return False
        if isinstance(value, _BOUND | functools.partialmethod):
            return True
        if isinstance(value, type):
            return self._is_ours(value)
        if hasattr(value, "__wrapped__"):
            return True
        return self._is_ours(type(value)) or bool(self._behind(value))

    def _hidden(self, value: Any, out: bytearray, where: str) -> None:
        """Write the functions of ours that an object of somebody else wraps."""
        for name, function in self._behind(value):
            _text(out, f"wraps {name}")
            self._write(function, out, where)

    def _behind(self, value: Any, depth: int = 4) -> list[tuple[str, Any]]:
        """Return (place, function) of the functions of ours in what wraps them."""
        found = []
        for name, held in holds(value):
            if not isinstance(held, types.FunctionType | _BOUND):
                continue
            function = first_function(held)
            if not isinstance(function, types.FunctionType) or is_generated(function):
                continue
            if self._is_ours(function):
                found.append((name, function))
            elif depth:
                found += [
                    (f"{name}.{rest}", one) for rest, one in self._behind(function, depth - 1)
                ]
        return found

    def _through_module(
        self,
        module: types.ModuleType,
        name: str,
        names: set[str],
        out: bytearray,
        where: str,
    ) -> None:
        if not self._is_home(getattr(module, "__file__", None)):
            self.write_module(module, out)
            return
        if module in self._modules:
            return  # reached by way of itself
        self._modules.append(module)
        for attribute in sorted(names & vars(module).keys()):
            value = vars(module)[attribute]
            shown = f"{name}.{attribute}"
            if not isinstance(value, types.ModuleType):
                self._named(vars(module), attribute, shown, out, where)
            elif self._is_home(getattr(value, "__file__", None)):
                _text(out, f"module {shown}")
                self._through_module(value, shown, names, out, where)
        self._modules.pop()

    def _foreign(self, value: Any, out: bytearray) -> None:
        """Write a function of somebody else: its name, and the version of its package."""
        module = getattr(value, "__module__", None) or "builtins"
        name = getattr(value, "__qualname__", type(value).__qualname__)
        _text(out, f"foreign {_version_of(module)} {name}")
        if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            holder = value.__self__
            if not isinstance(holder, types.ModuleType | type | None):
                _text(out, "of")  # ",".join is another function than ";".join
                with self._to.leniently():
                    self._to.write(holder, out, name)

    def _is_ours(self, value: Any) -> bool:
        if isinstance(value, types.FunctionType):
            file: str | None = value.__code__.co_filename
        else:
            root = value.__module__.partition(".")[0]
            file = getattr(sys.modules.get(value.__module__), "__file__", None)
            file = file or getattr(sys.modules.get(root), "__file__", None)
            if file is None:
                # A class of an interactive session or of exec: nobody else can have made it.
                return root not in sys.stdlib_module_names
        return self._is_home(file)

    def _is_home(self, file: str | None) -> bool:
        if file is None:
            return False
        if file.startswith("<"):
            return not file.startswith("<frozen")
        if self._home is None:
            return False
        path = Path(file)
        if not path.is_relative_to(self._home) or path.is_relative_to(_STDLIB):
            return False
        return _INSTALLED.isdisjoint(path.relative_to(self._home).parts)


def _home_of(value: Any) -> Path | None:
    """Return the folder whose code counts: the top-level package's, or the script's."""
    name = getattr(value, "__module__", None) or ""
    root = sys.modules.get(name.partition(".")[0])
    file = getattr(root, "__file__", None)
    if file is None and isinstance(value, types.FunctionType):
        file = value.__code__.co_filename
    if file is None and isinstance(value, type):
        file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or file.startswith("<"):
        return None
    if name.partition(".")[0] in sys.stdlib_module_names and name != "__main__":
        return None
    home = Path(file).absolute().parent
    # What is installed changes with its version, and its inside is nobody's business.
    return None if _INSTALLED.intersection(home.parts) else home


def _is_called(value: Any) -> bool:
    return isinstance(value, _CALLED) or hasattr(value, "__wrapped__")


@functools.cache
def _version_of(module: str) -> str:
    """Return the top-level package of a module with its version, then the module's name."""
    root = module.partition(".")[0]
    version = getattr(sys.modules.get(root), "__version__", None)
    if root in sys.stdlib_module_names:
        return f"{root} {module}"
    if not isinstance(version, str):
        try:
            version = importlib.metadata.version(root)
        except importlib.metadata.PackageNotFoundError:
            version = ""
    return f"{root} {version} {module}"


def _text(out: bytearray, text: str) -> None:
    put(out, b"=", text)
