"""What a function does, as bytes: its source and that of what it calls in its package.

Source goes in as its syntax tree, so comments, docstrings and layout do not count. What a
function names is followed as long as it is of the same package (of a script: the script's
folder); what is installed counts by name and version. Constants count: names in capitals whose
value is a plain one, defaults, and what a closure holds.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import inspect
import sys
import sysconfig
import textwrap
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from casckpt.training.fingerprints.values import Fingerprinter

_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_STDLIB: Final = Path(sysconfig.get_paths()["stdlib"])
_PLAIN: Final = (int, float, complex, str, bytes, bool, type(None))


class CodeWriter:
    """Writes the spelling of functions, classes and modules for a Fingerprinter."""

    def __init__(self, fingerprinter: Fingerprinter) -> None:
        self._to = fingerprinter
        self._home: Path | None = None
        self._seen: set[int] = set()
        self._depth = 0

    def write(self, value: Any, out: bytearray, where: str) -> None:
        """Append the spelling of anything that can be called, or wraps something that can.

        Raises:
            BadRequest: a closure or a bound object has no fingerprint.
        """
        if self._depth == 0:
            self._seen.clear()
            self._home = _home_of(_first_function(value))
        self._depth += 1
        try:
            self._write(value, out, where)
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

    def _once(self, value: Any, out: bytearray, where: str, write: Any) -> None:
        if id(value) in self._seen:
            _text(out, f"again {value.__qualname__}")
            return
        self._seen.add(id(value))
        write(value, out, where)

    def _function(self, value: types.FunctionType, out: bytearray, where: str) -> None:
        if not self._is_ours(value):
            self._foreign(value, out)
            return
        code = value.__code__
        _text(out, f"def {value.__name__}")
        _text(out, _source(value.__code__))
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
        for name, member in sorted(vars(value).items()):
            inner = getattr(member, "fget", member)
            if _is_generated(inner):
                continue
            if isinstance(inner, types.FunctionType | staticmethod | classmethod):
                _text(out, f"member {name}")
                self._write(inner, out, f"{where}.{name}")
            elif isinstance(inner, _PLAIN) and not name.startswith("__"):
                _text(out, f"value {name}")
                self._to.write(inner, out, where)

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
            elif isinstance(value, types.FunctionType | type) or hasattr(value, "__wrapped__"):
                _text(out, f"calls {name}")
                self._write(value, out, f"{where} -> {name}")
            elif name.isupper() and _is_plain(value):
                _text(out, f"constant {name}")
                self._to.write(value, out, where)

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
        for attribute in sorted(names & vars(module).keys()):
            value = vars(module)[attribute]
            if isinstance(value, types.FunctionType | type):
                _text(out, f"calls {name}.{attribute}")
                self._write(value, out, f"{where} -> {name}.{attribute}")
            elif attribute.isupper() and _is_plain(value):
                _text(out, f"constant {name}.{attribute}")
                self._to.write(value, out, where)

    def _foreign(self, value: Any, out: bytearray) -> None:
        """Write a function of somebody else: its name, and the version of its package."""
        module = getattr(value, "__module__", None) or "builtins"
        name = getattr(value, "__qualname__", type(value).__qualname__)
        _text(out, f"foreign {_version_of(module)} {name}")

    def _is_ours(self, value: Any) -> bool:
        if isinstance(value, types.FunctionType):
            file: str | None = value.__code__.co_filename
        else:
            file = getattr(sys.modules.get(value.__module__), "__file__", None)
            if file is None:
                # A class of an interactive session or of exec: nobody else can have made it.
                return value.__module__ not in sys.stdlib_module_names
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


def _home_of(value: Any) -> Path | None:
    """Return the folder whose code counts: the top-level package's, or the script's."""
    name = getattr(value, "__module__", None) or ""
    root = sys.modules.get(name.partition(".")[0])
    file = getattr(root, "__file__", None)
    if file is None and isinstance(value, types.FunctionType):
        file = value.__code__.co_filename
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


@functools.lru_cache(4096)
def _source(code: types.CodeType) -> str:
    """Return the syntax of a function; its bytecode where there is no source."""
    try:
        text = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError):
        return _bytecode(code)
    if code.co_name == "<lambda>":
        # Its lines may hold other code, and need not parse alone.
        return f"{_lambdas(text) or text.strip()} {_constants(code)}"
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    return ast.dump(_without_docstrings(tree))


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = node.body[0]
            text = first.value if isinstance(first, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                node.body = node.body[1:]
    return tree


def _lambdas(text: str) -> str:
    """Return the syntax of the lambdas in some lines, as far as they parse."""
    for candidate in (text.strip(), text.strip().rstrip(",)"), f"({text.strip()})"):
        try:
            tree = ast.parse(candidate)
        except SyntaxError:
            continue
        return " ".join(ast.dump(one) for one in ast.walk(tree) if isinstance(one, ast.Lambda))
    return ""


def _constants(code: types.CodeType) -> str:
    """Return what tells lambdas of one line apart: names and constants."""
    inner = " ".join(_constants(one) for one in code.co_consts if isinstance(one, types.CodeType))
    plain = [one for one in code.co_consts if not isinstance(one, types.CodeType)]
    return f"{code.co_varnames} {code.co_names} {_stable(plain)} {inner}"


def _stable(values: list[Any]) -> str:
    return repr([sorted(map(repr, one)) if isinstance(one, frozenset) else one for one in values])


def _bytecode(code: types.CodeType) -> str:
    inner = " ".join(_bytecode(one) for one in code.co_consts if isinstance(one, types.CodeType))
    return f"{code.co_code.hex()} {_constants(code)} {inner}"


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
    data = text.encode("utf-8", "surrogatepass")
    out += b"="
    out += len(data).to_bytes(8, "little")
    out += data
