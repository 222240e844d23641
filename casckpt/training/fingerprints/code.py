"""What a function does, as bytes: its source and that of what it calls in its package.

Source goes in as its syntax tree, so comments, docstrings and layout do not count. What a
function names is followed as long as it is of the same package (of a script: the script's
folder); what is installed counts by name and version. Constants count: names in capitals whose
value is a plain one, defaults, and what a closure holds.
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
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casckpt.training.fingerprints.source import source_of
from casckpt.training.fingerprints.spelling import put

if TYPE_CHECKING:
    from casckpt.training.fingerprints.values import Fingerprinter

_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_STDLIB: Final = Path(sysconfig.get_paths()["stdlib"])
_BOUND: Final = functools.partial | types.MethodType
_PLAIN: Final = (int, float, complex, str, bytes, bool, type(None))

_HOLDERS: Final = (list, tuple, dict, set, frozenset, types.ModuleType)


class CodeWriter:
    """Writes the spelling of functions, classes and modules for a Fingerprinter."""

    def __init__(self, fingerprinter: Fingerprinter) -> None:
        self._to = fingerprinter
        self._home: Path | None = None
        self._seen: set[int] = set()
        self._modules: list[types.ModuleType] = []
        self._depth = 0

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
            self._home = _home_of(_first_function(value))
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
        function = _first_function(value)
        cls = type(value.__self__)
        if not isinstance(function, types.FunctionType) or isinstance(value.__self__, type):
            return
        names = _names_of(function.__code__)
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
            for kind, inner in _parts(member):
                if not _is_generated(inner):
                    self._member(f"{name}{kind}", inner, out, f"{where}.{name}")

    def _member(self, name: str, value: Any, out: bytearray, where: str) -> None:
        if isinstance(value, types.FunctionType | staticmethod | classmethod):
            _text(out, f"member {name}")
            self._write(value, out, where)
        elif _is_plain(value):
            if not name.startswith("__"):
                _text(out, f"value {name}")
                self._to.write(value, out, where)
        elif self._leads_home(value):
            _text(out, f"member {name}")
            self._call(value, out, where)

    def _names(
        self, code: types.CodeType, scope: dict[str, Any], out: bytearray, where: str
    ) -> None:
        """Write what the code names in its module that is ours, in order of name."""
        names = _names_of(code)
        for name in sorted(names):
            if name not in scope:
                continue
            value = scope[name]
            if isinstance(value, types.ModuleType):
                self._through_module(value, name, names, out, where)
            else:
                self._named(value, name, name, out, where)

    def _named(self, value: Any, name: str, shown: str, out: bytearray, where: str) -> None:
        """Write what a module has under a name: what can be called, or a constant."""
        if isinstance(value, types.FunctionType | type) or hasattr(value, "__wrapped__"):
            _text(out, f"calls {shown}")
            self._write(value, out, f"{where} -> {shown}")
        elif name.isupper() and _is_plain(value):
            _text(out, f"constant {shown}")
            self._to.write(value, out, where)
        elif isinstance(value, _BOUND) or self._leads_home(value):
            _text(out, f"calls {shown}")
            self._call(value, out, f"{where} -> {shown}")

    def _call(self, value: Any, out: bytearray, where: str) -> None:
        """Write what may be called by way of an object that a name holds."""
        # Nobody passed what it holds, so a client among it is no reason to refuse.
        with self._to.leniently():
            if isinstance(value, functools.partialmethod):
                self._to.write((value.func, value.args, value.keywords), out, where)
            elif isinstance(value, _BOUND | type) or hasattr(value, "__wrapped__"):
                self._write(value, out, where)
            elif self._is_ours(type(value)):
                self._write(type(value), out, where)
            else:
                self._hidden(value, out, where)

    def _leads_home(self, value: Any) -> bool:
        """Return whether an object that is no function has code of ours."""
        if isinstance(value, (*_PLAIN, *_HOLDERS)):
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
        for name, held in _holds(value):
            if not isinstance(held, types.FunctionType | _BOUND):
                continue
            function = _first_function(held)
            if not isinstance(function, types.FunctionType) or _is_generated(function):
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
                self._named(value, attribute, shown, out, where)
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


def _first_function(value: Any) -> Any:
    while True:
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, types.MethodType | staticmethod | classmethod):
            value = value.__func__
        elif hasattr(value, "__wrapped__") and not isinstance(value, types.FunctionType):
            value = value.__wrapped__
        else:
            return value


def _parts(member: Any) -> list[tuple[str, Any]]:
    """Return (kind, part) of what a class has under a name: a property is up to three functions."""
    if isinstance(member, functools.cached_property):
        return [("", member.func)]
    if isinstance(member, property):
        parts = [("", member.fget), (" set", member.fset), (" del", member.fdel)]
        return [one for one in parts if one[1] is not None]
    return [("", getattr(member, "fget", member))]


def _holds(value: Any) -> list[tuple[str, Any]]:
    """Return (name, object) of what a wrapper holds, in order of name."""
    held: dict[str, Any] = {}
    if isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not filled yet
                held[name] = cell.cell_contents
        registry = held.get("registry")
        if isinstance(registry, Mapping):  # functools.singledispatch
            held.update(
                (f"for {getattr(cls, '__qualname__', cls)}", registry[cls]) for cls in registry
            )
    else:
        held.update(getattr(value, "__dict__", None) or {})
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None:
        held["__wrapped__"] = wrapped
    return sorted(
        ((name, one) for name, one in held.items() if type(name) is str), key=itemgetter(0)
    )


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


def _is_generated(member: Any) -> bool:
    """Return whether a member was made by `dataclass` and its like from the fields."""
    return isinstance(member, types.FunctionType) and member.__code__.co_filename == "<string>"


def _names_of(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_of(constant)
    return names


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


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
